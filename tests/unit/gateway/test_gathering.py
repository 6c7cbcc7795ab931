"""Fast replies of a decoupled model are gathered: the loop sleeps a little between its turns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from scheduler._native import http2
from scheduler._native.counters import CountersPage
from scheduler._native.gateway import Gateway
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import identity_model
from tests.unit.gateway.shell import Loop, Timer, Transport
from tests.unit.http2.peers import INFER, STREAM_INFER, STREAM_ROUTES
from tests.wire.calls import infer_request, rows

pytestmark = pytest.mark.native

ADDRESS = "backend:8001"
# In one turn: however slowly this machine turns, they come fast, one after another.
MANY = 400
# One turn of a few replies is short enough that a sleep is left, unless others hold it up.
TRIES = 100


class Peer:
    """What a session in memory and the protocol of the gateway send to each other."""

    def __init__(self, session: http2.ClientSession | http2.ServerSession, protocol: Any) -> None:
        self.session = session
        self.protocol = protocol
        self.transport = Transport()
        protocol.connection_made(self.transport)

    def exchange(self) -> list[http2.Event]:
        self.session.feed(self.transport.written)
        self.transport.written = b""
        events = self.session.events()
        while data := self.session.pull():
            rest = memoryview(data)
            while rest:
                buffer = self.protocol.get_buffer(-1)
                size = min(len(buffer), len(rest))
                buffer[:size] = rest[:size]
                self.protocol.buffer_updated(size)
                rest = rest[size:]
        return events


class World:
    """A client with one stream, a backend with one decoupled and one plain model."""

    def __init__(self, counters_fd: int) -> None:
        self.loop = Loop()
        gateway = Gateway(self.loop, Timer(), counters_fd, lambda *_: None)
        streaming = identity_model(0, "streaming", merge=False, direct_max=8)
        streaming.decoupled = True
        backend = pb.Backend(
            index=0, address=ADDRESS, connections=1, state=pb.BACKEND_STATE_SERVING
        )
        models = [streaming, identity_model(1, "plain")]
        assert gateway.apply(pb.Apply(generation=1, models=models, backends=[backend])) == ""
        self.client_session = http2.ClientSession()
        self.backend_session = http2.ServerSession(STREAM_ROUTES)
        self.client = Peer(self.client_session, gateway.client_protocol())
        backend_protocol = gateway.backend_protocol(0, ADDRESS, lambda: None)
        self.backend = Peer(self.backend_session, backend_protocol)
        self.asked: list[tuple[int, str]] = []  # at the backend: stream and id
        self.replies = 0
        self._page = CountersPage(counters_fd)
        for _ in range(4):
            self.turn()
        self.stream = self.client_session.open_stream(STREAM_INFER)

    @property
    def gathered_ns(self) -> int:
        return self._page.page()["loop_gathering_ns"]

    def turn(self) -> None:
        self.client.exchange()
        self.backend.exchange()
        self.loop.run()
        for event in self.client.exchange():
            self.replies += event.kind == "message"
        for event in self.backend.exchange():
            if event.kind == "message":
                request = service_pb2.ModelInferRequest.FromString(event.message)
                self.asked.append((event.stream, request.id))

    def ask(self) -> None:
        request = infer_request(rows(1), model="streaming").SerializeToString()
        self.client_session.send(self.stream, request)

    def answer(self, count: int, *, last: bool = False) -> None:
        """So many replies to the oldest request come at once."""
        stream, identifier = self.asked.pop(0) if last else self.asked[0]
        reply = service_pb2.ModelStreamInferResponse()
        reply.infer_response.model_name = "streaming"
        reply.infer_response.id = identifier
        reply.infer_response.outputs.add(name="OUTPUT0", datatype="FP32", shape=[1, 16])
        for number in range(count):
            if last and number == count - 1:
                final = reply.infer_response.parameters["triton_final_response"]
                final.bool_param = True
            self.backend_session.send(stream, reply.SerializeToString())


@pytest.fixture
def world() -> Iterator[World]:
    counters = os.memfd_create("counters")
    made = World(counters)
    made.ask()
    for _ in range(4):
        made.turn()
    assert len(made.asked) == 1
    yield made
    os.close(counters)


def come_fast(world: World) -> None:
    """Many replies and then one: there is time left to wait for others."""
    for count in (MANY,) * 16 + (1,):
        world.answer(count)
        world.turn()


def test_fast_replies_are_gathered_and_all_of_them_arrive(world: World) -> None:
    tries = 0
    while world.gathered_ns == 0:
        tries += 1
        assert tries <= TRIES, "the loop never slept"
        come_fast(world)
    assert world.replies == tries * (16 * MANY + 1)


def test_nothing_is_gathered_while_a_plain_request_may_wait(world: World) -> None:
    plain = infer_request(rows(1), model="plain").SerializeToString()
    for _ in range(20):
        come_fast(world)
        before = world.gathered_ns
        # In the turn of the request, and in those soon after it.
        world.client_session.call(INFER, plain)
        world.answer(1)
        world.turn()
        assert world.gathered_ns == before


@pytest.mark.parametrize(("requests", "replies"), [(4, 1), (1, 20)])
def test_nothing_is_gathered_where_a_request_may_come_at_once(
    world: World, requests: int, replies: int
) -> None:
    for _ in range(requests - 1):
        world.ask()
    world.turn()
    for _ in range(50):
        for _ in range(requests):
            world.answer(replies, last=True)
            world.ask()
        world.turn()
        assert len(world.asked) == requests
    assert world.gathered_ns == 0
