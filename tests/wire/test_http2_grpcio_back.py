"""Our client session, and streams forwarded by it, on a real grpcio server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from scheduler._native import http2
from tests.wire.session_pump import Pump, backend, run, serving, until

pytestmark = pytest.mark.native


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
            if pump.transport is not None:
                pump.transport.close()

    run(test)


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
        reply: http2.Event = await future
        return reply


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
