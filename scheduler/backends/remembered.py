"""What each backend served, kept in the runtime directory across a restart of the control plane.

Without it a control plane that was killed while a backend was away would come back believing that
its models never existed, and their requests would be told "unknown model".
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

ModelKey = tuple[str, str]
Described = tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]


class RememberedModels:
    """One file a backend, replaced whole."""

    def __init__(self, directory: Path, address: str) -> None:
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        self._path = directory / f"backend-{digest}.json"

    def load(self) -> dict[ModelKey, Described]:
        """What was stored; nothing where there is no file or a torn one."""
        try:
            return {
                (entry["name"], entry["version"]): (
                    service_pb2.ModelMetadataResponse.FromString(_bytes(entry["metadata"])),
                    model_config_pb2.ModelConfig.FromString(_bytes(entry["config"])),
                )
                for entry in json.loads(self._path.read_text())
            }
        except (OSError, ValueError, KeyError, TypeError, DecodeError):
            return {}

    def store(self, described: dict[ModelKey, Described]) -> None:
        entries = [
            {
                "name": name,
                "version": version,
                "metadata": _text(metadata.SerializeToString()),
                "config": _text(config.SerializeToString()),
            }
            for (name, version), (metadata, config) in described.items()
        ]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(entries))
        temporary.replace(self._path)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()
