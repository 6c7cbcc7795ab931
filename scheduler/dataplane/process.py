"""Puts the data plane together: listeners, gateway, timer, dialer, steering; one loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from dataclasses import dataclass

from scheduler._native.gateway import Gateway
from scheduler._native.timerfd import TimerFd
from scheduler.dataplane.dialer import Dialer
from scheduler.dataplane.steering import Steering

log = logging.getLogger("infersched.dataplane")

LISTEN_BACKLOG = 4096


@dataclass(frozen=True)
class Inherited:
    """What the supervisor hands over."""

    listen_fds: tuple[int, ...]
    steering_fd: int
    counters_fd: int
    cold_socket: str


async def run(inherited: Inherited) -> None:
    """Serves until SIGTERM. The supervisor drains before it sends one."""
    loop = asyncio.get_running_loop()
    timer = TimerFd()
    dialer: Dialer | None = None

    def on_applied() -> None:
        if dialer is not None:
            dialer.refresh()

    steering = Steering(on_applied)
    gateway = Gateway(loop, timer, inherited.counters_fd, steering.on_notice)
    steering.attach(gateway)
    dialer = Dialer(gateway, inherited.cold_socket)
    loop.add_reader(timer.fileno(), gateway.wake)

    # The loop holds no reference to its servers: one that is dropped stops accepting.
    servers: list[asyncio.AbstractServer] = []
    for fd in inherited.listen_fds:
        listener = socket.socket(fileno=fd)
        servers.append(
            await loop.create_server(gateway.client_protocol, sock=listener, backlog=LISTEN_BACKLOG)
        )
    steering_listener = socket.socket(fileno=inherited.steering_fd)
    servers.append(await loop.create_unix_server(steering.protocol, sock=steering_listener))

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # What exists now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    log.info("data plane ready")
    await stopped.wait()
    for server in servers:
        server.close()
    dialer.close()
