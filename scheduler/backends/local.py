"""Which backends run on this host: shared memory is reached from there only."""

from __future__ import annotations

import asyncio
import socket


async def is_local(host: str) -> bool:
    """Whether the name or address is one of this host (loopback included).

    An unknown name is not: its backend cannot be reached either.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter: no name at all, as `a..b`
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    """The kernel gives out a local address only."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True
