"""How many schedulers of this host use a device.

Each has a file of its own for every device that it uses, and holds a lock on it: one without an
owner, left by a process that was killed, counts for nobody and is removed by the next that looks.
Schedulers that do not share the directory (containers, other hosts) do not see each other; the
configuration tells them (`device_memory.schedulers`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Set
from pathlib import Path
from urllib.parse import quote

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Anyone may add a file, and take away only their own.
_MODE = 0o1777
COUNT_PERIOD_S = 1.0
# Files of others cost room on the device; no more of them are believed, nor looked at.
SCHEDULERS_MAX = 16
FILES_MAX = 256


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
        _make(self._directory)
        while True:
            path = self._directory / f"{quote(device, safe='')}.{secrets.token_hex(8)}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.fchmod(fd, 0o644)  # whatever the umask: other users look at its lock
                # Between the two calls another one may have taken it for abandoned.
                if _locked(fd) and os.fstat(fd).st_nlink > 0:
                    return path, fd
            except OSError:  # a file system without locks
                os.close(fd)
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
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
        looked_at = 0
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                device = quoted.get(entry.name.rpartition(".")[0])
                if device is None or entry.name in mine or found[device] >= SCHEDULERS_MAX:
                    continue
                looked_at += 1
                if looked_at > FILES_MAX:
                    break
                found[device] += _is_alive(self._directory / entry.name)
        return found

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            text = f"other schedulers of this host are not seen, nor do they see this one: {error}"
            hint = "say how many use a device with device_memory.schedulers"
            log(logger, logging.WARNING, f"{text}; {hint}")


def _make(directory: Path) -> None:
    """Raises OSError where another user could put something else in its place."""
    made = True
    try:
        os.makedirs(directory.parent, exist_ok=True)
        directory.mkdir()
    except FileExistsError:
        made = False
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if made:
            os.fchmod(fd, _MODE)
        owner = os.fstat(fd)
        if owner.st_uid not in {0, os.geteuid()} and not owner.st_mode & stat.S_ISVTX:
            raise PermissionError(errno.EPERM, "it belongs to another user", str(directory))
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    """Whether this process has the file to itself now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(path: Path) -> bool:
    """Whether its owner lives. Takes it away if not, as far as it may."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return True  # another user's; whether it lives cannot be seen
    except OSError:
        return False
    try:
        if not _locked(fd):
            return True
        path.unlink()
    except OSError:
        pass
    finally:
        os.close(fd)
    return False
