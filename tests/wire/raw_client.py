"""An HTTP/2 client that does what good clients do not: single frames, half messages, no reading.

with RawClient(plane.address) as client:
    stream = client.request_headers()
    client.send_data(stream, b"\\0\\0\\0\\0\\5he")     # the message never ends
    client.vanish()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.events

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
ANSWER_TIMEOUT_S = 30.0


def grpc_message(payload: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(payload)) + payload


class Closed(Exception):
    """The server closed the connection."""


class RawClient:
    """One connection; `h2` frames what is legal, `send_raw` sends the rest."""

    def __init__(self, address: str, *, receive_buffer_bytes: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(ANSWER_TIMEOUT_S)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def vanish(self) -> None:
        """Closes with RST, as a client that was killed with unread data does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def flush(self) -> None:
        self.send_raw(self.h2.data_to_send())

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request_headers(
        self, *extra: tuple[str, str], path: str = INFER_PATH, end_stream: bool = False
    ) -> int:
        """Opens a stream and returns its id."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *extra,
        ]
        self.h2.send_headers(stream, headers, end_stream=end_stream)
        self.flush()
        return int(stream)

    def send_data(self, stream: int, data: bytes, *, end_stream: bool = False) -> None:
        """As many frames as it takes; waits for windows."""
        while True:
            window = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if window == 0:
                self.receive()
                continue
            piece, data = data[:window], data[window:]
            self.h2.send_data(stream, piece, end_stream=end_stream and not data)
            self.flush()
            if not data:
                return

    def infer(self, request: Any, *extra: tuple[str, str]) -> int:
        """Sends a whole request."""
        stream = self.request_headers(*extra)
        self.send_data(stream, grpc_message(request.SerializeToString()), end_stream=True)
        return stream

    def receive(self) -> None:
        """Reads once. Raises Closed at the end of the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed
        self.events += self.h2.receive_data(data)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.flush()  # there may be more to read from a server that has closed

    def read_to_the_end(self) -> None:
        """Reads until the server closes."""
        with contextlib.suppress(Closed):
            while True:
                self.receive()

    def wait_for(self, kind: type[h2.events.Event], stream: int | None = None) -> Any:
        """The first event of that kind (of that stream), read or still to come."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            for event in self.events:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    self.events.remove(event)
                    return event
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            self.receive()

    def trailers(self, stream: int) -> dict[str, str]:
        """Waits for the end of the stream; the headers and trailers it had."""
        self.wait_for(h2.events.StreamEnded, stream)
        found: dict[str, str] = {}
        for event in self.events:
            if getattr(event, "stream_id", None) == stream:
                headers = getattr(event, "headers", None) or ()
                found.update(dict(headers))
        return found

    def data(self, stream: int) -> bytes:
        """What DATA of the stream was read so far."""
        return b"".join(
            event.data or b""
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
        )
