"""Message streams between our two sessions: any number of messages each way, one end."""

from __future__ import annotations

import random

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    CANCELLED,
    INTERNAL,
    OK,
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    UNAVAILABLE,
    H2Client,
    connect,
    frame_message,
    frames_of,
    http2_frame,
    kinds,
    opened,
    released,
    streaming,
)

pytestmark = pytest.mark.native

CANCEL = 8
DATA, HEADERS, RST = 0, 1, 3


def test_messages_go_both_ways_before_the_client_has_half_closed() -> None:
    pair = connect(streaming())
    stream = pair.client.open_stream(STREAM_INFER, 5_000_000_000, b"x-a\x001\x00")
    for i in range(3):
        pair.client.send(stream, b"ask %d" % i)
        pair.pump()
        events = pair.take_server()
        assert kinds(events) == (["stream_opened"] if i == 0 else []) + ["message"]
        if i == 0:
            assert (events[0].stream, events[0].route, events[0].deadline) == (
                stream,
                1,
                5_000_000_000,
            )
        assert released(pair, events) == [b"ask %d" % i]
        pair.server.send(stream, b"reply %d" % i)
        pair.pump()
        (reply,) = pair.take_client()
        assert (reply.kind, reply.stream, reply.message) == ("message", stream, b"reply %d" % i)
        pair.client.consumed(stream, reply.bytes)
    pair.client.half_close(stream)
    pair.pump()
    assert kinds(pair.take_server()) == ["half_closed"]
    pair.server.send(stream, b"last")
    pair.server.finish(stream)
    pair.pump()
    last, end = pair.take_client()
    assert (last.kind, last.message) == ("message", b"last")
    assert (end.kind, end.code, end.message, end.nothing_ran) == ("reply", OK, b"", False)
    assert pair.client.open_streams == pair.server.open_streams == 0


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 300_000, 3_000_000])
def test_messages_of_any_size_in_any_number(size: int) -> None:
    pair = connect(streaming(stream_window_bytes=1 << 16))
    messages = [random.Random(i).randbytes(size) for i in range(5)]
    stream = pair.client.open_stream(STREAM_INFER)
    for message in messages:
        pair.client.send(stream, message)
        pair.server.send(stream, message)
    pair.client.half_close(stream)
    received: list[bytes] = []
    while pair.step():
        for event in pair.take_server():
            if event.kind == "message":
                received.append(event.message)
                pair.server.send(stream, event.message)
                pair.server.release(event)
            if event.kind == "half_closed":
                pair.server.finish(stream)
    assert received == messages
    events = pair.take_client()
    assert [event.message for event in events[:-1]] == messages
    assert (events[-1].kind, events[-1].code) == ("reply", OK)


@pytest.mark.parametrize("seed", range(8))
def test_short_and_long_messages_arrive_whole_however_many_wait(seed: int) -> None:
    drawn = random.Random(seed)
    # Windows of a few messages: bodies stop anywhere, and are added to while they wait.
    pair = connect(streaming(stream_window_bytes=1 << 16))
    stream = pair.client.open_stream(STREAM_INFER)
    sizes = (0, 1, 120, 394, 399, 400, 401, 990, 1_000, 1_001, 20_000)
    messages = [drawn.randbytes(drawn.choice(sizes)) for _ in range(600)]
    received: list[bytes] = []
    for message in messages:
        pair.client.send(stream, message)
        if drawn.random() < 0.1:
            pair.step()
        if drawn.random() < 0.05:
            received += released(pair, pair.take_server())
    pair.pump()
    while events := pair.take_server():
        received += released(pair, events)
        pair.pump()
    assert received == messages


def test_a_stream_without_messages_ends_with_its_status() -> None:
    pair = connect(streaming())
    stream = opened(pair, half_close=True)
    assert kinds(pair.take_server()) == ["stream_opened", "half_closed"]
    pair.server.finish(stream)
    pair.pump()
    (end,) = pair.take_client()
    assert (end.kind, end.code) == ("reply", OK)


@pytest.mark.parametrize("sent", [0, 2])
def test_an_error_ends_a_stream_before_and_after_its_messages(sent: int) -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    released(pair, pair.take_server())
    for _ in range(sent):
        pair.server.send(stream, b"part")
    pair.server.refuse(stream, RESOURCE_EXHAUSTED, "no more: 100 %", b"\1", 5)
    pair.pump()
    events = pair.take_client()
    assert kinds(events) == ["message"] * sent + ["reply"]
    end = events[-1]
    assert (end.code, end.text) == (RESOURCE_EXHAUSTED, "no more: 100 %")
    assert (end.details, end.retry_pushback_ms) == (b"\1", 5)
    assert pair.take_server() == []
    assert pair.server.open_streams == 0


