"""A real grpcio client on our server session."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
import pytest

from scheduler._native import http2
from tests.wire.session_pump import BOUND_S, ECHO, MISSING, SLOW, run, serving, until

pytestmark = pytest.mark.native


def echo(session: http2.ServerSession, event: http2.Event) -> None:
    if event.kind == "request" and event.route == 0:
        session.answer(event.stream, event.message, [("x-seen", "yes")])
        session.release(event)


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
            session.release(event)

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
            session.release(event)
        echo(session, event) if event.route == 0 and event.message == b"e" else None

    async def test() -> None:
        async with serving(keep) as (channel, pumps):
            before = time.monotonic_ns()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(SLOW)(b"x", timeout=1.0)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: len(events) == 2)
            assert [event.kind for event in events] == ["request", "cancelled"]
            deadline = events[0].deadline
            assert deadline is not None
            assert before + 900_000_000 < deadline <= time.monotonic_ns() + 1_000_000_000

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
            # Calls go on without an error; once grpcio has read the GOAWAY, elsewhere.
            while len(pumps) < 2:
                assert await channel.unary_unary(ECHO)(b"on") == b"on"
            session, event = held[0]
            session.answer(event.stream, b"done")
            pumps[0].turn()
            assert await task == b"done"
            await until(lambda: pumps[0].transport is None)

    run(test)
