"""What message streams hold in memory, and who is held up when nobody takes."""

from __future__ import annotations

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    H2Client,
    connect,
    frame_message,
    opened,
    released,
    streaming,
)

pytestmark = pytest.mark.native

MIB = 1 << 20


def test_every_message_is_charged_until_it_is_released() -> None:
    budget = http2.ByteBudget()
    pair = connect(streaming(budget))
    opened(pair, bytes(1000), b"", bytes(70_000))
    messages = [event for event in pair.take_server() if event.kind == "message"]
    assert [len(event.message) for event in messages] == [1000, 0, 70_000]
    for event in messages:
        # Empty ones too: a client must not fill the memory with them.
        assert event.bytes > len(event.message) + 100
    assert budget.used == sum(event.bytes for event in messages)
    for event in messages:
        pair.server.release(event)
    assert budget.used == 0


def test_no_memory_ends_the_stream() -> None:
    budget = http2.ByteBudget(10_000)
    pair = connect(streaming(budget))
    stream = opened(pair, bytes(8000))
    pair.client.send(stream, bytes(8000))
    pair.pump()
    start, message, lost = pair.take_server()
    assert (start.kind, message.kind, lost.kind) == ("stream_opened", "message", "cancelled")
    (end,) = pair.take_client()
    assert (end.code, end.retry_pushback_ms) == (RESOURCE_EXHAUSTED, 100)
    assert budget.used == message.bytes
    pair.server.release(message)
    assert budget.used == 0


def test_empty_messages_cannot_fill_the_memory() -> None:
    budget = http2.ByteBudget(100_000)
    session = streaming(budget)
    client = H2Client(session)
    stream = client.open(STREAM_INFER)
    client.send(stream, frame_message(b"") * 2000)
    session.feed(client.h2.data_to_send())
    assert budget.used == 0
    client.receive(session.pull())
    assert client.answers[stream].grpc_status == RESOURCE_EXHAUSTED
    assert (session.events(), budget.used) == ([], 0)


def test_a_stream_nobody_takes_from_holds_up_itself_only() -> None:
    pair = connect(streaming(stream_window_bytes=1 << 16))
    slow = pair.client.open_stream(STREAM_INFER)
    for _ in range(40):
        pair.client.send(slow, bytes(10_000))
    for _ in range(20):  # nothing is taken
        pair.server.feed(pair.client.pull())
        pair.client.feed(pair.server.pull())
    assert pair.client.unsent_bytes(slow) >= 40 * 10_005 - (1 << 16)
    other = pair.client.open_stream(STREAM_INFER)
    pair.client.send(other, b"through")
    pair.server.feed(pair.client.pull())
    events = pair.server.events()
    assert ("message", other, b"through") in [(e.kind, e.stream, e.message) for e in events]
    received = sum(event.stream == slow for event in events if event.kind == "message")
    while pair.step():
        received += len(released(pair, pair.take_server()))
    assert (received, pair.client.unsent_bytes(slow)) == (40, 0)


def test_one_message_larger_than_all_windows_gets_through_and_only_one() -> None:
    session = streaming(stream_window_bytes=1 << 16, connection_window_bytes=1 << 18)
    pair = connect(session)
    stream = pair.client.open_stream(STREAM_INFER)
    for _ in range(2):
        pair.client.send(stream, bytes(MIB))
    for _ in range(100):  # nothing is taken
        pair.server.feed(pair.client.pull())
        pair.client.feed(pair.server.pull())
    left = pair.client.unsent_bytes(stream)
    assert MIB - (1 << 18) <= left <= MIB + 10
    pair.pump()
    assert len(released(pair, pair.take_server())) >= 1
    pair.pump()
    assert pair.client.unsent_bytes(stream) == 0


def test_held_messages_close_the_connection_window_until_they_are_released() -> None:
    pair = connect(streaming(connection_window_bytes=1 << 18))
    stream = pair.client.open_stream(STREAM_INFER)
    for _ in range(40):
        pair.client.send(stream, bytes(10_000))
    pair.pump()
    held = pair.take_server()
    assert sum(event.bytes for event in held) <= (1 << 18) + 40 * 300
    assert pair.client.unsent_bytes(stream) > 0
    received = len(released(pair, held))
    while pair.step():
        received += len(released(pair, pair.take_server()))
    assert received == 40