def test_a_refusal_of_a_silent_stream_is_one_block_and_a_reset() -> None:
    session = streaming()
    client = H2Client(session)
    stream = client.open(STREAM_INFER)
    client.exchange()
    session.refuse(stream, INTERNAL, "no")
    down = session.pull()
    client.receive(down)
    blocks = [frame for frame in frames_of(down) if frame[2] == stream]
    assert [frame[0] for frame in blocks] == [HEADERS, RST]
    assert blocks[0][1] & 1  # END_STREAM
    assert blocks[1][3] == bytes(4)  # NO_ERROR
    assert client.answers[stream].grpc_status == INTERNAL


def test_trailers_after_messages_reset_a_client_that_goes_on() -> None:
    session = streaming()
    client = H2Client(session)
    stream = client.open(STREAM_INFER)
    client.exchange()
    session.send(stream, b"m")
    session.finish(stream)
    down = session.pull()
    client.receive(down)
    blocks = [frame for frame in frames_of(down) if frame[2] == stream]
    assert [frame[0] for frame in blocks] == [HEADERS, DATA, HEADERS, RST]
    answer = client.answers[stream]
    assert (answer.data, answer.grpc_status, answer.reset) == (frame_message(b"m"), OK, 0)
    # What it sends until it has read that is dropped.
    assert session.feed(http2_frame(DATA, 0, stream, frame_message(b"x")))
    assert (session.events(), session.open_streams) == ([], 0)


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (frame_message(b"abc")[:-1], INTERNAL, "truncated"),
        (b"\0\0", INTERNAL, "truncated"),
        (frame_message(b"abc", 2), INTERNAL, "Bad GRPC frame type"),
        (frame_message(b"abc", 1), INTERNAL, "without a grpc-encoding"),
        (frame_message(bytes(1001)), RESOURCE_EXHAUSTED, "1001 vs. 1000"),
    ],
)
@pytest.mark.parametrize("after", [0, 2])
def test_bad_framing_ends_the_stream_and_the_owner_is_told(
    data: bytes, code: int, text: str, after: int
) -> None:
    budget = http2.ByteBudget()
    session = streaming(budget, message_bytes_max=1000)
    client = H2Client(session)
    stream = client.open(STREAM_INFER)
    client.send(stream, frame_message(b"fine") * after)
    events = client.exchange()
    assert kinds(events) == ["stream_opened"] + ["message"] * after
    for event in events[1:]:
        session.send(stream, b"answer")
        session.release(event)
    client.send(stream, data, end_stream=True)
    assert kinds(client.exchange()) == ["cancelled"]
    answer = client.answers[stream]
    status = answer.trailers if after else answer.headers
    assert answer.data == frame_message(b"answer") * after
    assert (answer.ended, int(status["grpc-status"])) == (True, code)
    assert text in status["grpc-message"].replace("%20", " ")
    assert (budget.used, session.open_streams) == (0, 0)


def test_a_message_at_the_bound_passes() -> None:
    pair = connect(streaming(message_bytes_max=1000))
    opened(pair, bytes(1000))
    assert released(pair, pair.take_server()) == [bytes(1000)]


def test_a_stream_refused_before_it_was_taken_is_never_told() -> None:
    session = streaming()
    client = H2Client(session)
    stream = client.open(STREAM_INFER)
    client.send(stream, frame_message(b"fine") + frame_message(b"bad", 7))
    assert client.exchange() == []
    assert client.answers[stream].grpc_status == INTERNAL


def test_what_was_not_taken_of_a_cancelled_stream_is_given_back() -> None:
    budget = http2.ByteBudget()
    pair = connect(streaming(budget))
    stream = opened(pair, b"taken")
    (start, message) = pair.take_server()
    for _ in range(3):
        pair.client.send(stream, bytes(100))
    pair.server.feed(pair.client.pull())
    assert budget.used > message.bytes + 300
    pair.client.cancel(stream)
    pair.server.feed(pair.client.pull())
    assert kinds(pair.server.events()) == ["cancelled"]
    assert budget.used == message.bytes
    pair.server.release(message)
    assert (budget.used, start.kind) == (0, "stream_opened")


