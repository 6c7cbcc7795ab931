"""Peers of the gRPC sessions in memory: our own client, and an independent one on hyper-h2."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events

from scheduler._native import http2

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
STREAM_TEXT = "ModelStreamInfer is not implemented"
ROUTES = ((INFER, "unary", ""), (STREAM_INFER, "unimplemented", STREAM_TEXT))
STREAM_ROUTES = ((INFER, "unary", ""), (STREAM_INFER, "message_stream", ""))

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED = range(5)
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame_message(message: bytes, flag: int = 0) -> bytes:
    """`message` with gRPC's five-byte prefix."""
    return struct.pack(">BI", flag, len(message)) + message


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One raw HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of every frame in `data`."""
    frames = []
    while data:
        size = int.from_bytes(data[:3], "big")
        frames.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return frames


def server(**options: Any) -> http2.ServerSession:
    """A server session of the routes above."""
    return http2.ServerSession(ROUTES, **options)


@dataclass
class Pair:
    """Our client and our server, connected."""

    client: http2.ClientSession
    server: http2.ServerSession
    now: int = 0
    client_events: list[http2.Event] = field(default_factory=list)
    server_events: list[http2.Event] = field(default_factory=list)

    def step(self) -> bool:
        """Carries what both sides want to write; whether anything moved."""
        up = self.client.pull()
        if up:
            self.server.feed(up, self.now)
        self.server_events += self.server.events()
        down = self.server.pull()
        if down:
            self.client.feed(down, self.now)
        self.client_events += self.client.events()
        return bool(up or down or self.server.has_events())

    def pump(self) -> None:
        """Until nothing moves any more."""
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("the sessions never fall silent")

    def take_server(self) -> list[http2.Event]:
        taken, self.server_events = self.server_events, []
        return taken

    def take_client(self) -> list[http2.Event]:
        taken, self.client_events = self.client_events, []
        return taken


def connect(
    server: http2.ServerSession | None = None, client: http2.ClientSession | None = None
) -> Pair:
    """A pair whose SETTINGS are exchanged."""
    pair = Pair(client or http2.ClientSession(), server or http2.ServerSession(ROUTES))
    pair.pump()
    return pair


@dataclass
class Answer:
    """What an h2 client has received on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def grpc_status(self) -> int | None:
        text = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if text is None else int(text)

    @property
    def grpc_message(self) -> str:
        return self.trailers.get("grpc-message", self.headers.get("grpc-message", ""))

    @property
    def message(self) -> bytes:
        """The one message of the answer."""
        flag, size = struct.unpack(">BI", self.data[:5])
        assert flag == 0
        assert size == len(self.data) - 5
        return self.data[5:]


class H2Client:
    """hyper-h2 as a gRPC client of one of our server sessions."""

    def __init__(self, server: http2.ServerSession, *, validate: bool = True) -> None:
        self.server = server
        self.now = 0
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=validate,
            normalize_outbound_headers=validate,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.goaway: int | None = None
        self.alive = True
        self.acknowledge = True
        self.h2.initiate_connection()
        self.exchange()

    def headers(
        self, path: str = INFER, extra: Iterable[tuple[str, str]] = (), method: str = "POST"
    ) -> list[tuple[str, str]]:
        return [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *extra,
        ]

    def open(
        self,
        path: str = INFER,
        extra: Iterable[tuple[str, str]] = (),
        *,
        end_stream: bool = False,
        method: str = "POST",
    ) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, self.headers(path, extra, method), end_stream=end_stream)
        return stream

    def send(self, stream: int, data: bytes, end_stream: bool = False) -> None:
        """All of `data`, in frames, as far as the windows allow; the rest is an error."""
        size = self.h2.max_outbound_frame_size
        for start in range(0, len(data), size):
            self.h2.send_data(stream, data[start : start + size])
        if end_stream:
            self.h2.end_stream(stream)

    def request(self, message: bytes, extra: Iterable[tuple[str, str]] = ()) -> int:
        stream = self.open(extra=extra)
        self.send(stream, frame_message(message), end_stream=True)
        return stream

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
                continue
            stream = getattr(event, "stream_id", None)
            if not stream:
                continue
            answer = self.answers[stream]
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers.update((str(n), str(v)) for n, v in event.headers)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers.update((str(n), str(v)) for n, v in event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data
                if self.acknowledge:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = event.error_code

    def exchange(self, handle: Callable[[http2.Event], None] | None = None) -> list[http2.Event]:
        """Carries bytes both ways until nothing moves; `handle` sees events as they come."""
        events: list[http2.Event] = []
        for _ in range(10_000):
            up = self.h2.data_to_send()
            if up and not self.server.feed(up, self.now):
                self.alive = False
            for event in self.server.events():
                events.append(event)
                if handle is not None:
                    handle(event)
            down = self.server.pull()
            if down:
                self.receive(down)
            if not up and not down and not self.server.has_events():
                return events
        raise AssertionError("the sessions never fall silent")


def answer_with(server: http2.ServerSession, reply: bytes) -> Callable[[http2.Event], None]:
    """A handler that answers every request with `reply` and releases its bytes."""

    def handle(event: http2.Event) -> None:
        if event.kind == "request":
            server.answer(event.stream, reply)
            server.release(event)

    return handle


def refused(client: H2Client, stream: int) -> tuple[int | None, str]:
    """Status and text of the answer to `stream`, of which the server announced nothing."""
    events = client.exchange()
    assert events == []
    answer = client.answers[stream]
    assert answer.ended
    return answer.grpc_status, answer.grpc_message


def streaming(budget: http2.ByteBudget | None = None, **options: Any) -> http2.ServerSession:
    return http2.ServerSession(STREAM_ROUTES, budget=budget, **options)


def opened(pair: Pair, *messages: bytes, half_close: bool = False) -> int:
    """A stream of `messages`; everything has arrived."""
    stream = pair.client.open_stream(STREAM_INFER)
    for message in messages:
        pair.client.send(stream, message)
    if half_close:
        pair.client.half_close(stream)
    pair.pump()
    return stream


def kinds(events: list[http2.Event]) -> list[str]:
    return [event.kind for event in events]


def released(pair: Pair, events: list[http2.Event]) -> list[bytes]:
    """The messages among `events`, whose bytes are given back."""
    messages = [event for event in events if event.kind == "message"]
    for event in messages:
        pair.server.release(event)
    return [event.message for event in messages]
