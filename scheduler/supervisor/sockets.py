"""The listening sockets, held by the supervisor so that clients never see a refused connection
while a child is started again."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from pathlib import Path

from scheduler.config.address import Address

LISTEN_BACKLOG = 4096


class ListenError(Exception):
    """An address cannot be listened on; the text names the address and the fix."""


def listen_tcp(addresses: Iterable[Address], flag: str = "--listen") -> list[socket.socket]:
    """Listening sockets, one a resolved address; an empty host is every interface."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets += _listen_at(address, flag)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def _listen_at(address: Address, flag: str) -> list[socket.socket]:
    if not address.host:
        return [_dual_stack(address, flag)]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}; see {flag}") from error
    opened: list[socket.socket] = []
    port = address.port
    for family, kind, protocol, _, where in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        opened.append(listener)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            _bind(listener, (where[0], port, *where[2:]), address, flag)
        except BaseException:
            for one in opened:
                one.close()
            raise
        # A name with several addresses and port 0 gets one port for all of them.
        port = listener.getsockname()[1]
    return opened


def _dual_stack(address: Address, flag: str) -> socket.socket:
    if socket.has_dualstack_ipv6():
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        where: tuple[object, ...] = ("::", address.port)
    else:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        where = ("0.0.0.0", address.port)
    try:
        _bind(listener, where, address, flag)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, where: tuple[object, ...], address: Address, flag: str) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind(where)
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.EADDRINUSE:
            reason = "the port is taken (Triton's own default is 8001); stop the other or choose"
            reason += f" another with {flag} HOST:PORT"
        raise ListenError(f"cannot listen on {address}: {reason}") from error


def reserve_tcp(address: Address, flag: str) -> socket.socket:
    """Holds a port for a grpcio server, which cannot be handed a socket but shares the port.

    The first bind, without SO_REUSEPORT, notices an address that is taken.
    """
    probe = listen_tcp([address], flag)[0]
    host, port = probe.getsockname()[:2]
    family = probe.family
    probe.close()
    holder = socket.socket(family, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        dual = socket.has_dualstack_ipv6() and not address.host
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
    holder.bind((host, port))
    return holder


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket; its directory decides who may connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(16)
    listener.setblocking(False)
    return listener


def bound_address(listener: socket.socket) -> Address:
    """The address with the real port."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)
