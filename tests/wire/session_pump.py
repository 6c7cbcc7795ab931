"""What the socket tests of the sessions share: a pump, a server of ours, a grpcio backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from scheduler._native import http2

ECHO, SLOW, MISSING, WATCH = "/test.Echo/Echo", "/test.Echo/Slow", "/test.Echo/No", "/test.Echo/All"
EACH = "/test.Echo/Each"
ROUTES = (
    (ECHO, "unary", ""),
    (SLOW, "unary", ""),
    (MISSING, "unimplemented", "no such thing"),
    (EACH, "message_stream", ""),
)
BOUND_S = 60.0


class Pump(asyncio.Protocol):
    """Drives one session from a transport; `handle` sees its events."""

    def __init__(self, session: Any, handle: Callable[[Any, http2.Event], None]) -> None:
        self.session = session
        self.handle = handle
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.sent_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.turn()

    def data_received(self, data: bytes) -> None:
        self.session.feed(data, time.monotonic_ns())
        self.turn()

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.connection_lost()
        self.transport = None
        self.turn()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.turn()

    def turn(self) -> None:
        for event in self.session.events():
            self.handle(self.session, event)
        while self.transport is not None and not self.paused:
            data = self.session.pull(1 << 18)
            if not data:
                break
            self.transport.write(data)
            self.sent_bytes += len(data)
        if self.transport is not None and self.session.finished():
            self.transport.close()


@asynccontextmanager
async def serving(
    handle: Callable[[http2.ServerSession, http2.Event], None], **options: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, list[Pump]]]:
    """A server of ours on an ephemeral port and a grpcio channel to it."""
    pumps: list[Pump] = []

    def accept() -> Pump:
        pumps.append(Pump(http2.ServerSession(ROUTES, **options), handle))
        return pumps[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=limits) as channel:
            yield channel, pumps
    finally:
        server.close()
        await server.wait_closed()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), BOUND_S)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Yields to the loop until `condition`; `run` bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


class Back(grpc.GenericRpcHandler):
    """Methods by name on raw bytes."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rsplit("/", 1)[1]
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers = {
            "Double": unary(self.double),
            "Meta": unary(self.meta),
            "Fail": unary(self.fail),
            "Slow": unary(self.slow),
            "Count": stream(self.count),
            "Each": grpc.stream_stream_rpc_method_handler(self.each),
        }
        return handlers.get(name)

    async def double(self, request: bytes, context: Any) -> bytes:
        return request + request

    async def meta(self, request: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        pairs = sorted((k, v) for k, v in context.invocation_metadata() if k.startswith("x-"))
        return repr((left is not None and 0 < left <= 5, pairs)).encode()

    async def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x01\x02\xff"),))
        await context.abort(grpc.StatusCode.ABORTED, request.decode())
        raise AssertionError

    async def slow(self, request: bytes, context: Any) -> bytes:
        await asyncio.sleep(BOUND_S)
        return b""

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for i in range(int(request)):
            yield b"%d" % i

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("x-before", "1"), ("x-before-bin", b"\x01\xff")))
        context.set_trailing_metadata((("x-after", "2"),))
        async for request in requests:
            yield request + request


@asynccontextmanager
async def backend(compression: grpc.Compression | None = None) -> AsyncIterator[int]:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(
        ThreadPoolExecutor(1), handlers=(Back(),), options=limits, compression=compression
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
