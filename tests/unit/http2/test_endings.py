"""Streams and connections that end early: cancels, floods, drain, illegal HTTP/2."""

from __future__ import annotations

import h2.errors
import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    INFER,
    PREFACE,
    H2Client,
    answer_with,
    connect,
    frame_message,
    frames_of,
    http2_frame,
    server,
)

pytestmark = pytest.mark.native

SECOND = 1_000_000_000


# -- cancellation ------------------------------------------------------------------------------


def test_a_reset_is_told_once_and_only_for_announced_requests() -> None:
    client = H2Client(server())
    unfinished = client.open()
    client.send(unfinished, b"\0\0")
    stream = client.request(b"x")
    (event,) = client.exchange()
    client.h2.reset_stream(unfinished, 8)
    client.h2.reset_stream(stream, 8)
    assert [(e.kind, e.stream) for e in client.exchange()] == [("cancelled", stream)]
    client.server.release(event)
    client.server.connection_lost()
    assert client.server.events() == []


def test_a_request_reset_before_it_is_taken_is_never_announced() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(budget=budget))
    stream = client.request(b"x")
    client.h2.reset_stream(stream, 8)
    assert client.exchange() == []
    assert budget.used == 0


def test_a_lost_connection_cancels_what_is_open() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(budget=budget))
    streams = [client.request(b"x") for _ in range(3)]
    events = client.exchange()
    client.server.answer(streams[0], b"answered")
    client.server.connection_lost()
    assert {(e.kind, e.stream) for e in client.server.events()} == {
        ("cancelled", streams[1]),
        ("cancelled", streams[2]),
    }
    for event in events:
        client.server.answer(event.stream, b"late")
        client.server.release(event)
    assert budget.used == 0
    assert client.server.finished()
    assert client.server.pull() == b""
    assert not client.server.feed(b"more")


def test_five_thousand_cancels_in_a_row_leave_the_connection_usable() -> None:
    client = H2Client(server())
    for _ in range(5000):
        stream = client.request(b"x")
        client.h2.reset_stream(stream, 8)
        client.exchange()
    assert client.server.resets_received == 5000
    stream = client.request(b"y")
    client.exchange(answer_with(client.server, b"later"))
    assert client.answers[stream].message == b"later"
    assert client.goaway is None


class RawStreams:
    """Opens streams and resets them in raw frames, faster than hyper-h2 can."""

    def __init__(self, client: H2Client) -> None:
        self.client = client
        self.block = client.h2.encoder.encode(client.headers())
        client.h2.encoder.encode(client.headers())
        self.stream = 1

    def reset_many(self, count: int) -> bool:
        frames = bytearray()
        for _ in range(count):
            # Without END_STREAM; every header is in the table after the first block.
            frames += http2_frame(1, 4, self.stream, self.block)
            frames += http2_frame(3, 0, self.stream, b"\0\0\0\x08")
            self.stream += 2
        alive = self.client.server.feed(bytes(frames), self.client.now)
        self.client.receive(self.client.server.pull())
        return alive and self.client.goaway is None


def test_the_reset_bound_is_a_burst_and_a_rate() -> None:
    client = H2Client(server())
    raw = RawStreams(client)
    assert raw.reset_many(20_000)
    client.now = SECOND
    assert raw.reset_many(10_000)  # what a second earns
    raw.reset_many(1)
    assert client.goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert client.server.finished()


def test_answers_earn_resets() -> None:
    client = H2Client(server())
    raw = RawStreams(client)
    assert raw.reset_many(20_000)
    block = client.h2.encoder.encode(client.headers())
    client.server.feed(
        http2_frame(1, 4, raw.stream, block) + http2_frame(0, 1, raw.stream, frame_message(b"x"))
    )
    raw.stream += 2
    (event,) = client.server.events()
    client.server.answer(event.stream, b"y")
    client.server.pull()
    assert raw.reset_many(10)
    raw.reset_many(1)
    assert client.goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


# -- the end of a connection -------------------------------------------------------------------


GOAWAY = 7


def last_streams(data: bytes) -> list[int]:
    """The last stream ids of the GOAWAY frames in `data`."""
    return [
        int.from_bytes(payload[:4], "big")
        for kind, _, _, payload in frames_of(data)
        if kind == GOAWAY
    ]


def test_drain_announces_then_names_the_last_stream_and_serves_it() -> None:
    pair = connect(server())
    first = pair.client.call(INFER, b"x")
    pair.pump()
    late = pair.client.call(INFER, b"y")
    on_its_way = pair.client.pull()
    pair.server.begin_drain()
    notice = pair.server.pull()
    assert last_streams(notice) == [2**31 - 1]
    pair.client.feed(notice)
    assert pair.client.draining()

    pair.server.feed(on_its_way)
    pair.server.feed(pair.client.pull())
    final = pair.server.pull()
    assert last_streams(final) == [late]
    pair.client.feed(final)
    pair.server_events += pair.server.events()
    assert [event.stream for event in pair.take_server()] == [first, late]
    assert not pair.server.finished()
    pair.server.answer(first, b"one")
    pair.server.answer(late, b"two")
    pair.pump()
    assert [event.message for event in pair.take_client()] == [b"one", b"two"]
    assert pair.server.finished()
    assert pair.client.finished()


def test_a_second_drain_does_not_wait_for_the_client() -> None:
    client = H2Client(server())
    client.server.begin_drain()
    client.server.begin_drain()
    client.server.pull()
    assert client.server.finished()


def test_streams_after_the_final_goaway_are_ignored() -> None:
    client = H2Client(server())
    client.server.begin_drain()
    client.exchange()
    block = client.h2.encoder.encode(client.headers())
    client.server.feed(http2_frame(1, 5, 1, block))
    assert client.server.events() == []


def test_a_ping_is_answered() -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0) + http2_frame(6, 0, 0, b"12345678"))
    assert http2_frame(6, 1, 0, b"12345678") in session.pull()


@pytest.mark.parametrize(
    "flood",
    [http2_frame(6, 0, 0, b"12345678"), http2_frame(4, 0, 0)],
    ids=["ping", "settings"],
)
def test_a_flood_of_frames_to_acknowledge_ends_the_connection(flood: bytes) -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0))
    session.pull()
    assert session.feed(flood * 900)
    session.pull()
    assert not session.feed(flood * 5000)
    session.pull()
    assert session.finished()


def test_an_endless_header_block_ends_the_connection() -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0))
    alive = session.feed(http2_frame(1, 0, 1, b"\x40\x01a\x01b"))
    for _ in range(100):
        alive = alive and session.feed(http2_frame(9, 0, 1, b"\x40\x01a\x01b"))
    session.pull()
    assert not alive
    assert session.finished()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(40),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(0, 0, 1, b"data on an idle stream"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(1, 5, 2, b"\x82"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(8, 0, 0, b"\0\0\0\0"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(1, 5, 1, b"\xff\xff\xff\xff\xff"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(5, 4, 1, b"\0\0\0\2\x82"),
        PREFACE + http2_frame(4, 0, 0)[:3] + b"\x04\0\0\0\0\0" + bytes(70_000),
    ],
    ids=["http1", "idle", "even", "zero-window", "hpack", "push", "settings-size"],
)
def test_illegal_http2_ends_the_connection(data: bytes) -> None:
    session = server()
    session.feed(data)
    session.pull()
    assert session.finished()
    assert session.events() == []
