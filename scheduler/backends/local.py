"""Which backends run on this host, and which of its processes are theirs.

Shared memory is reached from here only, and drivers tell what each process takes of a device.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Between two looks at a process that was of no server.
LOOK_AGAIN_S = 5.0
FORGET_S = 600.0
ANCESTORS_MAX = 32
_LISTENING = "0A"
_AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]
# A name server may take its time, and hold up nobody but who asks it.
_name_questions = ThreadPoolExecutor(32, thread_name_prefix="host names")


async def is_local(host: str) -> bool:
    """Whether the name or address is one of this host (loopback included).

    An unknown name is not: its backend cannot be reached either.
    """
    return bool(await told_local(host))


async def told_local(host: str) -> bool | None:
    """The same; None: the name is not known, as far as can be told now."""
    try:
        found = _addresses(host, socket.AI_NUMERICHOST)  # nobody is asked
    except (OSError, UnicodeError):
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(_name_questions, _addresses, host)
        except (OSError, UnicodeError):  # the latter: no name at all, as `a..b`
            return None
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _addresses(host: str, flags: int = 0) -> list[_AddressInfo]:
    return socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM, flags=flags)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    """The kernel gives out a local address only."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


class LocalServers:
    """Which processes belong to the servers that listen on `ports` of this host: those that hold
    a listening socket, and their children. Asked from one thread, told from any."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.ports: frozenset[int] = frozenset()
        self._proc = proc
        self._known: dict[int, _Known] = {}

    def owns(self, pid: int) -> bool:
        """False where that cannot be seen: another namespace, another user's processes."""
        now_s, ports = time.monotonic(), self.ports
        process = self._process(pid)
        if process is None:
            self._known.pop(pid, None)
            return False
        known = self._known.get(pid)
        same = known is not None and known.process == process and known.ports == ports
        # A server opens its ports after its models are there.
        if known is not None and same and (known.owned or now_s - known.at_s < LOOK_AGAIN_S):
            return known.owned
        self._known = {p: k for p, k in self._known.items() if now_s - k.at_s < FORGET_S}
        owned = self._is_of(pid, ports)
        self._known[pid] = _Known(process, ports, owned, now_s)
        return owned

    def _is_of(self, pid: int, ports: frozenset[int]) -> bool:
        sockets = self._listening(ports)
        for _ in range(ANCESTORS_MAX):
            if not sockets or pid <= 1:
                return False
            if self._holds(pid, sockets):
                return True
            process = self._process(pid)
            if process is None:
                return False
            pid = process.parent
        return False

    def _process(self, pid: int) -> _Process | None:
        try:
            fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            return _Process(parent=int(fields[1]), started=int(fields[19]))
        except (OSError, ValueError, IndexError):
            return None

    def _listening(self, ports: frozenset[int]) -> set[str]:
        """The sockets as links of file descriptors name them."""
        found = set()
        for table in ("tcp", "tcp6"):
            try:
                lines = (self._proc / "net" / table).read_text().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) in ports:
                    found.add(f"socket:[{fields[9]}]")
        return found

    def _holds(self, pid: int, sockets: set[str]) -> bool:
        folder = self._proc / str(pid) / "fd"
        try:
            return any(os.readlink(folder / name) in sockets for name in os.listdir(folder))
        except OSError:
            return False


@dataclass(frozen=True)
class _Process:
    parent: int
    started: int  # in ticks since the host's


@dataclass(frozen=True)
class _Known:
    process: _Process
    ports: frozenset[int]
    owned: bool
    at_s: float
