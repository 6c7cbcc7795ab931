"""Replies of which a stream ends early: whether the backend is to blame, and rests for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from scheduler._native import http2
from scheduler._native.gateway import Gateway
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import identity_model
from tests.unit.gateway.shell import Loop, Timer, Transport
from tests.unit.http2.peers import INFER, STREAM_INFER, STREAM_ROUTES
from tests.wire.calls import infer_request, rows
from tests.wire.fake_triton import Request, identity, values_of

pytestmark = pytest.mark.native

INTERNAL_ERROR, CANCEL = 2, 8
OK, DEADLINE_EXCEEDED, INTERNAL = 0, 4, 13
CALLS = 3
TIMEOUT_NS = 500_000_000
POISON = -1000.0


def address(backend: int) -> str:
    return f"backend-{backend}:8001"


class World:
    """A client and backends that the test moves by hand."""

    def __init__(self, loop: Loop, gateway: Gateway, backends: int) -> None:
        self.loop = loop
        self.client_side = http2.ClientSession()
        self.backend_sides = [http2.ServerSession(STREAM_ROUTES) for _ in range(backends)]
        protocols = [
            gateway.client_protocol(),
            *(gateway.backend_protocol(i, address(i), lambda: None) for i in range(backends)),
        ]
        sessions = (self.client_side, *self.backend_sides)
        self.peers = [(s, Transport(), p) for s, p in zip(sessions, protocols, strict=True)]
        for _, transport, protocol in self.peers:
            protocol.connection_made(transport)
        self.requests: list[int] = []
        self.messages: list[bytes] = []  # of each request
        self.asked: list[http2.ServerSession] = []  # of each request
        self.replies: list[http2.Event] = []

    @property
    def backend_side(self) -> http2.ServerSession:
        return self.asked[-1]

    def turn(self) -> None:
        for session, transport, protocol in self.peers:
            session.feed(transport.written)
            transport.written = b""
            for event in session.events():
                if session is self.client_side:
                    if event.kind in ("reply", "message"):
                        self.replies.append(event)
                elif event.kind in ("request", "message"):
                    self.requests.append(event.stream)
                    self.messages.append(event.message)
                    self.asked.append(session)
            while data := session.pull(4096):
                protocol.get_buffer(-1)[: len(data)] = data
                protocol.buffer_updated(len(data))
        for _ in range(4):
            self.loop.run()

    def call(self, timeout_ns: int | None = None, value: float = 1.0) -> None:
        self.client_side.call(INFER, infer_request(rows(value)).SerializeToString(), timeout_ns)

    def until(self, happened: Callable[[], object]) -> None:
        until = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < until
            self.turn()

    def serve(self, replies: int) -> None:
        """Resets what is poisoned and answers the rest, until there are so many replies."""
        served = len(self.requests)

        def all_served() -> bool:
            nonlocal served
            for i in range(served, len(self.requests)):
                served += 1
                request = Request.FromString(self.messages[i])
                if (values_of(request) == POISON).any():
                    self.asked[i].reset(self.requests[i], INTERNAL_ERROR)
                else:
                    self.asked[i].answer(self.requests[i], identity(request).SerializeToString())
            return len(self.replies) >= replies

        self.until(all_served)


def made_world(model: pb.Model, backends: int = 1) -> Iterator[World]:
    loop = Loop()
    counters = os.memfd_create("counters")
    gateway = Gateway(loop, Timer(), counters, lambda *_: None)
    serving = pb.BACKEND_STATE_SERVING
    wanted = [
        pb.Backend(index=i, address=address(i), connections=1, state=serving)
        for i in range(backends)
    ]
    assert gateway.apply(pb.Apply(generation=1, models=[model], backends=wanted)) == ""
    world = World(loop, gateway, backends)
    for _ in range(4):
        world.turn()
    yield world
    os.close(counters)


@pytest.fixture
def world() -> Iterator[World]:
    yield from made_world(identity_model(cancellable=True))


@pytest.fixture
def streaming_world() -> Iterator[World]:
    model = identity_model(merge=False, direct_max=8, backends=(0, 1))
    model.decoupled = True
    yield from made_world(model, backends=2)


def assert_served_at_once(world: World) -> None:
    """A backend that rests is asked nothing."""
    before = len(world.requests)
    world.call()
    for _ in range(8):
        world.turn()
    assert len(world.requests) == before + 1


def test_a_reply_that_we_reset_is_no_lost_call(world: World) -> None:
    too_many = [(f"x-{i}", "v" * 1000) for i in range(70)]
    for number in range(CALLS):
        world.call()
        world.until(lambda n=number: len(world.requests) == n + 1)
        world.backend_side.answer(world.requests[-1], b"", headers=too_many)
        world.until(lambda n=number: len(world.replies) == n + 1)
    # Sent again, such a reply would come again.
    assert len(world.requests) == CALLS
    assert {reply.code for reply in world.replies} == {INTERNAL}
    assert_served_at_once(world)


def test_a_backend_that_resets_at_the_deadline_does_not_rest(world: World) -> None:
    for number in range(CALLS):
        deadline_ns = time.monotonic_ns() + TIMEOUT_NS
        world.call(TIMEOUT_NS)
        world.until(lambda n=number: len(world.requests) == n + 1)
        while time.monotonic_ns() < deadline_ns:
            pass
        world.backend_side.reset(world.requests[-1], CANCEL)
        world.until(lambda n=number: len(world.replies) == n + 1)
    assert {reply.code for reply in world.replies} == {DEADLINE_EXCEEDED}
    assert_served_at_once(world)


def test_a_request_that_a_backend_resets_takes_no_others_along(world: World) -> None:
    world.call(value=7.0)  # what waits for the slot is merged
    world.until(lambda: world.requests)
    for value in (1.0, 2.0, 3.0, POISON):
        world.call(value=value)
    for _ in range(8):
        world.turn()
    first = Request.FromString(world.messages[0])
    world.asked[0].answer(world.requests[0], identity(first).SerializeToString())
    world.serve(replies=5)
    assert sorted(reply.code for reply in world.replies) == [OK] * 4 + [INTERNAL]
    # All of them twice, for it may be the backend; then 2 + 2 and 1 + 1.
    assert len(world.requests) == 1 + 2 + 4
    assert_served_at_once(world)


def test_requests_that_their_only_backend_resets_delay_no_others(world: World) -> None:
    for number in range(CALLS):
        world.call(value=POISON)
        world.serve(replies=number + 1)
    assert {reply.code for reply in world.replies} == {INTERNAL}
    assert len(world.requests) == 2 * CALLS
    assert_served_at_once(world)


def test_a_streamed_request_that_a_backend_resets_before_it_replied_goes_to_another(
    streaming_world: World,
) -> None:
    world = streaming_world
    stream = world.client_side.open_stream(STREAM_INFER)
    world.client_side.send(stream, infer_request(rows(1)).SerializeToString())
    world.until(lambda: len(world.asked) == 1)
    world.backend_side.reset(world.requests[-1], INTERNAL_ERROR)
    world.until(lambda: len(world.asked) == 2 or world.replies)
    assert world.replies == []
    assert world.asked[0] is not world.asked[1]
