"""What could not be loaded, why, and when it is tried again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

BACKOFF_MIN_S, BACKOFF_MAX_S = 1.0, 60.0


@dataclass
class Failure:
    """Why a model cannot be loaded; it is not tried again before `until_s`, 0: it may be."""

    error: str
    until_s: float
    pause_s: float
    need_bytes: int = 0
    free_bytes: int = 0


class LoadFailures:
    """The last one of each model, by name; each pause is twice as long as the one before."""

    def __init__(self) -> None:
        self.by_name: dict[str, Failure] = {}

    def active(self, name: str) -> Failure | None:
        """Why the model is not tried now."""
        found = self.by_name.get(name)
        return found if found is not None and found.until_s > time.monotonic() else None

    def add(self, name: str, error: str, need_bytes: int = 0, free_bytes: int = 0) -> None:
        before = self.by_name.get(name)
        pause_s = min(before.pause_s * 2, BACKOFF_MAX_S) if before is not None else BACKOFF_MIN_S
        until_s = time.monotonic() + pause_s
        self.by_name[name] = Failure(error, until_s, pause_s, need_bytes, free_bytes)
        if before is None or before.error != error:
            log(logger, logging.WARNING, f"model {name} cannot be loaded: {error}")

    def forgive(self, now_s: float) -> bool:
        """Whether what had failed may be tried again from now on."""
        ended = [f for f in self.by_name.values() if 0 < f.until_s <= now_s]
        for failure in ended:
            failure.until_s = 0.0
        return bool(ended)

    def next_end_s(self) -> float:
        """When the next pause ends; inf: there is none."""
        return min((f.until_s for f in self.by_name.values() if f.until_s), default=float("inf"))
