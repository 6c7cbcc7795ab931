"""Message streams, compression and metadata between our sessions and real grpcio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from scheduler._native import http2
from tests.wire.session_pump import BOUND_S, EACH, ECHO, Pump, backend, run, serving, until

pytestmark = pytest.mark.native

BEFORE = [("x-before", "1"), ("x-before-bin", "AQL/")]
AFTER = [("x-after", "2")]
COMPRESSIONS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


def text_of(size: int) -> bytes:
    return b"".join(b"%d," % i for i in range(size // 4 + 1))[:size]


def each(session: http2.ServerSession, event: http2.Event) -> None:
    """Every message twice, metadata around them; unary requests once."""
    if event.kind == "request":
        session.answer(event.stream, event.message, AFTER, BEFORE)
    elif event.kind == "message":
        session.send(event.stream, event.message + event.message, BEFORE)
    elif event.kind == "half_closed":
        session.finish(event.stream, trailers=AFTER)
    session.release(event)


# -- a grpcio client on our server ---------------------------------------------------------------


def test_a_grpcio_client_talks_on_a_stream() -> None:
    async def test() -> None:
        async with serving(each) as (channel, _):
            call = channel.stream_stream(EACH)(timeout=BOUND_S)
            for message in (b"", b"x", bytes(2_000_000), b"y"):
                await call.write(message)
                assert await call.read() == message + message
            await call.done_writing()
            assert await call.read() == grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK
            before = dict(await call.initial_metadata())
            assert (before["x-before"], before["x-before-bin"]) == ("1", b"\x01\x02\xff")
            assert dict(await call.trailing_metadata())["x-after"] == "2"

    run(test)


def test_a_grpcio_client_sends_far_ahead() -> None:
    """It writes everything before it reads anything; both sides' windows hold it up."""

    async def test() -> None:
        async with serving(each, stream_window_bytes=1 << 16) as (channel, _):
            messages = [b"%d" % i * 20_000 for i in range(100)]

            async def source() -> AsyncIterator[bytes]:
                for message in messages:
                    yield message

            call = channel.stream_stream(EACH)(source())
            assert [reply async for reply in call] == [m + m for m in messages]

    run(test)


def test_a_grpcio_client_reads_a_metadata_pair_of_a_unary_answer() -> None:
    async def test() -> None:
        async with serving(each) as (channel, _):
            call = channel.unary_unary(ECHO)(b"x")
            assert await call == b"x"
            assert dict(await call.initial_metadata())["x-before-bin"] == b"\x01\x02\xff"
            assert dict(await call.trailing_metadata())["x-after"] == "2"

    run(test)


@pytest.mark.parametrize("sent", [0, 2])
def test_a_grpcio_client_reads_how_a_stream_failed(sent: int) -> None:
    def fail(session: http2.ServerSession, event: http2.Event) -> None:
        if event.kind == "message":
            for _ in range(sent):
                session.send(event.stream, b"part")
            session.refuse(event.stream, 8, "füll", trailers=AFTER)
        session.release(event)

    async def test() -> None:
        async with serving(fail) as (channel, pumps):
            call = channel.stream_stream(EACH)()
            await call.write(b"x")
            assert [await call.read() for _ in range(sent)] == [b"part"] * sent
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "füll"
            assert dict(caught.value.trailing_metadata() or ())["x-after"] == "2"
            await until(lambda: pumps[0].session.open_streams == 0)

    run(test)


def test_cancels_and_deadlines_of_a_grpcio_stream_reach_us() -> None:
    events: list[http2.Event] = []

    def keep(session: http2.ServerSession, event: http2.Event) -> None:
        events.append(event)
        session.release(event)

    async def test() -> None:
        async with serving(keep) as (channel, _):
            call = channel.stream_stream(EACH)()
            await call.write(b"x")
            await until(lambda: len(events) == 2)
            call.cancel()
            await until(lambda: len(events) == 3)
            late = channel.stream_stream(EACH)(timeout=1.0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late.read()
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: len(events) == 5)
            assert [event.kind for event in events] == [
                "stream_opened",
                "message",
                "cancelled",
                "stream_opened",
                "cancelled",
            ]
            assert (events[0].deadline is None, events[3].deadline is None) == (True, False)

    run(test)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("answers", ["identity", "gzip", "deflate"])
