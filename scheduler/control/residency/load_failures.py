"""What could not be loaded, why, and when it is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

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
    """The last one of each model at each backend; each pause is twice as long as the one before.

    The model as a whole has failed when there is no backend that is still to be tried.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Failure] = {}
        self._by_site: dict[tuple[str, str], Failure] = {}  # by name and backend, the latest last

    def active(self, name: str) -> Failure | None:
        """Why the model is not tried now."""
        return _active(self.by_name.get(name))

    def at(self, name: str, backend: str) -> Failure | None:
        """Why the model is not tried there now."""
        return _active(self._by_site.get((name, backend)))

    def add(
        self, name: str, backend: str, error: str, need_bytes: int = 0, free_bytes: int = 0
    ) -> None:
        """A try there has failed."""
        before = self._by_site.pop((name, backend), None)
        pause_s = min(before.pause_s * 2, BACKOFF_MAX_S) if before is not None else BACKOFF_MIN_S
        until_s = time.monotonic() + pause_s
        failure = Failure(error, until_s, pause_s, need_bytes, free_bytes)
        self._by_site[name, backend] = failure
        if before is None or before.error != error:
            log(logger, logging.WARNING, f"model {name} cannot be loaded: {error}",
                backend=backend)  # fmt: skip

    def conclude(self, name: str, backends: Collection[str]) -> None:
        """None of these, which are all that could load it, is to be tried now."""
        found = [f for (n, b), f in self._by_site.items() if n == name and b in backends]
        if found:
            until_s = min(failure.until_s for failure in found)
            until_s = max(until_s, time.monotonic() + BACKOFF_MIN_S)  # or nobody would be told
            self.by_name[name] = replace(found[-1], until_s=until_s)

    def loaded(self, name: str, backend: str) -> None:
        self.by_name.pop(name, None)
        self._by_site.pop((name, backend), None)

    def clear(self) -> None:
        self.by_name.clear()
        self._by_site.clear()

    def forgive(self, now_s: float) -> bool:
        """Whether what had failed may be tried again from now on."""
        ended = [f for f in self._all() if 0 < f.until_s <= now_s]
        for failure in ended:
            failure.until_s = 0.0
        return bool(ended)

    def next_end_s(self) -> float:
        """When the next pause ends; inf: there is none."""
        return min((f.until_s for f in self._all() if f.until_s), default=float("inf"))

    def _all(self) -> list[Failure]:
        return [*self.by_name.values(), *self._by_site.values()]


def _active(failure: Failure | None) -> Failure | None:
    return failure if failure is not None and failure.until_s > time.monotonic() else None
