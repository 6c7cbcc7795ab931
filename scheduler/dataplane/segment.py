"""The segment of shared memory for large tensors: a file of /dev/shm that is this process's own.

Its name is random and new in each process: what a backend still does with the memory of a data
plane that has died cannot touch that of its successor. The owner holds a lock on the file, so that
one without an owner, left by a process that was killed, is known and removed by the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/dev/shm")
PREFIX = "infersched-payload-"


@dataclass(frozen=True)
class Segment:
    """`key` is its name as shm_open takes it; `fd` stays open as long as the process lives."""

    key: str
    fd: int
    size: int

    def remove(self) -> None:
        """Takes the name away. The memory goes with the last process that has it mapped."""
        with contextlib.suppress(FileNotFoundError):
            path_of(self.key).unlink()


def path_of(key: str) -> Path:
    return DIRECTORY / key.lstrip("/")


def free_bytes() -> int:
    """Room for new pages in the directory."""
    system = os.statvfs(DIRECTORY)
    return system.f_bavail * system.f_frsize


def create_segment(size: int) -> Segment:
    """A new segment, none of whose bytes has a page yet. Raises OSError.

    It has `size` bytes or half of what is free, if that is less: others live of /dev/shm, too, such
    as the stubs of Triton's python backend.
    """
    size = min(size, free_bytes() // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    if size == 0:
        raise OSError(errno.ENOSPC, "no room", str(DIRECTORY))
    while True:
        name = PREFIX + secrets.token_hex(16)
        path = DIRECTORY / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Between the two calls another one may have taken it for abandoned.
            if lock(fd) and os.fstat(fd).st_nlink > 0:
                os.ftruncate(fd, size)
                return Segment(f"/{name}", fd, size)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        os.close(fd)


def remove_abandoned() -> list[str]:
    """Removes the segments whose owners are gone, as far as they are ours. Returns their names."""
    removed = []
    for path in DIRECTORY.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if lock(fd):
                    path.unlink()
                    removed.append(path.name)
            finally:
                os.close(fd)
    return removed


def lock(fd: int) -> bool:
    """Whether this process has the file to itself now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