def test_grpcio_clients_may_compress_and_be_compressed_for(
    compression: grpc.Compression, answers: str
) -> None:
    async def test() -> None:
        async with serving(each, response_compression=answers) as (channel, pumps):
            message = text_of(1_000_000)
            assert await channel.unary_unary(ECHO)(message, compression=compression) == message
            assert (pumps[0].sent_bytes < len(message) // 2) == (answers != "identity")
            call = channel.stream_stream(EACH)(compression=compression)
            for part in (b"", b"small", message):
                await call.write(part)
                assert await call.read() == part + part
            await call.done_writing()
            assert await call.code() == grpc.StatusCode.OK

    run(test)


def test_a_grpcio_client_is_refused_what_inflates_too_far() -> None:
    async def test() -> None:
        async with serving(each, message_bytes_max=1_000_000) as (channel, _):
            stub, gzip = channel.unary_unary(ECHO), grpc.Compression.Gzip
            assert await stub(bytes(1_000_000), compression=gzip) == bytes(1_000_000)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(bytes(1_000_001), compression=gzip)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await stub(b"next") == b"next"

    run(test)


# -- our client on a grpcio server ---------------------------------------------------------------


@asynccontextmanager
async def calling(
    handle: Callable[[http2.ClientSession, http2.Event], None],
    server: grpc.Compression | None = None,
    **options: Any,
) -> AsyncIterator[Pump]:
    """Our client session, connected to a grpcio server."""
    async with backend(server) as port:
        session = http2.ClientSession(authority="back", **options)
        _, pump = await asyncio.get_running_loop().create_connection(
            lambda: Pump(session, handle), "127.0.0.1", port
        )
        await until(session.ready)
        yield pump
        if pump.transport is not None:
            pump.transport.close()


@pytest.mark.parametrize("compression", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("server", [None, *COMPRESSIONS])
def test_a_grpcio_server_answers_our_stream(
    compression: str, server: grpc.Compression | None
) -> None:
    events: list[http2.Event] = []

    def keep(session: http2.ClientSession, event: http2.Event) -> None:
        events.append(event)
        session.consumed(event.stream, event.bytes)

    async def test() -> None:
        async with calling(keep, server, compression=compression) as pump:
            stream = pump.session.open_stream("/back.Back/Each", 10_000_000_000)
            messages = [b"", b"x", text_of(1_000_000), bytes(3_000_000), b"end"]
            for i, message in enumerate(messages):
                pump.session.send(stream, message)
                pump.turn()
                await until(lambda: len(events) == i + 1)  # noqa: B023
                assert (events[i].kind, events[i].message) == ("message", message + message)
            if compression != "identity":
                assert pump.sent_bytes < 1_000_000
            pump.session.half_close(stream)
            pump.turn()
            await until(lambda: len(events) == len(messages) + 1)
            end = events[-1]
            assert (end.kind, end.code, end.answer_trailers) == ("reply", 0, (("x-after", "2"),))
            before = (("x-before", "1"), ("x-before-bin", "Af8"))
            assert tuple((n, v.rstrip("=")) for n, v in events[0].answer_headers) == before

    run(test)


def test_a_grpcio_server_is_held_up_by_a_stream_nobody_consumes() -> None:
    events: list[http2.Event] = []

    async def test() -> None:
        def keep(session: http2.ClientSession, event: http2.Event) -> None:
            events.append(event)

        async with calling(keep, stream_window_bytes=1 << 16) as pump:
            session = pump.session
            stream = session.open_stream("/back.Back/Each")
            for _ in range(40):
                session.send(stream, bytes(5_000))
            session.half_close(stream)
            other = session.call("/back.Back/Double", b"ab")
            pump.turn()
            await until(lambda: any(event.stream == other for event in events))
            received = 0
            while not any(event.stream == stream and event.kind == "reply" for event in events):
                taken = [event for event in events if event.stream == stream]
                events.clear()
                assert sum(event.bytes for event in taken) <= 1 << 16
                received += len(taken)
                for event in taken:
                    session.consumed(stream, event.bytes)
                pump.turn()
                await asyncio.sleep(0.001)
            received += sum(event.kind == "message" for event in events)
            assert received == 40

    run(test)


def test_a_cancelled_stream_ends_at_a_grpcio_server() -> None:
    events: list[http2.Event] = []

    async def test() -> None:
        def keep(session: http2.ClientSession, event: http2.Event) -> None:
            events.append(event)

        async with calling(keep) as pump:
            stream = pump.session.open_stream("/back.Back/Count")
            pump.session.send(stream, b"1000000000")
            pump.session.half_close(stream)
            pump.turn()
            await until(lambda: len(events) > 10)
            pump.session.cancel(stream)
            pump.turn()
            seen = len(events)
            assert pump.session.call("/back.Back/Double", b"ab") > 0
            pump.turn()
            await until(lambda: len(events) > seen)
            assert [event.message for event in events[seen:]] == [b"abab"]
            await until(lambda: pump.session.open_streams == 0)

    run(test)