def test_a_held_stream_gets_no_window_however_much_is_taken() -> None:
    pair = connect(streaming(stream_window_bytes=1 << 16))
    slow, other = opened(pair, b"x"), opened(pair, b"x")
    released(pair, pair.take_server())
    pair.server.hold(slow, True)
    for _ in range(40):
        pair.client.send(slow, bytes(10_000))
    received = 0
    while pair.step():
        received += len(released(pair, pair.take_server()))
    assert received <= (1 << 16) // 10_005
    for _ in range(40):
        pair.client.send(other, bytes(10_000))
    received_of_other = 0
    while pair.step():
        received_of_other += len(released(pair, pair.take_server()))
    assert received_of_other == 40
    pair.server.hold(slow, False)
    while pair.step():
        received += len(released(pair, pair.take_server()))
    assert (received, pair.client.unsent_bytes(slow)) == (40, 0)


def test_a_client_stream_is_held_up_until_its_messages_are_consumed() -> None:
    client = http2.ClientSession(stream_window_bytes=1 << 16)
    pair = connect(streaming(), client)
    slow, other = opened(pair, b"x"), opened(pair, b"x")
    released(pair, pair.take_server())
    for _ in range(40):
        pair.server.send(slow, bytes(10_000))
    pair.server.send(other, b"through")
    pair.pump()
    events = pair.take_client()
    assert [event.message for event in events if event.stream == other] == [b"through"]
    waiting = [event for event in events if event.stream == slow]
    assert len(waiting) == (1 << 16) // 10_005
    assert pair.server.unsent_bytes(slow) >= 40 * 10_005 - (1 << 16)
    received = 0
    while waiting:
        for event in waiting:
            pair.client.consumed(slow, event.bytes)
        received += len(waiting)
        pair.pump()
        waiting = pair.take_client()
    assert (received, pair.server.unsent_bytes(slow)) == (40, 0)


def test_a_message_larger_than_the_window_of_the_client_gets_through() -> None:
    client = http2.ClientSession(stream_window_bytes=1 << 16)
    pair = connect(streaming(), client)
    stream = opened(pair, b"x")
    for _ in range(2):
        pair.server.send(stream, bytes(MIB))
    pair.pump()
    (first,) = pair.take_client()
    assert first.message == bytes(MIB)
    assert pair.server.unsent_bytes(stream) >= MIB - (1 << 16)
    pair.client.consumed(stream, first.bytes)
    pair.pump()
    (second,) = pair.take_client()
    assert second.message == bytes(MIB)


def test_unsent_answers_count_until_they_are_pulled() -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    released(pair, pair.take_server())
    pair.server.send(stream, bytes(1000))
    pair.server.send(stream, bytes(2000))
    assert pair.server.unsent_bytes(stream) == 3010
    pair.pump()
    assert pair.server.unsent_bytes(stream) == 0
    assert pair.server.unsent_bytes(999) == 0


def test_long_streams_take_turns() -> None:
    """A stream with much to send does not hold up another that opened later."""
    client = http2.ClientSession(stream_window_bytes=64 * MIB, connection_window_bytes=64 * MIB)
    pair = connect(streaming(), client)
    first, second = opened(pair, b"x"), opened(pair, b"x")
    for _ in range(20):
        pair.server.send(first, bytes(MIB))
    pair.server.send(second, b"quick")
    seen = b""
    while frame_message(b"quick") not in seen:
        seen = pair.server.pull(4 * MIB)
        assert seen
    assert pair.server.unsent_bytes(first) >= 10 * MIB


def test_what_a_client_stream_received_is_counted_until_it_is_taken() -> None:
    budget = http2.ByteBudget()
    pair = connect(streaming(), http2.ClientSession(budget=budget))
    stream = opened(pair, b"")
    pair.take_server()
    for size in (0, 1000, 70_000):
        pair.server.send(stream, bytes(size))
    answer = pair.server.pull()
    pair.client.feed(answer[:40_000])
    assert 39_000 < budget.unsent < 40_000
    pair.client.feed(answer[40_000:])
    assert budget.unsent == 71_000 + 3 * 5
    assert [len(event.message) for event in pair.client.events()] == [0, 1000, 70_000]
    assert budget.unsent == 0


@pytest.mark.parametrize("end", ["cancel", "lost", "deleted"])
def test_what_came_of_a_message_is_not_counted_when_its_stream_has_ended(end: str) -> None:
    budget = http2.ByteBudget()
    pair = connect(streaming(), http2.ClientSession(budget=budget))
    stream = opened(pair, b"")
    pair.server.send(stream, bytes(1000))
    pair.server.send(stream, bytes(70_000))
    pair.client.feed(pair.server.pull()[:40_000])
    assert budget.unsent > 30_000
    if end == "cancel":
        pair.client.cancel(stream)
        pair.client.pull()
    elif end == "lost":
        pair.client.connection_lost()
    else:
        pair = connect()
    pair.client.events()
    assert budget.unsent == 0
