"""Whatever cuts the bytes, the events are the same; whatever the bytes are, nothing breaks."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    INFER,
    LIVE,
    PREFACE,
    STREAM_INFER,
    STREAM_ROUTES,
    frame_message,
    http2_frame,
)

pytestmark = pytest.mark.native

CANCEL = 8
COMPRESSIONS = ("identity", "gzip", "deflate")
Feed = Callable[[http2.ServerSession, bytes], bool]
GRPC = [("content-type", "application/grpc")]
WATCHED_BYTES = len("content-type") + len("application/grpc") + 32  # kept with the stream


def server(budget: http2.ByteBudget | None = None) -> http2.ServerSession:
    return http2.ServerSession(
        STREAM_ROUTES,
        budget=budget,
        message_bytes_max=200_000,
        watched_headers=["content-type"],
        response_compression="gzip",
    )


def message_of(rng: random.Random) -> bytes:
    """A message of any size: empty, noise, or such that it compresses."""
    size = rng.choice([0, 1, 100, 1_000, 16_384, 70_000, 250_000 if rng.random() < 0.1 else 5])
    return rng.choice([rng.randbytes, bytes])(size)


def send_on(client: http2.ClientSession, rng: random.Random) -> int:
    """A new call, message stream or forwarded stream of `client`."""
    choice = rng.random()
    timeout = rng.choice([None, rng.randrange(10**10)])
    if choice < 0.4:
        return client.call(INFER, message_of(rng), timeout)
    if choice < 0.8:
        stream = client.open_stream(STREAM_INFER, timeout)
        for _ in range(rng.randrange(8)):
            client.send(stream, message_of(rng))
        if rng.random() < 0.7:
            client.half_close(stream)
        return stream
    stream = client.forward_open([(":path", LIVE), *GRPC])
    client.forward_data(stream, message_of(rng)[:60_000], rng.random() < 0.5)
    return stream


def client_bytes(rng: random.Random) -> bytes:
    """What one of our clients sends: streams of all kinds and many sizes, some cancelled."""
    client, peer = http2.ClientSession(compression=rng.choice(COMPRESSIONS)), server()
    recorded = b""

    def pump() -> None:
        nonlocal recorded
        while data := client.pull():
            recorded += data
            peer.feed(data)
            for event in peer.events():
                if event.kind in ("request", "message"):
                    peer.release(event)
            client.feed(peer.pull())

    pump()
    for _ in range(rng.randrange(1, 20)):
        stream = send_on(client, rng)
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


def feed_in_place(session: http2.ServerSession, piece: bytes) -> bool:
    """Feeds `piece`, as far as the session lets it from where the session wants it."""
    sound = True
    while piece and sound:
        space = session.receive_space()
        size = min(len(space), len(piece))
        if size == 0:
            return session.feed(piece)
        space[:size] = piece[:size]
        sound = session.feed(space[:size])
        piece = piece[size:]
    return sound


def complete(
    data: bytes, pieces: Iterator[bytes], feed: Feed = http2.ServerSession.feed
) -> tuple[list[tuple[object, ...]], bytes]:
    """Events and answers of a fresh server that reads `data` in `pieces`, events last."""
    session = server()
    for piece in pieces:
        assert feed(session, piece)
    events = session.events()
    return seen(events), session.pull(1 << 24)


@pytest.mark.parametrize("round_index", range(12))
def test_cuts_do_not_change_what_is_seen(rng: random.Random, round_index: int) -> None:
    rng.seed(rng.random() + round_index)
    data = client_bytes(rng)
    whole, _ = complete(data, iter([data]))
    cut, _ = complete(data, pieces_of(data, rng))
    assert cut == whole
    in_place, _ = complete(data, pieces_of(data, rng), feed_in_place)
    assert in_place == whole


def drive_messages(session: http2.ServerSession, event: http2.Event, rng: random.Random) -> None:
    """Some answers to what came on a message stream."""
    for _ in range(rng.randrange(3)):
        session.send(event.stream, message_of(rng), [("x-before", "1")])
    choice = rng.randrange(8)
    if choice == 0:
        session.finish(event.stream, trailers=[("x-after", "2")])
    elif choice == 1:
        session.refuse(event.stream, 8, "no", b"\1\2", 3)
    elif choice == 2:
        session.reset(event.stream, CANCEL)
    session.release(event)


def drive(session: http2.ServerSession, rng: random.Random) -> None:
    """An owner that does something legal with every event, in random order and twice."""
    for event in session.events():
        if event.kind in ("stream_opened", "message", "half_closed"):
            drive_messages(session, event, rng)
        elif event.kind == "request":
            choice = rng.randrange(4)
            if choice == 0:
                session.answer(event.stream, rng.randbytes(rng.randrange(40_000)))
            elif choice == 1:
                session.refuse(event.stream, 8, "no", b"\1\2", 3)
            elif choice == 2:
                session.reset(event.stream, CANCEL)
            session.release(event)
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
    feed = rng.choice([http2.ServerSession.feed, feed_in_place])
    for piece in pieces_of(data, rng):
        alive = feed(session, piece)
        drive(session, rng)
        if not alive:
            break
    session.connection_lost()
    for event in session.events():
        if event.kind in ("request", "message"):
            session.release(event)
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
    streams += [client.open_stream(STREAM_INFER) for _ in range(8)]
    peer.feed(client.pull())
    for event in peer.events():
        if event.kind == "request":
            peer.answer(event.stream, message_of(rng), [("x-t", "1")])
            continue
        for _ in range(rng.randrange(5)):
            peer.send(event.stream, message_of(rng), [("x-h", "2")])
        peer.finish(event.stream)
    answers = peer.pull(1 << 24)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(answers))
        part = rng.choice([rng.randbytes(4), http2_frame(rng.randrange(12), 1, 1, b"abcd"), b""])
        answers = answers[:at] + part + answers[at + rng.randrange(8) :]
    events = []
    for piece in pieces_of(answers, rng):
        alive = client.feed(piece)
        for event in client.events():
            events.append(event)
            if event.kind == "message":
                client.consumed(event.stream, rng.randrange(event.bytes * 2))
        client.pull()
        if not alive:
            break
    client.connection_lost()
    events += client.events()
    assert client.events() == []
    ended: set[int] = set()
    for event in events:
        assert event.stream not in ended, "something behind the end of a stream"
        if event.kind == "reply":
            ended.add(event.stream)
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


@pytest.mark.parametrize("encoding", COMPRESSIONS)
def test_messages_cut_anywhere_are_the_same_messages(encoding: str) -> None:
    messages = [bytes(range(40)), b"", bytes(100)]
    compress = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    flag = encoding != "identity"
    data = b"".join(frame_message(compress(message), flag) for message in messages)
    opened, peer = http2.ClientSession(), server()
    peer.feed(opened.pull())
    opened.feed(peer.pull())
    stream = opened.forward_open([(":path", STREAM_INFER), ("grpc-encoding", encoding), *GRPC])
    head = opened.pull()
    head = head[head.index(b"\x01\x04\0\0\0\x01") - 3 :]
    for cut in range(len(data) + 1):
        budget = http2.ByteBudget()
        session = server(budget)
        session.feed(PREFACE + http2_frame(4, 0, 0) + head)
        session.feed(http2_frame(0, 0, stream, data[:cut]))
        session.feed(http2_frame(0, 1, stream, data[cut:]))
        events = session.events()
        assert [event.kind for event in events] == [
            "stream_opened",
            *["message"] * 3,
            "half_closed",
        ]
        assert [event.message for event in events[1:-1]] == messages
        assert budget.used == WATCHED_BYTES + sum(event.bytes for event in events)


@pytest.mark.parametrize("round_index", range(12))
def test_any_pace_of_both_sides_brings_every_message(rng: random.Random, round_index: int) -> None:
    """Small windows, pulls of any size, messages taken and consumed late: nothing stalls."""
    rng.seed(rng.random() + round_index)
    budget = http2.ByteBudget()
    session = http2.ServerSession(
        STREAM_ROUTES,
        budget=budget,
        stream_window_bytes=rng.choice([1 << 16, 1 << 20]),
        connection_window_bytes=rng.choice([1 << 17, 8 << 20]),
        response_compression=rng.choice(COMPRESSIONS),
    )
    client = http2.ClientSession(stream_window_bytes=1 << 16, compression=rng.choice(COMPRESSIONS))
    Echo(session, client, rng).run()
    assert budget.used == 0
    assert client.open_streams == session.open_streams == 0


class Echo:
    """Streams whose every message comes back; each side works when it feels like it."""

    def __init__(
        self, session: http2.ServerSession, client: http2.ClientSession, rng: random.Random
    ) -> None:
        self.session, self.client, self.rng = session, client, rng
        self.sent: dict[int, list[bytes]] = {}
        self.received: dict[int, list[bytes]] = {}
        self.ended: list[int] = []
        self.held: list[http2.Event] = []
        self.unconsumed: list[http2.Event] = []

    def run(self) -> None:
        for _ in range(6):
            stream = self.client.open_stream(STREAM_INFER)
            self.sent[stream] = [message_of(self.rng) for _ in range(self.rng.randrange(8))]
            self.received[stream] = []
            for message in self.sent[stream]:
                self.client.send(stream, message)
            self.client.half_close(stream)
        for _ in range(200_000):
            if len(self.ended) == len(self.sent) and not self.held and not self.unconsumed:
                assert self.received == self.sent
                self.session.feed(self.client.pull())
                return
            self.turn()
        raise AssertionError("something stalls")

    def turn(self) -> None:
        rng = self.rng
        self.session.feed(self.client.pull(rng.choice([1, 5_000, 1 << 20])))
        if rng.random() < 0.5:
            for event in self.session.events():
                if event.kind == "message":
                    self.session.send(event.stream, event.message)
                    self.held.append(event)
                elif event.kind == "half_closed":
                    self.session.finish(event.stream)
        if rng.random() < 0.3:
            for event in self.held:
                self.session.release(event)
            self.held.clear()
        self.client.feed(self.session.pull(rng.choice([1, 5_000, 1 << 20])))
        for event in self.client.events():
            if event.kind == "reply":
                assert event.code == 0
                self.ended.append(event.stream)
                continue
            self.received[event.stream].append(event.message)
            self.unconsumed.append(event)
        if rng.random() < 0.3:
            for event in self.unconsumed:
                self.client.consumed(event.stream, event.bytes)
            self.unconsumed.clear()
