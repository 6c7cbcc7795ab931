"""A large request comes in small portions while small ones come on any connection."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from scheduler._native import http2
from scheduler._native.gateway import Gateway
from tests.unit.gateway.shell import Loop, Timer, Transport
from tests.unit.http2.peers import INFER

pytestmark = pytest.mark.native

PORTION_BYTES_MAX = (128 << 10) + (1 << 10)
LARGE = b"\x0a\x05large" + b"\x3a\x80\x80\x80\x04" + bytes(8 << 20)
# Comes as fast as it would alone.
UNPACED_BYTES = 9 << 18
SMALL = b"\x0a\x05small"
# What comes more slowly than 250 MB/s is not paced: of these one is not held up by other processes.
TRIES = 200


class Client:
    """A client of the gateway whose bytes are read as soon as they are sent."""

    def __init__(self, loop: Loop, gateway: Gateway) -> None:
        self.loop = loop
        self.session = http2.ClientSession()
        self.transport = Transport()
        self.protocol = gateway.client_protocol()
        self.protocol.connection_made(self.transport)
        while self.exchange():
            pass

    def exchange(self) -> int:
        """What may be sent now reaches the gateway, which has its turn. Returns the bytes."""
        sent = 0
        while data := self.session.pull():
            sent += len(data)
            rest = memoryview(data)
            while rest:
                buffer = self.protocol.get_buffer(-1)
                size = min(len(buffer), len(rest))
                buffer[:size] = rest[:size]
                self.protocol.buffer_updated(size)
                rest = rest[size:]
        self.loop.run()
        self.session.feed(self.transport.written)
        self.transport.written = b""
        return sent

    def send(self, message: bytes) -> list[int]:
        """Calls and returns the bytes of each portion."""
        self.session.call(INFER, message)
        portions = []
        while portion := self.exchange():
            portions.append(portion)
        return portions


@pytest.fixture
def served() -> Iterator[tuple[Loop, Gateway]]:
    loop = Loop()
    counters = os.memfd_create("counters")
    gateway = Gateway(loop, Timer(), counters, lambda *_: None)
    yield loop, gateway
    os.close(counters)


def test_a_large_request_beside_small_ones_comes_in_small_portions(
    served: tuple[Loop, Gateway],
) -> None:
    large, small = Client(*served), Client(*served)
    for _ in range(TRIES):
        small.send(SMALL)
        portions = large.send(LARGE)
        assert sum(portions) > len(LARGE)
        come = list(itertools.accumulate(portions))
        later = [n for n, so_far in zip(portions, come, strict=True) if so_far > UNPACED_BYTES]
        if max(later[1:]) <= PORTION_BYTES_MAX:
            return
    raise AssertionError("no large request was paced")


def test_large_requests_alone_come_in_large_portions(served: tuple[Loop, Gateway]) -> None:
    large, other = Client(*served), Client(*served)
    for _ in range(3):
        other.send(LARGE)
        assert max(large.send(LARGE)[1:]) > PORTION_BYTES_MAX
