"""What the supervisor tells the control plane on its command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.config import Backend, LoadedSettings, Settings, load_settings


@dataclass(frozen=True)
class Parameters:
    """Paths and descriptors from the supervisor; the settings are read from their own sources."""

    config_file: Path | None
    flags: dict[tuple[str, ...], tuple[Any, str]]
    runtime_directory: Path
    steering_socket: Path
    cold_socket: Path
    counters_fd: int
    metrics_fd: int | None
    control_address: str | None
    embedded_address: str | None
    embedded_metrics_port: int  # 0: it has none
    listen: tuple[str, ...]

    @classmethod
    def from_json(cls, text: str) -> Parameters:
        raw = json.loads(text)
        return cls(
            config_file=Path(raw["config_file"]) if raw["config_file"] else None,
            flags={tuple(path): (value, flag) for path, value, flag in raw["flags"]},
            runtime_directory=Path(raw["runtime_directory"]),
            steering_socket=Path(raw["steering_socket"]),
            cold_socket=Path(raw["cold_socket"]),
            counters_fd=raw["counters_fd"],
            metrics_fd=raw["metrics_fd"],
            control_address=raw["control_address"],
            embedded_address=raw["embedded_address"],
            embedded_metrics_port=raw["embedded_metrics_port"],
            listen=tuple(raw["listen"]),
        )

    def load(self) -> LoadedSettings:
        """Reads the configuration. Raises ConfigError."""
        return load_settings(self.config_file, self.flags)

    @property
    def metrics_ports(self) -> dict[str, int]:
        """Of the backends of which it is known, by address."""
        known = self.embedded_address is not None and self.embedded_metrics_port
        return {self.embedded_address or "": self.embedded_metrics_port} if known else {}

    def backends(self, settings: Settings) -> list[Backend]:
        """The configured backends and the embedded Triton."""
        backends = list(settings.backends)
        if self.embedded_address is not None:
            embedded = {
                "address": self.embedded_address,
                "connections": settings.embedded.connections,
                "compression": settings.embedded.compression,
                "exclusive": settings.embedded.exclusive,
                "executor": settings.embedded.executor,
                "shared_memory": settings.embedded.shared_memory,
                "devices": settings.embedded.devices,
            }
            backends.append(Backend.model_validate(embedded))
        return backends
