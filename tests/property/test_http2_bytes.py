"""Whatever cuts the bytes, the events are the same; whatever the bytes are, nothing breaks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from scheduler._native import http2
from tests.unit.http2_peers import INFER, LIVE, PREFACE, ROUTES, frame_message, http2_frame

pytestmark = pytest.mark.native

CANCEL = 8
GRPC = [("content-type", "application/grpc")]


def server(budget: http2.ByteBudget | None = None) -> http2.ServerSession:
    return http2.ServerSession(ROUTES, budget=budget, message_bytes_max=200_000)


def client_bytes(rng: random.Random) -> bytes:
    """What one of our clients sends: calls and forwarded streams of many sizes, some cancelled."""
    client, peer = http2.ClientSession(), server()
    recorded = b""

    def pump() -> None:
        nonlocal recorded
        while data := client.pull():
            recorded += data
            peer.feed(data)
            peer.events()
            client.feed(peer.pull())

    pump()
    for _ in range(rng.randrange(1, 30)):
        size = rng.choice([0, 1, 100, 16_384, 70_000, 250_000])
        if rng.random() < 0.7:
            timeout = rng.choice([None, rng.randrange(10**10)])
            stream = client.call(INFER, rng.randbytes(size), timeout)
        else:
            stream = client.forward_open([(":path", LIVE), *GRPC])
            client.forward_data(stream, rng.randbytes(min(size, 60_000)), rng.random() < 0.5)
        if rng.random() < 0.5:
            pump()
        if rng.random() < 0.2:
            client.reset(stream, CANCEL)
    pump()
    return recorded


def pieces_of(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """`data` cut at random: bytes, frames, everything at once."""
    size = rng.choice([1, 9, 100, 5_000, 1 << 20])
    start = 0
    while start < len(data):
        step = rng.randrange(1, size + 1)
        yield data[start : start + step]
        start += step


def seen(events: list[http2.Event]) -> list[tuple[object, ...]]:
    """The events without what depends on the cuts: forwarded pieces are joined."""
    joined: list[list[object]] = []
    for event in events:
        key = (event.kind, event.stream)
        if event.kind == "forward_data":
            for entry in joined:
                if entry[0] == key:
                    entry[1] = bytes(entry[1]) + event.message  # type: ignore[call-overload]
                    break
            else:
                joined.append([key, event.message])
            continue
        joined.append([key, event.message, event.deadline, event.headers, event.bytes])
    return sorted((tuple(entry) for entry in joined), key=repr)


def complete(data: bytes, pieces: Iterator[bytes]) -> tuple[list[tuple[object, ...]], bytes]:
    """Events and answers of a fresh server that reads `data` in `pieces`, events last."""
    session = server()
    for piece in pieces:
        assert session.feed(piece)
    events = session.events()
    return seen(events), session.pull(1 << 24)


@pytest.mark.parametrize("round_index", range(12))
def test_cuts_do_not_change_what_is_seen(rng: random.Random, round_index: int) -> None:
    rng.seed(rng.random() + round_index)
    data = client_bytes(rng)
    whole, _ = complete(data, iter([data]))
    cut, _ = complete(data, pieces_of(data, rng))
    assert cut == whole


def drive(session: http2.ServerSession, rng: random.Random) -> None:
    """An owner that does something legal with every event, in random order and twice."""
    for event in session.events():
        if event.kind == "request":
            choice = rng.randrange(4)
            if choice == 0:
                session.answer(event.stream, rng.randbytes(rng.randrange(40_000)))
            elif choice == 1:
                session.refuse(event.stream, 8, "no", b"\1\2", 3)
            elif choice == 2:
                session.reset(event.stream, CANCEL)
            session.release(event.bytes)
        elif event.kind == "forward_headers":
            session.forward_headers(event.stream, [(":status", "200"), ("x", "y")])
            session.forward_data(event.stream, rng.randbytes(rng.randrange(40_000)))
        elif event.kind == "forward_data":
            session.forward_consumed(event.stream, rng.randrange(len(event.message) * 2 + 1))
            session.forward_data(event.stream, event.message)
        elif event.kind in ("forward_end", "forward_reset"):
            session.forward_trailers(event.stream, [("grpc-status", "0")])
        if rng.random() < 0.1:
            session.answer(event.stream, b"again")
    if rng.random() < 0.02:
        session.begin_drain()
    session.pull(rng.choice([1, 100, 10_000, 1 << 20]))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` behind its preface with bits flipped, parts cut, repeated or made up."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(PREFACE), len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + rng.randrange(1, 40)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(1, 200)]
        else:
            stream = rng.randrange(0, 20)
            payload = rng.randbytes(rng.randrange(20))
            changed[at:at] = http2_frame(rng.randrange(12), rng.randrange(256), stream, payload)
        if len(changed) <= len(PREFACE):
            break
    return bytes(changed)


def survive(data: bytes, rng: random.Random) -> None:
    """Feeds `data` to a driven server; in the end nothing is held."""
    budget = http2.ByteBudget(1 << 20)
    session = server(budget)
    for piece in pieces_of(data, rng):
        alive = session.feed(piece)
        drive(session, rng)
        if not alive:
            break
    session.connection_lost()
    for event in session.events():
        if event.kind == "request":
            session.release(event.bytes)
    assert budget.used == 0
    assert session.open_streams == 0


@pytest.mark.parametrize("round_index", range(25))
def test_mutated_connections_break_nothing(rng: random.Random, round_index: int) -> None:
    rng.seed(rng.random() + round_index)
    data = client_bytes(rng)
    for _ in range(5):
        survive(mutate(data, rng), rng)


@pytest.mark.parametrize("round_index", range(25))
def test_random_bytes_break_nothing(rng: random.Random, round_index: int) -> None:
    rng.seed(rng.random() + round_index)
    start: Callable[[], bytes] = rng.choice(
        [lambda: b"", lambda: PREFACE, lambda: PREFACE + http2_frame(4, 0, 0)]
    )
    survive(start() + rng.randbytes(rng.randrange(3000)), rng)


@pytest.mark.parametrize("round_index", range(25))
def test_random_answers_break_no_client(rng: random.Random, round_index: int) -> None:
    """Every call of a client whose peer sends anything gets exactly one end."""
    rng.seed(rng.random() + round_index)
    client, peer = http2.ClientSession(), server()
    peer.feed(client.pull())
    client.feed(peer.pull())
    streams = [client.call(INFER, rng.randbytes(rng.randrange(1000))) for _ in range(8)]
    peer.feed(client.pull())
    for event in peer.events():
        peer.answer(event.stream, rng.randbytes(rng.randrange(100_000)), [("x-t", "1")])
    answers = peer.pull(1 << 24)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(answers))
        part = rng.choice([rng.randbytes(4), http2_frame(rng.randrange(12), 1, 1, b"abcd"), b""])
        answers = answers[:at] + part + answers[at + rng.randrange(8) :]
    events = []
    for piece in pieces_of(answers, rng):
        alive = client.feed(piece)
        events += client.events()
        client.pull()
        if not alive:
            break
    client.connection_lost()
    events += client.events()
    assert sorted(event.stream for event in events if event.kind == "reply") == streams
    assert client.open_streams == 0


def test_a_message_cut_anywhere_is_the_same_message() -> None:
    message = bytes(range(40))
    data = frame_message(message)
    opened, peer = http2.ClientSession(), server()
    peer.feed(opened.pull())
    opened.feed(peer.pull())
    stream = opened.forward_open([(":path", INFER), *GRPC])
    head = opened.pull()
    for cut in range(len(data) + 1):
        session = server()
        session.feed(PREFACE + http2_frame(4, 0, 0) + head[head.index(b"\x01\x04\0\0\0\x01") - 3 :])
        session.feed(http2_frame(0, 0, stream, data[:cut]))
        session.feed(http2_frame(0, 1, stream, data[cut:]))
        assert [event.message for event in session.events()] == [message]
