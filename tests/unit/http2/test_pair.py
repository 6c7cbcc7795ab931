"""Our two sessions with each other: every size, every number, all a refusal says."""

from __future__ import annotations

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import INFER, ROUTES, connect

pytestmark = pytest.mark.native


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_536, 5_000_000])
def test_our_peers_understand_each_other(size: int) -> None:
    pair = connect(http2.ServerSession(ROUTES))
    message = bytes(i * 7 & 255 for i in range(251)) * (size // 251 + 1)
    message = message[:size]
    stream = pair.client.call(INFER, message, 1_000_000_000)
    pair.pump()
    (request,) = pair.take_server()
    assert request.message == message
    assert request.deadline == 1_000_000_000
    pair.server.answer(stream, message)
    pair.server.release(request)
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.code, reply.message) == (0, message)


def test_a_refusal_crosses_with_all_it_says() -> None:
    pair = connect()
    stream = pair.client.call(INFER, b"x")
    pair.pump()
    pair.server.refuse(stream, 8, "voll: 100 %\x00ü", bytes(range(256)), 77)
    pair.pump()
    (reply,) = pair.take_client()
    assert (reply.code, reply.text, reply.retry_pushback_ms) == (8, "voll: 100 %\x00ü", 77)
    assert reply.details == bytes(range(256))


def test_streams_in_any_number_and_order() -> None:
    pair = connect()
    streams = [pair.client.call(INFER, b"%d" % i) for i in range(500)]
    pair.pump()
    requests = pair.take_server()
    assert [event.stream for event in requests] == streams
    for event in reversed(requests):
        pair.server.answer(event.stream, event.message[::-1])
        pair.server.release(event)
    pair.pump()
    replies = {event.stream: event.message for event in pair.take_client()}
    assert replies == {s: (b"%d" % i)[::-1] for i, s in enumerate(streams)}
    assert pair.client.open_streams == 0
    assert pair.server.open_streams == 0
