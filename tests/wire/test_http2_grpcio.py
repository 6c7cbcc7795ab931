"""The sessions over real sockets: a grpcio client on our server, our client on a grpcio server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from scheduler._native import http2

pytestmark = pytest.mark.native

ECHO, SLOW, MISSING, WATCH = "/test.Echo/Echo", "/test.Echo/Slow", "/test.Echo/No", "/test.Echo/All"
ROUTES = ((ECHO, "unary", ""), (SLOW, "unary", ""), (MISSING, "unimplemented", "no such thing"))
BOUND_S = 20.0


class Pump(asyncio.Protocol):
    """Drives one session from a transport; `handle` sees its events."""

    def __init__(self, session: Any, handle: Callable[[Any, http2.Event], None]) -> None:
        self.session = session
        self.handle = handle
        self.transport: asyncio.Transport | None = None
        self.paused = False

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


def echo(session: http2.ServerSession, event: http2.Event) -> None:
    if event.kind == "request" and event.route == 0:
        session.answer(event.stream, event.message, [("x-seen", "yes")])
        session.release(event.bytes)


# -- a grpcio client on our server -------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000, 12_000_000])
def test_grpcio_gets_its_answer(size: int) -> None:
    async def test() -> None:
        async with serving(echo) as (channel, _):
            message = bytes(i & 255 for i in range(251)) * (size // 251) + bytes(size % 251)
            call = channel.unary_unary(ECHO)(message, timeout=BOUND_S)
            assert await call == message
            assert ("x-seen", "yes") in list(await call.trailing_metadata())

    run(test)


def test_many_concurrent_calls_over_one_connection() -> None:
    async def test() -> None:
        async with serving(echo, streams_max=100) as (channel, pumps):
            stub = channel.unary_unary(ECHO)
            answers = await asyncio.gather(*(stub(b"%d" % i) for i in range(1000)))
            assert answers == [b"%d" % i for i in range(1000)]
            assert len(pumps) == 1

    run(test)


def test_grpcio_reads_our_errors() -> None:
    details = http2.error_details(8, "füll".encode(), reason=b"QUEUE_FULL", retry_ns=5_000_000)

    def refuse(session: http2.ServerSession, event: http2.Event) -> None:
        if event.kind == "request":
            session.refuse(event.stream, 8, "füll 100 %", details, 5)
            session.release(event.bytes)

    async def test() -> None:
        async with serving(refuse) as (channel, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(ECHO)(b"x")
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "füll 100 %"
            trailers = dict(caught.value.trailing_metadata() or ())
            assert trailers["grpc-status-details-bin"] == details
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(MISSING)(b"x")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == "no such thing"

    run(test)


def test_compression_is_refused_with_a_clear_text() -> None:
    async def test() -> None:
        async with serving(echo) as (channel, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(ECHO)(bytes(5000), compression=grpc.Compression.Gzip)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert "gzip" in (caught.value.details() or "")
            assert await channel.unary_unary(ECHO)(b"next") == b"next"

    run(test)


def test_an_oversize_message_is_refused_and_the_connection_lives_on() -> None:
    async def test() -> None:
        async with serving(echo, message_bytes_max=1000) as (channel, pumps):
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(ECHO)(bytes(2_000_000))
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await channel.unary_unary(ECHO)(bytes(1000)) == bytes(1000)
            assert len(pumps) == 1

    run(test)


def test_deadlines_and_cancels_of_grpcio_reach_us() -> None:
    events: list[http2.Event] = []

    def keep(session: http2.ServerSession, event: http2.Event) -> None:
        events.append(event)
        if event.kind == "request":
            session.release(event.bytes)
        echo(session, event) if event.route == 0 and event.message == b"e" else None

    async def test() -> None:
        async with serving(keep) as (channel, pumps):
            before = time.monotonic_ns()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(SLOW)(b"x", timeout=0.2)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: len(events) == 2)
            assert [event.kind for event in events] == ["request", "cancelled"]
            deadline = events[0].deadline
            assert deadline is not None
            assert before + 100_000_000 < deadline <= time.monotonic_ns() + 200_000_000

            calls = [channel.unary_unary(SLOW)(b"x") for _ in range(50)]
            await until(lambda: len(events) == 52)
            for call in calls:
                call.cancel()
            await until(lambda: len(events) == 102)
            assert [event.kind for event in events[52:]] == ["cancelled"] * 50
            assert len(pumps) == 1
            assert await channel.unary_unary(ECHO)(b"e") == b"e"

    run(test)


def test_a_drain_lets_calls_finish_and_moves_new_ones() -> None:
    held: list[tuple[http2.ServerSession, http2.Event]] = []

    def hold(session: http2.ServerSession, event: http2.Event) -> None:
        if event.kind == "request" and event.route == 1:
            held.append((session, event))
        else:
            echo(session, event)

    async def test() -> None:
        async with serving(hold) as (channel, pumps):
            call = channel.unary_unary(SLOW)(b"x")
            task = asyncio.ensure_future(call)
            await until(lambda: len(held) == 1)
            pumps[0].session.begin_drain()
            pumps[0].turn()
            assert await channel.unary_unary(ECHO)(b"elsewhere") == b"elsewhere"
            assert len(pumps) == 2
            session, event = held[0]
            session.answer(event.stream, b"done")
            pumps[0].turn()
            assert await task == b"done"
            await until(lambda: pumps[0].transport is None)

    run(test)


def test_a_forwarded_stream_relays_to_a_real_server() -> None:
    """grpcio client, our server, our client, grpcio server."""

    async def test() -> None:
        async with backend() as port:
            relays: dict[Any, dict[int, int]] = {}
            upstream: list[Pump] = []

            def to_back(session: http2.ServerSession, event: http2.Event) -> None:
                back, ids = upstream[0], relays.setdefault(session, {})
                if event.kind == "forward_headers":
                    ids[event.stream] = back.session.forward_open(event.headers, event.end_stream)
                elif event.kind == "forward_data":
                    back.session.forward_data(ids[event.stream], event.message)
                    session.forward_consumed(event.stream, len(event.message))
                elif event.kind == "forward_end":
                    back.session.forward_data(ids[event.stream], b"", True)
                elif event.kind == "forward_reset":
                    back.session.reset(ids[event.stream], 8)
                back.turn()

            def to_front(session: http2.ClientSession, event: http2.Event) -> None:
                for pump in fronts:
                    for front_id, back_id in relays.get(pump.session, {}).items():
                        if back_id == event.stream:
                            answer(pump, front_id, session, event)

            def answer(
                pump: Pump, stream: int, back: http2.ClientSession, event: http2.Event
            ) -> None:
                if event.kind == "forward_headers":
                    pump.session.forward_headers(stream, event.headers)
                elif event.kind == "forward_data":
                    pump.session.forward_data(stream, event.message)
                    back.forward_consumed(event.stream, len(event.message))
                elif event.kind == "forward_trailers":
                    pump.session.forward_trailers(stream, event.headers)
                elif event.kind == "forward_reset":
                    pump.session.reset(stream, 8)
                asyncio.get_running_loop().call_soon(pump.turn)

            loop = asyncio.get_running_loop()
            client = http2.ClientSession(authority="control")
            _, pump = await loop.create_connection(
                lambda: Pump(client, to_front), "127.0.0.1", port
            )
            upstream.append(pump)
            async with serving(to_back) as (channel, fronts):
                big = bytes(3_000_000)
                assert await channel.unary_unary("/back.Back/Double")(b"ab") == b"abab"
                assert await channel.unary_unary("/back.Back/Double")(big) == big + big
                stream = channel.unary_stream("/back.Back/Count")(b"5")
                assert [part async for part in stream] == [b"0", b"1", b"2", b"3", b"4"]
                both = channel.stream_stream("/back.Back/Each")()
                for text in (b"x", b"y"):
                    await both.write(text)
                    assert await both.read() == text + text
                await both.done_writing()
                assert await both.read() == grpc.aio.EOF
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/back.Back/Fail")(b"why")
                assert caught.value.code() == grpc.StatusCode.ABORTED
                assert caught.value.details() == "why"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/back.Back/Unknown")(b"x")
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
                endless = channel.unary_stream("/back.Back/Count")(b"1000000000")
                assert await endless.read() == b"0"
                endless.cancel()
                await until(lambda: client.open_streams == 0)
            pump.transport and pump.transport.close()

    run(test)


# -- our client on a grpcio server -------------------------------------------------------------


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
        async for request in requests:
            yield request + request


@asynccontextmanager
async def backend() -> AsyncIterator[int]:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(ThreadPoolExecutor(1), handlers=(Back(),), options=limits)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class Caller:
    """Our client session on a socket, with a future a call."""

    def __init__(self, pump: Pump, replies: dict[int, asyncio.Future[http2.Event]]) -> None:
        self.pump = pump
        self.session: http2.ClientSession = pump.session
        self.replies = replies

    async def call(self, name: str, message: bytes, **options: Any) -> http2.Event:
        stream = self.session.call(f"/back.Back/{name}", message, **options)
        assert stream > 0
        future = self.replies[stream] = asyncio.get_running_loop().create_future()
        self.pump.turn()
        return await future


@asynccontextmanager
async def calling() -> AsyncIterator[Caller]:
    async with backend() as port:
        replies: dict[int, asyncio.Future[http2.Event]] = {}

        def handle(session: http2.ClientSession, event: http2.Event) -> None:
            if event.kind == "reply":
                replies[event.stream].set_result(event)

        session = http2.ClientSession(authority="back")
        _, pump = await asyncio.get_running_loop().create_connection(
            lambda: Pump(session, handle), "127.0.0.1", port
        )
        await until(session.ready)
        yield Caller(pump, replies)
        if pump.transport is not None:
            pump.transport.close()


@pytest.mark.parametrize("size", [0, 1, 16_384, 5_000_000])
def test_a_grpcio_server_answers_us(size: int) -> None:
    async def test() -> None:
        async with calling() as caller:
            message = bytes(i & 255 for i in range(251)) * (size // 251) + bytes(size % 251)
            reply = await caller.call("Double", message)
            assert (reply.code, reply.message) == (0, message + message)

    run(test)


def test_a_grpcio_server_sees_timeout_and_metadata() -> None:
    async def test() -> None:
        async with calling() as caller:
            metadata = b"x-a\x001\x00x-b\x002\x00"
            reply = await caller.call("Meta", b"", timeout_ns=5_000_000_000, metadata=metadata)
            assert reply.message == repr((True, [("x-a", "1"), ("x-b", "2")])).encode()

    run(test)


def test_errors_of_a_grpcio_server_are_read() -> None:
    async def test() -> None:
        async with calling() as caller:
            reply = await caller.call("Fail", "früh 100 %".encode())
            assert reply.code == grpc.StatusCode.ABORTED.value[0]
            assert reply.text == "früh 100 %"
            assert reply.details == b"\x01\x02\xff"
            reply = await caller.call("Unknown", b"")
            assert reply.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
            reply = await caller.call("Slow", b"", timeout_ns=100_000_000)
            assert reply.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]

    run(test)


def test_many_of_our_calls_share_a_connection() -> None:
    async def test() -> None:
        async with calling() as caller:
            replies = await asyncio.gather(*(caller.call("Double", b"%d" % i) for i in range(500)))
            assert [reply.message for reply in replies] == [b"%d" % i * 2 for i in range(500)]

    run(test)
