"""How long this process was kept waiting for a processor (Linux's schedstat)."""

from __future__ import annotations

import contextlib
from pathlib import Path

_TASKS = Path("/proc/self/task")


class CpuWait:
    """Counts from its construction on; zero for ever where the kernel keeps no such figures."""

    def __init__(self) -> None:
        self._before_ns = _waited_ns()

    def longest_s(self) -> float:
        """Of the thread that waited longest, in seconds."""
        now_ns = _waited_ns()
        return max((now_ns[t] - self._before_ns.get(t, 0) for t in now_ns), default=0) / 1e9


def _waited_ns() -> dict[str, int]:
    """By thread: time runnable and not running, since it began."""
    waited: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            # A thread may end meanwhile.
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited[task.name] = int((task / "schedstat").read_text().split()[1])
    return waited
