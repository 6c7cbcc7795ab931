"""The data plane's end: refuse new work, finish what was admitted, say when it is done."""

from __future__ import annotations

import time

import grpc
import h2.events
import numpy as np

from tests.dataplane import DataPlane, wait_until
from tests.wire.calls import (
    Stub,
    connected,
    error_info,
    error_of,
    infer_error,
    infer_request,
    output,
    pushback_ms,
    rows,
)
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import RawClient


def test_admitted_work_is_finished_and_new_work_refused(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    first = fake.occupy(stub)
    queued = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(10)]
    plane.wait_queued(10)
    plane.drain(deadline_ms=20_000)
    wait_until(lambda: plane.snapshot().draining, "it drains")
    with connected(plane.address) as late:
        error = infer_error(late, infer_request(rows(1)), timeout=30)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error_info(error).reason == "DRAINING"
    assert pushback_ms(error) == 1000
    fake.release()
    np.testing.assert_array_equal(output(first.result()), rows(7777.0))
    for n, call in enumerate(queued):
        np.testing.assert_array_equal(output(call.result()), rows(n))
    assert plane.wait_drained().unanswered_requests == 0
    assert plane.counters()["completed"] == 11


def test_connections_get_goaway_and_close_when_their_streams_are_done(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    with connected(plane.address) as idle, RawClient(plane.address) as observer:
        idle.ModelInfer(infer_request(rows(1)), timeout=30)
        call = fake.occupy(stub)
        assert plane.snapshot().client_connections == 3
        plane.drain(deadline_ms=20_000)
        observer.wait_for(h2.events.ConnectionTerminated)
        wait_until(lambda: plane.snapshot().client_connections == 2, "the idle one is closed")
    fake.release()
    np.testing.assert_array_equal(output(call.result()), rows(7777.0))
    wait_until(lambda: plane.snapshot().client_connections == 0, "the other one is closed")
    assert plane.wait_drained().unanswered_requests == 0


def test_what_is_left_at_the_deadline_is_answered(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    calls = [fake.occupy(stub)]
    calls += [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(4)]
    plane.wait_queued(4)
    started = time.monotonic()
    plane.drain(deadline_ms=300)
    assert plane.wait_drained().unanswered_requests == 5
    assert 0.3 <= time.monotonic() - started < 20, "long before the calls end by themselves"
    for call in calls:
        error = error_of(call)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "DRAINING"
    fake.release()


def test_an_idle_data_plane_is_drained_at_once(stub: Stub, plane: DataPlane) -> None:
    stub.ModelInfer(infer_request(rows(1)), timeout=30)
    started = time.monotonic()
    plane.drain(deadline_ms=60_000)
    assert plane.wait_drained().unanswered_requests == 0
    assert time.monotonic() - started < 20
