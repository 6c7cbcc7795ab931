"""A turn of the loop reads a bounded part of what one connection brings, and then serves others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from scheduler._native import http2
from scheduler._native.gateway import Gateway
from tests.unit.gateway.shell import Loop, Timer, Transport
from tests.unit.http2.peers import INFER

pytestmark = pytest.mark.native

TURN_READ_BYTES = 256 << 10
ONE_READ_BYTES_MAX = 256 << 10


class Client:
    """A client session whose bytes the gateway reads as a loop would let it."""

    def __init__(self, gateway: Gateway) -> None:
        self.session = http2.ClientSession()
        self.transport = Transport()
        self.protocol = gateway.client_protocol()
        self.protocol.connection_made(self.transport)
        self.pending = b""

    def arrive(self) -> int:
        """Everything there is to read now, until reading is paused. Returns the bytes read."""
        self.session.feed(self.transport.written)
        self.transport.written = b""
        while data := self.session.pull():
            self.pending += data
        read = 0
        while self.pending and not self.transport.paused:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(self.pending))
            buffer[:size] = self.pending[:size]
            self.protocol.buffer_updated(size)
            self.pending = self.pending[size:]
            read += size
        return read

    def replies(self) -> list[http2.Event]:
        self.session.feed(self.transport.written)
        self.transport.written = b""
        return [event for event in self.session.events() if event.kind == "reply"]


@pytest.fixture
def served() -> Iterator[tuple[Loop, Gateway]]:
    loop = Loop()
    counters = os.memfd_create("counters")
    gateway = Gateway(loop, Timer(), counters, lambda *_: None)
    yield loop, gateway
    os.close(counters)


def connect(loop: Loop, gateway: Gateway) -> Client:
    client = Client(gateway)
    for _ in range(4):
        loop.run()
        client.arrive()
    return client


def test_a_large_message_comes_in_turns_between_which_others_are_answered(
    served: tuple[Loop, Gateway],
) -> None:
    loop, gateway = served
    large, small = connect(loop, gateway), connect(loop, gateway)
    size = 4 << 20
    large.session.call(INFER, b"\x0a\x01m" + b"\x3a\xfd\xff\xff\x01" + bytes(size))
    received, turns, answered = 0, 0, 0
    while received < size:
        read = large.arrive()
        assert 0 < read < TURN_READ_BYTES + ONE_READ_BYTES_MAX
        received += read
        small.session.call(INFER, b"\x0a\x01n")
        small.arrive()
        loop.run()
        # Whatever the large message still waits for, the small one has its answer.
        answered += len(small.replies())
        turns += 1
        assert answered == turns
        assert not large.transport.paused
    assert turns >= size // (TURN_READ_BYTES + ONE_READ_BYTES_MAX)
    assert large.transport.pauses > 0
    assert small.transport.pauses == 0


def test_the_bound_is_exact(served: tuple[Loop, Gateway]) -> None:
    loop, gateway = served
    client = connect(loop, gateway)
    client.session.call(INFER, bytes(900_000))
    client.session.feed(client.transport.written)
    wire = b""
    while data := client.session.pull():
        wire += data

    def read(size: int) -> None:
        nonlocal wire
        while size:
            buffer = client.protocol.get_buffer(-1)
            part = min(len(buffer), size)
            buffer[:part] = wire[:part]
            client.protocol.buffer_updated(part)
            wire, size = wire[part:], size - part

    read(TURN_READ_BYTES - 1)
    assert not client.transport.paused
    read(1)
    assert client.transport.paused
    loop.run()
    assert not client.transport.paused
    read(TURN_READ_BYTES - 1 if len(wire) >= TURN_READ_BYTES else len(wire))
    assert client.transport.pauses == 1
