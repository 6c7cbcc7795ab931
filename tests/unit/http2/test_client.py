"""The client session: calls, every ending's status, limits of the peer, lost connections."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    CANCELLED,
    INFER,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    frame_message,
    http2_frame,
)

pytestmark = pytest.mark.native

GRPC = [(":status", "200"), ("content-type", "application/grpc")]


class H2Server:
    """hyper-h2 as the server of one of our client sessions."""

    def __init__(self, client: http2.ClientSession, **settings: int) -> None:
        self.client = client
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self.headers: dict[int, list[tuple[str, str]]] = {}
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.h2.initiate_connection()
        if settings:
            codes = h2.settings.SettingCodes
            self.h2.update_settings({getattr(codes, k.upper()): v for k, v in settings.items()})
        self.exchange()

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers[event.stream_id] = [(str(n), str(v)) for n, v in event.headers]
                self.data[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code

    def exchange(self) -> list[http2.Event]:
        events: list[http2.Event] = []
        for _ in range(10_000):
            down = self.h2.data_to_send()
            if down:
                self.client.feed(down)
            events += self.client.events()
            up = self.client.pull()
            if up:
                self.receive(up)
            if not up and not down:
                return events
        raise AssertionError("the sessions never fall silent")

    def reply(
        self,
        stream: int,
        message: bytes | None,
        trailers: Iterable[tuple[str, str]],
        headers: Iterable[tuple[str, str]] = GRPC,
    ) -> None:
        self.h2.send_headers(stream, list(headers))
        if message is not None:
            self.h2.send_data(stream, message)
        self.h2.send_headers(stream, list(trailers), end_stream=True)


def called(**options: Any) -> tuple[H2Server, int]:
    """A server that has received one whole call."""
    server = H2Server(http2.ClientSession(**options))
    stream = server.client.call(INFER, b"question")
    assert server.exchange() == []
    assert stream in server.ended
    return server, stream


# -- calls -------------------------------------------------------------------------------------


def test_a_call_is_sent_as_grpc_asks() -> None:
    server = H2Server(http2.ClientSession(authority="triton:8001", user_agent="infersched/1"))
    stream = server.client.call(INFER, b"question", 250_000_000, b"x-a\x001\x00x-b\x002\x00")
    server.exchange()
    assert server.headers[stream] == [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", INFER),
        (":authority", "triton:8001"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
        ("user-agent", "infersched/1"),
        ("grpc-timeout", "250000u"),
        ("x-a", "1"),
        ("x-b", "2"),
    ]
    assert server.data[stream] == frame_message(b"question")
    assert stream in server.ended


def test_over_an_encrypted_transport_the_scheme_is_https() -> None:
    server, stream = called(encrypted=True)
    assert (":scheme", "https") in server.headers[stream]
    assert (":scheme", "http") not in server.headers[stream]


def test_a_reply_is_one_event() -> None:
    server, stream = called()
    server.reply(stream, frame_message(b"answer"), [("grpc-status", "0")])
    (event,) = server.exchange()
    assert (event.kind, event.stream, event.code) == ("reply", stream, 0)
    assert event.message == b"answer"
    assert server.client.open_streams == 0


def test_an_error_carries_text_details_and_pushback() -> None:
    server, stream = called()
    server.h2.send_headers(
        stream,
        [
            *GRPC,
            ("grpc-status", "8"),
            ("grpc-message", "f%C3%BCll 100%25 %zz"),
            ("grpc-status-details-bin", base64.b64encode(b"\x08\x08\xff\xfe").decode()),
            ("grpc-retry-pushback-ms", "250"),
        ],
        end_stream=True,
    )
    (event,) = server.exchange()
    assert event.code == RESOURCE_EXHAUSTED
    assert event.text == "füll 100% %zz"
    assert event.details == b"\x08\x08\xff\xfe"
    assert event.retry_pushback_ms == 250
    assert not event.nothing_ran


def test_an_error_may_follow_a_message() -> None:
    server, stream = called()
    server.reply(stream, frame_message(b"partial"), [("grpc-status", "13")])
    (event,) = server.exchange()
    assert event.code == INTERNAL


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([(":status", "200"), ("content-type", "application/grpc")], UNKNOWN),
        ([(":status", "503"), ("content-type", "text/html")], UNAVAILABLE),
        ([(":status", "404")], UNIMPLEMENTED),
        ([(":status", "429")], UNAVAILABLE),
        ([(":status", "400")], INTERNAL),
        ([(":status", "418")], UNKNOWN),
    ],
)
def test_an_answer_without_a_grpc_status_is_mapped(
    headers: list[tuple[str, str]], code: int
) -> None:
    server, stream = called()
    server.h2.send_headers(stream, headers)
    server.h2.send_data(stream, b"<html>proxy says no</html>", end_stream=True)
    (event,) = server.exchange()
    if headers[-1][1] == "application/grpc":
        assert event.code == INTERNAL  # the body is no gRPC frame
    else:
        assert event.code == code


def test_a_grpc_answer_that_just_ends_is_unknown() -> None:
    server, stream = called()
    server.h2.send_headers(stream, GRPC, end_stream=True)
    (event,) = server.exchange()
    assert event.code == UNKNOWN


@pytest.mark.parametrize("status", ["17", "-1", "abc", ""])
def test_a_status_that_is_none_is_unknown(status: str) -> None:
    server, stream = called()
    server.reply(stream, frame_message(b"x"), [("grpc-status", status)])
    (event,) = server.exchange()
    assert event.code == UNKNOWN


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0", frame_message(b"12345")[:-1]],
    ids=["none", "prefix", "truncated"],
)
def test_ok_without_a_whole_message_is_an_error(data: bytes) -> None:
    server, stream = called()
    server.reply(stream, data, [("grpc-status", "0")])
    (event,) = server.exchange()
    assert event.code == INTERNAL


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame_message(b"one") + frame_message(b"two"), INTERNAL),
        (frame_message(b"one", 1), INTERNAL),
        (frame_message(bytes(1001)), RESOURCE_EXHAUSTED),
    ],
    ids=["second", "compressed", "large"],
)
def test_a_bad_reply_ends_its_call_only(data: bytes, code: int) -> None:
    server = H2Server(http2.ClientSession(message_bytes_max=1000))
    bad = server.client.call(INFER, b"x")
    good = server.client.call(INFER, b"y")
    server.exchange()
    server.h2.send_headers(bad, GRPC)
    server.h2.send_data(bad, data)
    (event,) = server.exchange()
    assert (event.stream, event.code) == (bad, code)
    assert server.resets[bad] == h2.errors.ErrorCodes.CANCEL
    server.reply(good, frame_message(bytes(1000)), [("grpc-status", "0")])
    (event,) = server.exchange()
    assert (event.stream, len(event.message)) == (good, 1000)


@pytest.mark.parametrize(
    ("http2_code", "code", "nothing_ran"),
    [
        (h2.errors.ErrorCodes.REFUSED_STREAM, UNAVAILABLE, True),
        (h2.errors.ErrorCodes.CANCEL, CANCELLED, False),
        (h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, RESOURCE_EXHAUSTED, False),
        (h2.errors.ErrorCodes.INADEQUATE_SECURITY, 7, False),
        (h2.errors.ErrorCodes.INTERNAL_ERROR, INTERNAL, False),
        (h2.errors.ErrorCodes.NO_ERROR, INTERNAL, False),
    ],
)
def test_resets_are_mapped_as_grpc_maps_them(http2_code: int, code: int, nothing_ran: bool) -> None:
    server, stream = called()
    server.h2.reset_stream(stream, http2_code)
    (event,) = server.exchange()
    assert (event.kind, event.code, event.nothing_ran) == ("reply", code, nothing_ran)


def test_headers_of_a_reply_are_bounded() -> None:
    server, stream = called()
    fill = [(f"x-{i}", "v" * 1000) for i in range(70)]
    server.h2.send_headers(stream, [*GRPC, *fill], end_stream=True)
    (event,) = server.exchange()
    assert (event.stream, event.code) == (stream, INTERNAL)


def test_a_reply_before_the_request_is_out_ends_the_call() -> None:
    server = H2Server(http2.ClientSession(), initial_window_size=1000)
    stream = server.client.call(INFER, bytes(1 << 20))
    server.receive(server.client.pull(500))
    server.h2.send_headers(stream, [*GRPC, ("grpc-status", "8")], end_stream=True)
    (event,) = server.exchange()
    assert event.code == RESOURCE_EXHAUSTED
    assert server.client.open_streams == 0


# -- cancelling --------------------------------------------------------------------------------


def test_a_cancelled_call_has_no_reply() -> None:
    server, stream = called()
    server.client.cancel(stream)
    assert server.exchange() == []
    assert server.resets[stream] == h2.errors.ErrorCodes.CANCEL
    server.client.connection_lost()
    assert server.client.events() == []


def test_a_call_cancelled_before_it_left_is_never_sent() -> None:
    server = H2Server(http2.ClientSession())
    stream = server.client.call(INFER, b"x")
    server.client.cancel(stream)
    assert server.exchange() == []
    assert server.headers == {}
    assert server.client.open_streams == 0


def test_a_call_cancelled_while_a_piece_waits_to_be_pulled() -> None:
    server = H2Server(http2.ClientSession(), initial_window_size=1 << 20)
    stream = server.client.call(INFER, [bytes(100_000), bytes(200_000)])
    other = server.client.call(INFER, b"y")
    server.receive(server.client.pull(20_000))
    server.client.cancel(stream)
    server.exchange()
    assert server.resets[stream] == h2.errors.ErrorCodes.CANCEL
    assert server.data[other] == frame_message(b"y")


# -- limits of the peer ------------------------------------------------------------------------


def test_ready_follows_settings_and_the_peers_stream_limit() -> None:
    client = http2.ClientSession()
    assert not client.ready()
    server = H2Server(client, max_concurrent_streams=2)
    assert client.ready()
    first = client.call(INFER, b"1")
    assert client.ready()
    second = client.call(INFER, b"2")
    assert not client.ready()
    third = client.call(INFER, b"3")  # waits inside
    server.exchange()
    assert set(server.headers) == {first, second}
    server.reply(first, frame_message(b"a"), [("grpc-status", "0")])
    server.exchange()
    assert set(server.headers) == {first, second, third}


def test_a_large_request_waits_for_the_peers_windows() -> None:
    server = H2Server(http2.ClientSession(), initial_window_size=70_000)
    message = bytes(range(256)) * 5000
    stream = server.client.call(INFER, [message[:10], message[10:]])
    server.exchange()
    assert server.data[stream] == frame_message(message)


def test_frames_grow_with_the_peers_limit() -> None:
    server = H2Server(http2.ClientSession(), max_frame_size=1 << 20, initial_window_size=1 << 22)
    server.h2.increment_flow_control_window(1 << 22)
    server.exchange()
    server.client.call(INFER, bytes(1 << 19))
    sizes = [len(piece) for piece in server.client.pull_slices()]
    assert max(sizes) == 1 << 19


def test_windows_are_credited_as_replies_arrive() -> None:
    window = 1 << 17
    server = H2Server(
        http2.ClientSession(connection_window_bytes=window, stream_window_bytes=window)
    )
    for _ in range(20):
        stream = server.client.call(INFER, b"x")
        server.exchange()
        server.h2.send_headers(stream, GRPC)
        framed = frame_message(bytes(window))
        while framed:
            room = min(server.h2.local_flow_control_window(stream), 16_384)
            assert room > 0
            server.h2.send_data(stream, framed[:room])
            framed = framed[room:]
            server.exchange()
        server.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        (event,) = server.exchange()
        assert len(event.message) == window


# -- connections that end ----------------------------------------------------------------------


def test_a_goaway_fails_what_it_does_not_cover_and_finishes_the_rest() -> None:
    server = H2Server(http2.ClientSession())
    first = server.client.call(INFER, b"1")
    second = server.client.call(INFER, b"2")
    server.exchange()
    payload = first.to_bytes(4, "big") + bytes(4)
    server.client.feed(http2_frame(7, 0, 0, payload))
    (event,) = server.client.events()
    assert (event.stream, event.code, event.nothing_ran) == (second, UNAVAILABLE, True)
    assert server.client.draining()
    assert not server.client.ready()
    assert server.client.call(INFER, b"3") == 0
    assert not server.client.finished()
    server.reply(first, frame_message(b"a"), [("grpc-status", "0")])
    (event,) = server.exchange()
    assert (event.stream, event.message) == (first, b"a")
    server.client.pull()
    assert server.client.finished()


def test_a_call_still_queued_at_a_goaway_ran_nothing() -> None:
    server = H2Server(http2.ClientSession(), max_concurrent_streams=1)
    first = server.client.call(INFER, b"1")
    queued = server.client.call(INFER, b"2")
    server.exchange()
    server.client.feed(http2_frame(7, 0, 0, first.to_bytes(4, "big") + bytes(4)))
    server.client.pull()
    (event,) = server.client.events()
    assert (event.stream, event.code, event.nothing_ran) == (queued, UNAVAILABLE, True)


def test_a_lost_connection_says_which_calls_never_left() -> None:
    server = H2Server(http2.ClientSession(), max_concurrent_streams=1)
    sent = server.client.call(INFER, b"1")
    server.exchange()
    queued = server.client.call(INFER, b"2")
    server.client.connection_lost()
    replies = {e.stream: (e.kind, e.code, e.nothing_ran) for e in server.client.events()}
    assert replies == {
        sent: ("reply", UNAVAILABLE, False),
        queued: ("reply", UNAVAILABLE, True),
    }
    assert server.client.call(INFER, b"3") == 0
    assert server.client.finished()
    server.client.connection_lost()
    assert server.client.events() == []


def test_illegal_http2_of_a_server_ends_the_connection() -> None:
    server, stream = called()
    server.client.feed(http2_frame(0, 0, stream + 100, b"data on an idle stream"))
    server.client.pull()
    assert server.client.finished()
    server.client.connection_lost()
    assert [event.code for event in server.client.events()] == [UNAVAILABLE]
