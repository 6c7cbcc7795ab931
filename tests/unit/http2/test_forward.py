"""Forwarded streams: headers, data, trailers and resets relayed with flow control."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import LIVE, ROUTES, Pair, connect, frame_message

pytestmark = pytest.mark.native

CANCEL = 8


class Relay:
    """front client - server session - relay - client session - back server, in memory."""

    def __init__(self, **server_options: Any) -> None:
        self.front = connect(http2.ServerSession(ROUTES, **server_options))
        # The back server forwards everything it is sent: its events show what arrived.
        self.back = connect(http2.ServerSession())
        self.up: dict[int, int] = {}
        self.down: dict[int, int] = {}

    def relay(self) -> None:
        """One turn of the gateway: events of one side become calls of the other."""
        for event in self.front.take_server():
            if event.kind == "forward_headers":
                stream = self.back.client.forward_open(event.headers, event.end_stream)
                self.up[event.stream], self.down[stream] = stream, event.stream
            elif event.kind == "forward_data":
                self.back.client.forward_data(self.up[event.stream], event.message)
                self.front.server.forward_consumed(event.stream, len(event.message))
            elif event.kind == "forward_end":
                self.back.client.forward_data(self.up[event.stream], b"", True)
            elif event.kind == "forward_reset":
                self.back.client.reset(self.up[event.stream], CANCEL)
        for event in self.back.take_client():
            if event.kind == "forward_headers":
                self.front.server.forward_headers(self.down[event.stream], event.headers)
            elif event.kind == "forward_data":
                self.front.server.forward_data(self.down[event.stream], event.message)
                self.back.client.forward_consumed(event.stream, len(event.message))
            elif event.kind == "forward_trailers":
                self.front.server.forward_trailers(self.down[event.stream], event.headers)
            elif event.kind == "forward_reset":
                self.front.server.reset(self.down[event.stream], CANCEL)

    def pump(self) -> None:
        for _ in range(10_000):
            moved = self.front.step()
            self.relay()
            moved |= self.back.step()
            self.relay()
            if not moved:
                return
        raise AssertionError("the relay never falls silent")


def kinds(events: list[http2.Event]) -> list[str]:
    return [event.kind for event in events]


def without_sent(events: list[http2.Event]) -> list[http2.Event]:
    return [event for event in events if event.kind != "forward_sent"]


def test_a_call_is_relayed_with_headers_data_and_trailers() -> None:
    relay = Relay()
    front = relay.front.client
    stream = front.forward_open(
        [(":path", LIVE), ("content-type", "application/grpc"), ("x-key", "value")]
    )
    front.forward_data(stream, frame_message(b"question"), True)
    relay.pump()

    arrived = relay.back.take_server()
    assert kinds(arrived) == ["forward_headers", "forward_data", "forward_end"]
    headers = dict(arrived[0].headers)
    assert headers[":path"] == LIVE
    assert headers["x-key"] == "value"
    assert headers[":authority"] == "backend"
    assert arrived[1].message == frame_message(b"question")

    back = relay.back.server
    back.forward_headers(arrived[0].stream, [(":status", "200"), ("x-reply", "1")])
    back.forward_data(arrived[0].stream, frame_message(b"answer"))
    back.forward_trailers(arrived[0].stream, [("grpc-status", "0"), ("x-cost", "2")])
    relay.pump()

    answered = without_sent(relay.front.take_client())
    assert kinds(answered) == ["forward_headers", "forward_data", "forward_trailers"]
    assert dict(answered[0].headers) == {":status": "200", "x-reply": "1"}
    assert answered[1].message == frame_message(b"answer")
    assert dict(answered[2].headers) == {"grpc-status": "0", "x-cost": "2"}
    assert relay.front.server.open_streams == 0
    assert relay.back.client.open_streams == 0


def test_a_trailers_only_answer_stays_one() -> None:
    relay = Relay()
    stream = relay.front.client.forward_open(
        [(":path", LIVE), ("content-type", "application/grpc")]
    )
    relay.front.client.forward_data(stream, b"", True)
    relay.pump()
    call = relay.back.take_server()[0]
    relay.back.server.forward_trailers(
        call.stream, [("content-type", "application/grpc"), ("grpc-status", "5")]
    )
    relay.pump()
    answered = without_sent(relay.front.take_client())
    assert kinds(answered) == ["forward_trailers"]
    assert dict(answered[0].headers)["grpc-status"] == "5"


@pytest.mark.parametrize("size", [0, 1, 16_384, 3_000_000])
def test_data_pass_whole_in_both_directions(size: int) -> None:
    relay = Relay()
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    stream = relay.front.client.forward_open(
        [(":path", LIVE), ("content-type", "application/grpc")]
    )
    relay.front.client.forward_data(stream, payload, True)
    got = bytearray()
    back = relay.back
    relay.pump()
    for _ in range(1000):
        events = back.take_server()
        for event in events:
            if event.kind == "forward_data":
                got += event.message
                back.server.forward_consumed(event.stream, len(event.message))
        relay.pump()
        if not events:
            break
    assert bytes(got) == payload

    call = 1
    back.server.forward_headers(call, [(":status", "200")])
    back.server.forward_data(call, payload)
    back.server.forward_trailers(call, [("grpc-status", "0")])
    returned = bytearray()
    relay.pump()
    for _ in range(1000):
        events = without_sent(relay.front.take_client())
        for event in events:
            if event.kind == "forward_data":
                returned += event.message
                relay.front.client.forward_consumed(event.stream, len(event.message))
        relay.pump()
        if not events:
            break
    assert bytes(returned) == payload
    assert relay.front.server.open_streams == 0


def test_the_stream_window_is_paid_by_forward_consumed_only() -> None:
    window = 64 << 10
    pair = connect(http2.ServerSession(stream_window_bytes=window))
    stream = pair.client.forward_open([(":path", LIVE), ("content-type", "application/grpc")])
    pair.client.forward_data(stream, bytes(4 * window), True)
    pair.pump()
    pieces = [e for e in pair.take_server() if e.kind == "forward_data"]
    assert sum(len(piece.message) for piece in pieces) == window
    pair.pump()
    assert pair.take_server() == []
    pair.server.forward_consumed(stream, window)
    pair.pump()
    assert sum(len(e.message) for e in pair.take_server() if e.kind == "forward_data") == window


def test_bytes_that_left_are_reported() -> None:
    pair = connect(http2.ServerSession())
    stream = pair.client.forward_open([(":path", LIVE), ("content-type", "application/grpc")])
    pair.client.forward_data(stream, bytes(100_000))
    pair.pump()
    sent = [event.bytes for event in pair.take_client() if event.kind == "forward_sent"]
    assert sum(sent) == 100_000


def open_call(pair: Pair) -> int:
    stream = pair.client.forward_open([(":path", LIVE), ("content-type", "application/grpc")])
    pair.pump()
    assert kinds(pair.take_server()) == ["forward_headers"]
    return stream


def test_a_reset_by_the_client_is_told_once() -> None:
    pair = connect(http2.ServerSession())
    stream = open_call(pair)
    pair.client.reset(stream, CANCEL)
    pair.pump()
    assert kinds(pair.take_server()) == ["forward_reset"]
    pair.server.connection_lost()
    pair.pump()
    assert pair.take_server() == []


def test_a_reset_by_the_server_is_told_once() -> None:
    pair = connect(http2.ServerSession())
    stream = open_call(pair)
    pair.server.reset(stream, CANCEL)
    pair.pump()
    assert kinds(pair.take_client()) == ["forward_reset"]
    assert pair.take_server() == []
    pair.client.connection_lost()
    assert pair.client.events() == []


def test_a_lost_connection_resets_both_ends() -> None:
    pair = connect(http2.ServerSession())
    open_call(pair)
    pair.server.connection_lost()
    pair.client.connection_lost()
    assert kinds(pair.server.events()) == ["forward_reset"]
    assert kinds(pair.client.events()) == ["forward_reset"]


def test_the_answer_may_end_before_the_request() -> None:
    pair = connect(http2.ServerSession())
    stream = open_call(pair)
    pair.server.forward_headers(stream, [(":status", "200")])
    pair.server.forward_trailers(stream, [("grpc-status", "0")])
    pair.pump()
    assert kinds(pair.take_client()) == ["forward_headers", "forward_trailers"]
    assert pair.server.open_streams == 0
    assert pair.client.open_streams == 0


def test_a_call_may_be_refused_before_and_after_its_headers() -> None:
    pair = connect(http2.ServerSession())
    early, late = open_call(pair), open_call(pair)
    pair.server.refuse(early, 14, "away")
    pair.server.forward_headers(late, [(":status", "200")])
    pair.server.forward_data(late, b"some")
    pair.server.refuse(late, 14, "gone")
    pair.pump()
    ends = {e.stream: dict(e.headers) for e in pair.take_client() if e.kind == "forward_trailers"}
    assert (ends[early]["grpc-status"], ends[early]["grpc-message"]) == ("14", "away")
    assert (ends[late]["grpc-status"], ends[late]["grpc-message"]) == ("14", "gone")
    assert pair.take_server() == []
    assert pair.server.open_streams == 0


def test_internal_and_hop_headers_of_a_client_are_stripped() -> None:
    pair = connect(http2.ServerSession(internal_headers=["x-principal"]))
    pair.client.forward_open(
        [
            (":path", LIVE),
            ("content-type", "application/grpc"),
            ("x-principal", "root"),
            ("x-other", "kept"),
        ]
    )
    pair.pump()
    (event,) = pair.take_server()
    names = [name for name, _ in event.headers]
    assert "x-principal" not in names
    assert "te" not in names
    assert "x-other" in names


def test_unread_data_are_charged_and_given_back_with_the_stream() -> None:
    budget = http2.ByteBudget()
    pair = connect(http2.ServerSession(budget=budget))
    stream = open_call(pair)
    pair.client.forward_data(stream, bytes(1000))
    pair.pump()
    assert budget.used == 1000
    pair.server.forward_consumed(stream, 400)
    assert budget.used == 600
    pair.client.reset(stream, CANCEL)
    pair.pump()
    assert budget.used == 0


def test_forwarded_data_beyond_the_budget_end_the_call() -> None:
    budget = http2.ByteBudget(1000)
    pair = connect(http2.ServerSession(budget=budget))
    stream = open_call(pair)
    pair.client.forward_data(stream, bytes(1000))
    pair.pump()
    assert kinds(pair.take_server()) == ["forward_data"]
    pair.client.forward_data(stream, bytes(1))
    pair.pump()
    assert kinds(pair.take_server()) == ["forward_reset"]
    (end,) = without_sent(pair.take_client())
    assert dict(end.headers)["grpc-status"] == "8"
    assert budget.used == 0
