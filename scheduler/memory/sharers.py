"""How many schedulers of this host use a device.

Each has a file of its own for every device that it uses, and holds a lock on it: one without an
owner, left by a process that was killed, counts for nobody and is removed by the next that looks.
Schedulers that do not share the directory (containers, other hosts) do not see each other; the
configuration tells them (`device_memory.schedulers`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Set
from pathlib import Path
from urllib.parse import quote

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Anyone may add a file, and take away only their own.
_MODE = 0o1777
COUNT_PERIOD_S = 1.0
# Files of others cost room on the device; no more of them are believed.
SCHEDULERS_MAX = 16


class Sharers:
    """The schedulers of each device, this one among them."""

    def __init__(self, directory: Path, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock_s = clock_s
        self._held: dict[str, tuple[Path, int]] = {}  # file and descriptor by device
        self._counts: dict[str, int] = {}
        self._counted_at_s = float("-inf")
        self._failed = False

    def use(self, devices: Set[str]) -> None:
        """Tells the others which devices this one uses now."""
        for device in self._held.keys() - devices:
            self._release(device)
        for device in devices - self._held.keys():
            try:
                self._held[device] = self._claim(device)
            except OSError as error:
                self._say(error)
                return

    def count(self, device: str) -> int:
        """How many use it, at least 1; as of the last second."""
        now_s = self._clock_s()
        if now_s - self._counted_at_s >= COUNT_PERIOD_S:
            self._counted_at_s = now_s
            self._counts = self._look()
        return min(max(self._counts.get(device, 1), 1), SCHEDULERS_MAX)

    def close(self) -> None:
        for device in list(self._held):
            self._release(device)

    def _claim(self, device: str) -> tuple[Path, int]:
        if not self._directory.is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(PermissionError):  # another user has just made it
                self._directory.chmod(_MODE)
        while True:
            path = self._directory / f"{quote(device, safe='')}.{secrets.token_hex(8)}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            # Between the two calls another one may have taken it for abandoned.
            if _locked(fd) and os.fstat(fd).st_nlink > 0:
                return path, fd
            os.close(fd)

    def _release(self, device: str) -> None:
        path, fd = self._held.pop(device)
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)

    def _look(self) -> dict[str, int]:
        quoted = {quote(device, safe=""): device for device in self._held}
        mine = {path.name for path, _ in self._held.values()}
        found = dict.fromkeys(self._held, 1)
        try:
            names = os.listdir(self._directory)
        except OSError:
            return found
        for name in names:
            device = quoted.get(name.rpartition(".")[0])
            if device is not None and name not in mine and _is_alive(self._directory / name):
                found[device] += 1
        return found

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            text = f"other schedulers of this host are not seen, nor do they see this one: {error}"
            hint = "say how many use a device with device_memory.schedulers"
            log(logger, logging.WARNING, f"{text}; {hint}")


def _locked(fd: int) -> bool:
    """Whether this process has the file to itself now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(path: Path) -> bool:
    """Whether its owner lives. Takes it away if not, as far as it may."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not _locked(fd):
                return True
            path.unlink()
        finally:
            os.close(fd)
    return False