def test_a_lost_connection_cancels_open_streams_once() -> None:
    budget = http2.ByteBudget()
    pair = connect(streaming(budget))
    first, second, third = (opened(pair, b"x") for _ in range(3))
    released(pair, pair.take_server())
    pair.server.finish(second)
    pair.server.connection_lost()
    assert [(e.kind, e.stream) for e in pair.server.events()] == [
        ("cancelled", third),
        ("cancelled", first),
    ]
    pair.server.send(first, b"late")
    pair.server.finish(first)
    assert pair.server.unsent_bytes(first) == 0
    assert budget.used == 0
    pair.client.connection_lost()
    ends = pair.client.events()
    assert sorted((e.kind, e.stream, e.code) for e in ends) == [
        ("reply", stream, UNAVAILABLE) for stream in (first, second, third)
    ]


def test_messages_taken_after_the_connection_was_lost_come_before_the_end() -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    pair.server.send(stream, b"one")
    pair.server.send(stream, b"two")
    pair.client.feed(pair.server.pull())
    pair.client.connection_lost()
    events = pair.client.events()
    assert [(e.kind, e.message, e.code) for e in events] == [
        ("message", b"one", OK),
        ("message", b"two", OK),
        ("reply", b"", UNAVAILABLE),
    ]


def test_a_cancelled_stream_tells_its_client_nothing_more() -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    pair.server.send(stream, b"one")
    pair.client.feed(pair.server.pull())
    pair.client.cancel(stream)
    assert pair.client.events() == []
    pair.client.send(stream, b"late")
    pair.client.half_close(stream)
    pair.pump()
    assert kinds(pair.take_server()) == ["stream_opened", "message", "cancelled"]
    assert pair.client.open_streams == 0


def test_a_server_reset_ends_the_client_stream() -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    pair.server.reset(stream, CANCEL)
    pair.pump()
    (end,) = pair.take_client()
    assert (end.kind, end.code) == ("reply", CANCELLED)


def test_a_stream_cut_inside_a_message_is_an_error() -> None:
    pair = connect(http2.ServerSession())
    stream = pair.client.open_stream(STREAM_INFER)
    pair.pump()
    pair.server.forward_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    pair.server.forward_data(stream, frame_message(b"whole") + frame_message(b"cut")[:-1])
    pair.server.forward_trailers(stream, [("grpc-status", "0")])
    pair.pump()
    whole, end = pair.take_client()
    assert (whole.kind, whole.message) == ("message", b"whole")
    assert (end.kind, end.code) == ("reply", INTERNAL)


def test_trailers_only_from_a_backend_end_the_stream() -> None:
    pair = connect(http2.ServerSession())
    stream = pair.client.open_stream(STREAM_INFER)
    pair.pump()
    pair.server.forward_headers(
        stream, [("content-type", "application/grpc"), ("grpc-status", "8")], end_stream=True
    )
    pair.pump()
    (end,) = pair.take_client()
    assert (end.kind, end.code) == ("reply", RESOURCE_EXHAUSTED)
    assert pair.client.open_streams == 0


def test_watched_headers_are_told_and_not_forwarded() -> None:
    session = streaming(watched_headers=["x-key", "x-both"], forward_metadata=["x-both"])
    client = H2Client(session)
    extra = [("x-key", "k"), ("x-both", "b"), ("x-other", "o")]
    client.open(STREAM_INFER, extra)
    client.request(b"m", extra)
    start, request = client.exchange()
    for event in (start, request):
        assert event.headers == (("x-key", "k"), ("x-both", "b"))
        assert event.metadata == b"x-both\0b\0"
    assert (start.kind, request.kind) == ("stream_opened", "request")


def test_streams_in_any_number_and_order() -> None:
    pair = connect(streaming())
    streams = [pair.client.open_stream(STREAM_INFER) for _ in range(200)]
    for turn in range(3):
        for stream in streams:
            pair.client.send(stream, b"%d.%d" % (stream, turn))
    pair.pump()
    messages = [event for event in pair.take_server() if event.kind == "message"]
    for event in reversed(messages):
        pair.server.send(event.stream, event.message[::-1])
        pair.server.release(event)
    for stream in streams:
        pair.server.finish(stream, trailers=[("x-end", str(stream))])
    pair.pump()
    replies: dict[int, list[bytes]] = {}
    for event in pair.take_client():
        if event.kind == "message":
            replies.setdefault(event.stream, []).append(event.message)
    assert replies == {s: [(b"%d.%d" % (s, t))[::-1] for t in (2, 1, 0)] for s in streams}
    assert pair.client.open_streams == pair.server.open_streams == 0
