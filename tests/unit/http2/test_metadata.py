"""Custom metadata around an answer: before its first message and after its last, both ways."""

from __future__ import annotations

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    INFER,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    H2Client,
    Pair,
    connect,
    frame_message,
    kinds,
    opened,
    streaming,
)

pytestmark = pytest.mark.native

BEFORE = (("x-before", "1"), ("x-both", "a"), ("x-bin", "AQL/"))
AFTER = (("x-after", "2"), ("x-both", "b"), ("x-both", "c"))
GRPC = ("content-type", "application/grpc")


def called(pair: Pair) -> int:
    stream = pair.client.call(INFER, b"x")
    pair.pump()
    for event in pair.take_server():
        pair.server.release(event)
    return stream


def test_an_answer_has_metadata_before_and_after_its_message() -> None:
    pair = connect(streaming())
    pair.server.answer(called(pair), b"reply", AFTER, BEFORE)
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.code, reply.message) == (0, b"reply")
    assert (reply.answer_headers, reply.answer_trailers) == (BEFORE, AFTER)


def test_an_answer_without_metadata_has_none() -> None:
    pair = connect(streaming())
    pair.server.answer(called(pair), b"reply")
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.answer_headers, reply.answer_trailers) == ((), ())


def test_a_refusal_has_its_metadata_behind_the_status() -> None:
    session = streaming()
    client = H2Client(session)
    stream = client.request(b"x")
    client.exchange()
    session.refuse(stream, RESOURCE_EXHAUSTED, "full", trailers=AFTER[:1], headers=BEFORE[:1])
    client.exchange()
    answer = client.answers[stream]
    assert (answer.grpc_status, answer.trailers) == (RESOURCE_EXHAUSTED, {})
    assert (answer.headers["x-before"], answer.headers["x-after"]) == ("1", "2")


def test_an_error_reply_tells_its_metadata() -> None:
    pair = connect(streaming())
    pair.server.refuse(called(pair), INTERNAL, "bad", trailers=AFTER)
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.code, reply.text, reply.answer_trailers) == (INTERNAL, "bad", AFTER)


@pytest.mark.parametrize("messages", [1, 3])
def test_a_stream_has_metadata_before_its_first_message_and_at_its_end(messages: int) -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    for _ in range(messages):
        pair.server.send(stream, b"part", BEFORE)
    pair.server.finish(stream, trailers=AFTER)
    pair.pump()
    events = pair.take_client()
    assert kinds(events) == ["message"] * messages + ["reply"]
    assert [event.answer_headers for event in events] == [BEFORE] + [()] * messages
    assert events[-1].answer_trailers == AFTER


@pytest.mark.parametrize("code", [0, INTERNAL])
def test_a_stream_without_messages_has_both_at_its_end(code: int) -> None:
    pair = connect(streaming())
    stream = opened(pair, b"x")
    pair.server.finish(stream, code, "text", trailers=AFTER, headers=BEFORE)
    pair.pump()
    (end,) = pair.take_client()
    assert (end.code, end.answer_headers, end.answer_trailers) == (code, BEFORE, AFTER)


def test_headers_of_the_transport_are_not_metadata() -> None:
    pair = connect(http2.ServerSession())
    stream = called(pair)
    pair.take_server()
    own = [
        GRPC,
        ("grpc-encoding", "identity"),
        ("grpc-accept-encoding", "identity"),
        ("server", "x"),
        ("date", "y"),
        ("trailer", "grpc-status"),
        ("user-agent", "z"),
    ]
    pair.server.forward_headers(stream, [*own, ("x-own", "1")])
    pair.server.forward_data(stream, frame_message(b"m"))
    pair.server.forward_trailers(
        stream,
        [
            ("grpc-status", "8"),
            ("grpc-message", "m"),
            ("grpc-status-details-bin", "AQ"),
            ("grpc-retry-pushback-ms", "7"),
            ("x-end", "2"),
        ],
    )
    pair.pump()
    (reply,) = [event for event in pair.take_client() if event.kind == "reply"]
    assert reply.answer_headers == (("x-own", "1"),)
    assert reply.answer_trailers == (("x-end", "2"),)
    assert (reply.code, reply.details, reply.retry_pushback_ms) == (8, b"\x01", 7)


def test_metadata_of_trailers_only_are_trailers() -> None:
    pair = connect(http2.ServerSession())
    stream = called(pair)
    pair.server.forward_headers(
        stream, [GRPC, ("grpc-status", "5"), ("x-only", "1")], end_stream=True
    )
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.code, reply.answer_headers) == (5, ())
    assert reply.answer_trailers == (("x-only", "1"),)


@pytest.mark.parametrize(("size", "good"), [(60_000, True), (70_000, False)])
def test_metadata_of_a_reply_are_bounded(size: int, good: bool) -> None:
    pair = connect(http2.ServerSession())
    stream = called(pair)
    pair.take_server()
    pair.server.forward_headers(stream, [GRPC, ("x-large", "v" * size)])
    pair.server.forward_data(stream, frame_message(b"m"))
    pair.server.forward_trailers(stream, [("grpc-status", "0")])
    pair.pump()
    (reply,) = [event for event in pair.take_client() if event.kind == "reply"]
    assert (reply.code == 0) == good
    assert sum(len(value) for _, value in reply.answer_headers) == (size if good else 0)


def test_metadata_of_one_reply_are_not_seen_in_the_next() -> None:
    pair = connect(streaming())
    for headers in (BEFORE, ()):
        pair.server.answer(called(pair), b"reply", (), headers)
        pair.pump()
        (reply,) = pair.take_client()
        assert reply.answer_headers == headers
        stream = opened(pair, b"x")
        pair.server.finish(stream, trailers=headers)
        pair.pump()
        (end,) = pair.take_client()
        assert end.answer_trailers == headers
        pair.take_server()


def test_a_stream_path_is_not_answered_as_unary() -> None:
    pair = connect(streaming())
    stream = pair.client.open_stream(STREAM_INFER)
    pair.pump()
    pair.server.answer(stream, b"ignored")
    pair.server.finish(stream)
    pair.pump()
    assert kinds(pair.take_client()) == ["reply"]
