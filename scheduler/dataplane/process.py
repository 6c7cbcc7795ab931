"""Puts the data plane together: listeners, gateway, timer, dialer, steering; one loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from dataclasses import dataclass
from typing import Any

from scheduler._native.gateway import Gateway
from scheduler._native.timerfd import TimerFd
from scheduler.dataplane.dialer import Dialer, tls_of
from scheduler.dataplane.steering import Steering
from scheduler.security.tls import ServerTls, reloading_server_context
from scheduler.v1 import dataplane_pb2 as pb

log = logging.getLogger("infersched.dataplane")

LISTEN_BACKLOG = 4096
# For clients to take the last answers out of our buffers before the process ends.
FINISH_TIMEOUT_S = 2.0
# A data plane that (re)starts lets clients wait in the listen backlog until it can serve them, this
# long at the most: what is wrong by then is told to them.
ACCEPT_WITHIN_S = 1.0
# A peer that connects and does not finish its handshake holds a descriptor this long.
TLS_HANDSHAKE_TIMEOUT_S = 10.0
_POLL_S = 0.005


@dataclass(frozen=True)
class Inherited:
    """What the supervisor hands over."""

    listen_fds: tuple[int, ...]
    steering_fd: int
    counters_fd: int
    cold_socket: str
    tls: ServerTls | None = None


async def able_to_serve(gateway: Gateway, dialer: Dialer, stopped: asyncio.Event) -> None:
    """Returns once the first Apply has come, and the backends it wants in rotation and the control
    plane's cold servicers are connected."""
    while not stopped.is_set() and (
        gateway.generation == 0
        or not dialer.cold_connected
        or any(
            wanted > 0 and state == pb.BACKEND_STATE_DOWN
            for _, _, _, wanted, _, _, state in gateway.backends()
        )
    ):
        await asyncio.sleep(_POLL_S)


async def run(inherited: Inherited) -> None:
    """Serves until SIGTERM. The supervisor drains before it sends one."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    timer = TimerFd()
    dialer: Dialer | None = None

    def on_applied(state: pb.Apply) -> None:
        if dialer is not None:
            dialer.refresh({backend.index: tls_of(backend) for backend in state.backends})

    steering = Steering(on_applied)
    gateway = Gateway(loop, timer, inherited.counters_fd, steering.on_notice)
    steering.attach(gateway)
    dialer = Dialer(gateway, inherited.cold_socket)
    loop.add_reader(timer.fileno(), gateway.wake)

    # The loop holds no reference to its servers: one that is dropped stops accepting.
    servers: list[asyncio.AbstractServer] = []
    steering_listener = socket.socket(fileno=inherited.steering_fd)
    servers.append(await loop.create_unix_server(steering.protocol, sock=steering_listener))
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(able_to_serve(gateway, dialer, stopped), ACCEPT_WITHIN_S)
    options: dict[str, Any] = {"backlog": LISTEN_BACKLOG}
    if inherited.tls is not None:
        options["ssl"] = reloading_server_context(inherited.tls)
        options["ssl_handshake_timeout"] = TLS_HANDSHAKE_TIMEOUT_S
    for fd in inherited.listen_fds:
        listener = socket.socket(fileno=fd)
        servers.append(await loop.create_server(gateway.client_protocol, sock=listener, **options))

    # What exists now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    log.info("data plane ready")
    await stopped.wait()
    for server in servers:
        server.close()
    dialer.close()
    await finish_writing(gateway)
    steering.close()


async def finish_writing(gateway: Gateway) -> None:
    """Closes the client connections when what was written for them has left, within a bound."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + FINISH_TIMEOUT_S
    gateway.close_clients()
    while gateway.client_connections > 0 and loop.time() < deadline_s:
        await asyncio.sleep(0.01)
