"""A backend on the level of HTTP/2 frames, for replies that no gRPC server would send."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes

from tests.wire.raw_client import grpc_message

OK_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK_TRAILERS = [("grpc-status", "0")]


class H2Backend:
    """Calls `on_request(connection, stream, message)` for every whole request it gets.

    `connection` is an H2Connection; what it has to send is sent after the callback. The callback
    may return False to close the TCP connection then.
    """

    def __init__(
        self,
        on_request: Callable[[h2.connection.H2Connection, int, bytes], bool | None],
        *,
        streams_max: int = 100,
        at_messages: bool = False,
    ) -> None:
        self._on_request = on_request
        self._streams_max = streams_max
        # on_request is called for a message of an open stream, too.
        self._at_messages = at_messages
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self.opened = 0
        self.resets = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> H2Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                self._connections.append(accepted)
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        config = h2.config.H2Configuration(
            client_side=False, validate_outbound_headers=False, header_encoding="utf-8"
        )
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: self._streams_max})
        paths: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        with contextlib.suppress(OSError), peer:
            peer.sendall(connection.data_to_send())
            while data := peer.recv(1 << 16):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        paths[event.stream_id] = dict(event.headers)[":path"]
                        bodies[event.stream_id] = b""
                        self.opened += not paths[event.stream_id].endswith("ServerLive")
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] += event.data
                        connection.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                        if self._at_messages:
                            self._on_request(connection, event.stream_id, b"")
                    elif isinstance(event, h2.events.StreamReset):
                        self.resets += 1
                    elif isinstance(event, h2.events.StreamEnded):
                        stream = event.stream_id
                        if paths[stream].endswith("ServerLive"):
                            answer(connection, stream, b"\x08\x01")
                            continue
                        self.requests += 1
                        if self._on_request(connection, stream, bodies[stream][5:]) is False:
                            peer.sendall(connection.data_to_send())
                            return
                peer.sendall(connection.data_to_send())


def answer(connection: h2.connection.H2Connection, stream: int, reply: bytes) -> None:
    """A whole OK reply."""
    connection.send_headers(stream, OK_HEADERS)
    connection.send_data(stream, grpc_message(reply))
    connection.send_headers(stream, OK_TRAILERS, end_stream=True)
