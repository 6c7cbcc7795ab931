"""Thousands of connections, whatever limit of open files the process was started with."""

from __future__ import annotations

import contextlib
import shutil
import socket
from contextlib import ExitStack

import numpy as np
import psutil
import pytest

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.proxy import Proxy

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
IDLE = 600

pytestmark = pytest.mark.skipif(shutil.which("prlimit") is None, reason="no prlimit (util-linux)")


def open_idle(stack: ExitStack, plane: DataPlane, count: int) -> list[socket.socket]:
    """Connections that say hello and nothing more."""
    idle = []
    for _ in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", plane.port), 10))
        one.sendall(PREFACE)
        idle.append(one)
    return idle


def test_the_soft_limit_of_open_files_is_raised(fake: FakeTriton) -> None:
    hard = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)[1]
    with DataPlane(open_files=f"256:{hard}") as plane, ExitStack() as stack:
        plane.apply([identity_model()], [fake.address])
        open_idle(stack, plane, IDLE)
        wait_until(lambda: plane.snapshot().client_connections == IDLE, "all are connected")


def test_a_hard_limit_leaves_files_for_the_backends(fake: FakeTriton) -> None:
    """More clients than files: some are turned away, and a lost backend is dialled again."""
    with (
        Proxy(fake.address) as wire,
        DataPlane(open_files="512:512") as plane,
        ExitStack() as stack,
        connected(plane.address) as stub,
    ):
        plane.apply([identity_model()], [wire.address])
        assert "connections_max 10000 is cut to 256" in plane.stderr()
        stub.ModelInfer(infer_request(rows(1)), timeout=30)
        idle = open_idle(stack, plane, IDLE)
        wait_until(lambda: plane.snapshot().client_connections == 256, "the limit is reached")
        with contextlib.suppress(ConnectionResetError):
            assert idle[-1].recv(1 << 16) == b"", "it is turned away at once"
        wire.cut()
        wire.restore()
        wait_until(lambda: plane.snapshot().backends[0].connections_open == 1, "it is back")
        response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(2))


def test_an_idle_connection_costs_little_memory_and_no_time(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model()], [fake.address])
    process = psutil.Process(plane.process.pid)
    with ExitStack() as stack:
        open_idle(stack, plane, 50)
        wait_until(lambda: plane.snapshot().client_connections == 50, "the first are connected")
        before = process.memory_info().rss
        open_idle(stack, plane, IDLE)
        wait_until(lambda: plane.snapshot().client_connections == 50 + IDLE, "all are connected")
        grown = (process.memory_info().rss - before) / IDLE
        assert grown < 64 * 1024 or "asan" in str(process.environ().get("LD_PRELOAD"))
        wait_until(lambda: plane.turns_of_a_snapshot() < 5, "nothing turns for idle connections")
