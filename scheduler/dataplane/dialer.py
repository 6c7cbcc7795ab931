"""Keeps the wanted connections open: to the backends and the control plane's cold servicers."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from scheduler._native.gateway import Gateway
from scheduler.security.tls import ClientTls, LastGood, TlsError
from scheduler.v1 import dataplane_pb2 as pb

log = logging.getLogger("infersched.dataplane")

# Connection attempts: at once, then doubling pauses. A backend is found back within a second.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5
CONNECT_TIMEOUT_S = 2.0
# Processes that start or end together miss each other for a moment; that is no news.
QUIET_S = 3.0

Protocol = Any
# Backend index, address, how it is trusted (None: plain).
LineKey = tuple[int, str, ClientTls | None]
Connect = Callable[[Callable[[], Protocol]], Awaitable[Any]]


def tls_of(backend: pb.Backend) -> ClientTls | None:
    """How an Apply wants a backend's connections encrypted; None: not."""
    if not backend.HasField("tls"):
        return None
    tls = backend.tls
    return ClientTls(
        ca=_path(tls.ca_file),
        certificate=_path(tls.certificate_file),
        key=_path(tls.key_file),
        server_name=tls.server_name,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


class Line:
    """One wanted connection: dialled, and dialled again when lost, until closed."""

    def __init__(
        self,
        name: str,
        connect: Connect,
        make_protocol: Callable[[Callable[[], None]], Protocol],
    ) -> None:
        self._name = name
        self._connect = connect
        self._make_protocol = make_protocol
        self._protocol: Protocol | None = None
        self._closed = False
        self._task = asyncio.get_running_loop().create_task(self._keep_open())

    @property
    def connected(self) -> bool:
        return self._protocol is not None

    def close(self) -> None:
        """Stops dialling. An open connection is closed when its calls are done."""
        self._closed = True
        self._task.cancel()
        if self._protocol is not None:
            self._protocol.retire()

    async def _keep_open(self) -> None:
        pause_s = FIRST_PAUSE_S
        said = False
        failing_since_s = time.monotonic()
        while True:
            lost = asyncio.Event()
            try:
                attempt = self._connect(lambda lost=lost: self._make_protocol(lost.set))  # type: ignore[misc]
                _, self._protocol = await asyncio.wait_for(attempt, CONNECT_TIMEOUT_S)
            except (OSError, asyncio.TimeoutError, ValueError, TlsError) as error:
                if not said and time.monotonic() - failing_since_s > QUIET_S:
                    log.warning("%s cannot be reached, trying on: %s", self._name, error)
                    said = True
            else:
                # A cancel that comes as the attempt succeeds is swallowed by wait_for.
                if self._closed:
                    self._protocol.retire()
                    return
                said = False
                connected_s = time.monotonic()
                await lost.wait()
                self._protocol = None
                # One that accepts and closes at once is not dialled ever faster.
                failing_since_s = time.monotonic()
                if failing_since_s - connected_s > LONGEST_PAUSE_S:
                    pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


class Dialer:
    """Matches open lines with what the gateway wants."""

    def __init__(self, gateway: Gateway, cold_socket: str) -> None:
        self._gateway = gateway
        self._lines: dict[LineKey, list[Line]] = {}
        # Outlives the lines: a backend that is down has none.
        self._trust: dict[LineKey, LastGood[ssl.SSLContext]] = {}
        loop = asyncio.get_running_loop()
        self._cold = Line(
            "the control plane",
            lambda make: loop.create_unix_connection(make, cold_socket),
            gateway.cold_protocol,
        )

    @property
    def cold_connected(self) -> bool:
        return self._cold.connected

    def refresh(self, tls: Mapping[int, ClientTls | None]) -> None:
        """Opens and closes lines after an Apply; `tls` by backend index."""
        wanted = {
            (index, address, tls.get(index)): connections
            for index, address, _, connections, _, _, _ in self._gateway.backends()
        }
        for key in [key for key in self._lines if key not in wanted]:
            self._trust.pop(key, None)
            for line in self._lines.pop(key):
                line.close()
        for key, connections in wanted.items():
            lines = self._lines.setdefault(key, [])
            while len(lines) > connections:
                lines.pop().close()
            while len(lines) < connections:
                lines.append(self._dial_backend(*key))

    def _dial_backend(self, index: int, address: str, tls: ClientTls | None) -> Line:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        loop = asyncio.get_running_loop()

        async def connect(make: Callable[[], Protocol]) -> Any:
            if tls is None:
                return await loop.create_connection(make, host, int(port))
            # The files as they are now: a certificate that was renewed is used from here on.
            trust = self._trust.setdefault(
                (index, address, tls), LastGood(tls.files, tls.context, f"backend {address}")
            )
            name = tls.server_name or host
            return await loop.create_connection(
                make, host, int(port), ssl=trust.get(), server_hostname=name
            )

        return Line(
            f"backend {address}",
            connect,
            lambda on_lost: self._gateway.backend_protocol(index, address, on_lost),
        )

    def close(self) -> None:
        self._cold.close()
        for lines in self._lines.values():
            for line in lines:
                line.close()
