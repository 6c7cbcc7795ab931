"""Large messages are read where they belong: what receive_space() offers, and when."""

from __future__ import annotations

import random

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import INFER, ROUTES, Pair, connect, frame_message, http2_frame

pytestmark = pytest.mark.native

FRAME_HEADER_BYTES = 9
PREFIX_BYTES = 5
READ_BYTES_MAX = 256 << 10
DIRECT_BYTES_MIN = 32 << 10
DATA, END_STREAM, PADDED = 0, 1, 8


def pull_all(session: http2.ClientSession | http2.ServerSession) -> bytes:
    """What the session writes until it is silent."""
    pulled = bytearray()
    while data := session.pull():
        pulled += data
    return bytes(pulled)


def feed_in_place(
    session: http2.ClientSession | http2.ServerSession, data: bytes, elsewhere: int
) -> int:
    """Feeds all of `data`, at most `elsewhere` bytes at a time where no space is offered.

    Returns how many bytes were written into messages.
    """
    in_place = 0
    while data:
        space = session.receive_space()
        size = min(len(space) or elsewhere, len(data))
        if len(space):
            in_place += size
            space[:size] = data[:size]
            assert session.feed(space[:size])
        else:
            assert session.feed(data[:size])
        data = data[size:]
    return in_place


def opened() -> tuple[Pair, int]:
    """A connected pair and a stream whose HEADERS have come and whose message has not."""
    pair = connect()
    stream = pair.client.call(INFER, b"x" * (1 << 20))
    wire = pull_all(pair.client)
    pair.server.feed(wire[: FRAME_HEADER_BYTES + int.from_bytes(wire[:3], "big")])
    return pair, stream


@pytest.mark.parametrize("size", [40_000, 602_155, 3_000_000])
def test_most_of_a_large_message_is_never_copied(size: int, rng: random.Random) -> None:
    pair = connect()
    message, answer = rng.randbytes(size), rng.randbytes(size)
    pair.client.call(INFER, message)
    in_place, requests = 0, []
    while wire := pull_all(pair.client):
        in_place += feed_in_place(pair.server, wire, 1024)
        pair.client.feed(pull_all(pair.server) or b"")
        requests += pair.server.events()
    (request,) = requests
    assert request.message == message
    # All but what came with the headers of frames, and remainders too small to be worth it.
    frames = size // (1 << 20) + 2
    assert in_place >= size - frames * (DIRECT_BYTES_MIN + 1024)

    pair.server.answer(request.stream, answer)
    in_place, replies = 0, []
    while wire := pull_all(pair.server):
        in_place += feed_in_place(pair.client, wire, 1024)
        pair.server.feed(pull_all(pair.client) or b"")
        replies += pair.client.events()
    (reply,) = replies
    assert reply.message == answer
    assert in_place >= size - frames * (DIRECT_BYTES_MIN + 1024)


def test_space_is_offered_within_one_message_of_one_frame_only() -> None:
    pair, stream = opened()
    server, size = pair.server, 300_000
    assert len(server.receive_space()) == 0  # a frame header comes next
    framed = frame_message(b"m" * size)
    data = http2_frame(DATA, END_STREAM, stream, framed)
    server.feed(data[: FRAME_HEADER_BYTES + PREFIX_BYTES - 1])
    assert len(server.receive_space()) == 0  # the prefix is not complete
    server.feed(data[FRAME_HEADER_BYTES + PREFIX_BYTES - 1 : FRAME_HEADER_BYTES + PREFIX_BYTES])
    assert len(server.receive_space()) == READ_BYTES_MAX
    server.feed(b"m" * (size - DIRECT_BYTES_MIN))
    assert len(server.receive_space()) == DIRECT_BYTES_MIN
    server.feed(b"m")
    assert len(server.receive_space()) == 0  # not worth a read of its own
    server.feed(b"m" * (DIRECT_BYTES_MIN - 1))
    assert len(server.receive_space()) == 0
    (request,) = server.events()
    assert request.message == b"m" * size


def test_padding_is_never_read_into_a_message() -> None:
    pair, stream = opened()
    framed, padding = frame_message(b"m" * 200_000), bytes([255])
    data = http2_frame(DATA, END_STREAM | PADDED, stream, padding + framed + bytes(255))
    assert feed_in_place(pair.server, data, 1024) == 0
    (request,) = pair.server.events()
    assert request.message == b"m" * 200_000


@pytest.mark.parametrize("how", ["refused", "reset"])
def test_a_stream_that_was_given_up_offers_none(how: str) -> None:
    pair, stream = opened()
    data = http2_frame(DATA, END_STREAM, stream, frame_message(b"m" * 200_000))
    pair.server.feed(data[:1000])
    assert len(pair.server.receive_space()) > 0
    if how == "refused":
        pair.server.refuse(stream, 8, "no")
    else:
        pair.server.reset(stream, 8)
    assert len(pair.server.receive_space()) == 0
    assert pair.server.feed(data[1000:])
    assert pair.server.events() == []


def test_a_claimed_length_takes_no_memory_that_is_not_there() -> None:
    """The space follows the frame, however much the prefix claims."""
    budget = http2.ByteBudget(1 << 30)
    server = http2.ServerSession(ROUTES, budget=budget, message_bytes_max=1 << 30)
    pair = connect(server)
    stream = pair.client.call(INFER, b"x" * (1 << 20))
    wire = pull_all(pair.client)
    server.feed(wire[: FRAME_HEADER_BYTES + int.from_bytes(wire[:3], "big")])
    claim = b"\0" + (1 << 30).to_bytes(4, "big")
    server.feed(http2_frame(DATA, 0, stream, claim + bytes(100_000))[: FRAME_HEADER_BYTES + 5])
    assert len(server.receive_space()) == 100_000
    assert budget.used == PREFIX_BYTES
