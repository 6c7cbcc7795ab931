"""Which connection of a backend a call takes: not one that is still sending a large message."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from scheduler._native import http2
from scheduler._native.gateway import Gateway
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import identity_model
from tests.unit.gateway.shell import Loop, Timer, Transport
from tests.unit.http2.peers import INFER, ROUTES
from tests.wire.calls import infer_request, rows

pytestmark = pytest.mark.native

ADDRESS = "backend:8001"
LARGE_FLOATS = 1 << 18  # 1 MiB: it fits the window of a client's stream
SMALL_REQUESTS = 6


class Backend:
    """One connection to a backend, and the models of the requests that came on it."""

    def __init__(self, gateway: Gateway) -> None:
        self.session = http2.ServerSession(ROUTES, stream_window_bytes=8 << 20)
        self.transport = Transport()
        self.protocol = gateway.backend_protocol(0, ADDRESS, lambda: None)
        self.protocol.connection_made(self.transport)
        self.models: list[str] = []

    def pump(self) -> None:
        self.session.feed(self.transport.written)
        self.transport.written = b""
        for event in self.session.events():
            self.models.append(pb_request(event.message).model_name)
        answer = self.session.pull()
        if answer:
            buffer = self.protocol.get_buffer(-1)
            buffer[: len(answer)] = answer
            self.protocol.buffer_updated(len(answer))


def pb_request(message: bytes) -> object:
    return type(infer_request(rows(1))).FromString(message)


@pytest.fixture
def gateway() -> Iterator[tuple[Loop, Gateway]]:
    loop = Loop()
    counters = os.memfd_create("counters")
    made = Gateway(loop, Timer(), counters, lambda *_: None)
    models = [identity_model(0, "large", dims=(-1,)), identity_model(1, "small")]
    for model in models:
        model.placements[0].instances = SMALL_REQUESTS
    wanted = pb.Backend(index=0, address=ADDRESS, connections=2, state=pb.BACKEND_STATE_SERVING)
    assert made.apply(pb.Apply(generation=1, models=models, backends=[wanted])) == ""
    yield loop, made
    os.close(counters)


def test_small_calls_keep_off_a_connection_that_sends_a_large_one(
    gateway: tuple[Loop, Gateway],
) -> None:
    loop, made = gateway
    backends = [Backend(made), Backend(made)]
    transport, session = Transport(), http2.ClientSession()
    client = made.client_protocol()
    client.connection_made(transport)

    def turn() -> None:
        session.feed(transport.written)
        transport.written = b""
        while data := session.pull():
            while data:
                buffer = client.get_buffer(-1)
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                client.buffer_updated(size)
                data = data[size:]
        for _ in range(4):
            loop.run()

    for _ in range(4):
        turn()
        for backend in backends:
            backend.pump()
    for backend in backends:
        backend.protocol.pause_writing()
    large = infer_request(rows(1, 1, LARGE_FLOATS), model="large")
    session.call(INFER, large.SerializeToString())
    for _ in range(8):
        turn()
    for number in range(SMALL_REQUESTS):
        session.call(INFER, infer_request(rows(number), model="small").SerializeToString())
        turn()

    for backend in backends:
        backend.protocol.resume_writing()
    for _ in range(16):
        turn()
        for backend in backends:
            backend.pump()
    assert sorted(backend.models for backend in backends) == [
        ["large"],
        ["small"] * SMALL_REQUESTS,
    ]
