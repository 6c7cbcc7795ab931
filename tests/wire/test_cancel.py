"""Requests that nobody waits for any more hold nothing: no queue place, no bytes, no slot."""

from __future__ import annotations

import os
import threading
import time

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import (
    Stub,
    connected,
    error_info,
    error_of,
    has_retry_delay,
    infer_request,
    output,
    pushback_ms,
    rows,
)
from tests.wire.fake_triton import FakeTriton, Request, Response, identity
from tests.wire.raw_client import RawClient

CANCELS_PER_S = 1000
# The whole half minute is for continuous integration: INFERSCHED_CANCEL_STORM_S=30.
STORM_S = float(os.environ.get("INFERSCHED_CANCEL_STORM_S", "3"))


def test_a_cancelled_request_leaves_the_queue(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    held_bytes = plane.snapshot().host_bytes
    calls = [stub.ModelInfer.future(infer_request(rows(n, 60)), timeout=30) for n in range(20)]
    plane.wait_queued(20)
    for call in calls[:19]:
        call.cancel()
    plane.wait_queued(1)
    snapshot = plane.snapshot()
    one = infer_request(rows(0, 60)).ByteSize()
    assert one <= snapshot.models[0].queued_bytes <= one + 5
    assert snapshot.models[0].queued_rows == 60
    # The records kept for it are charged as well.
    assert one < snapshot.host_bytes - held_bytes < one + 1024
    fake.release()
    np.testing.assert_array_equal(output(calls[19].result()), rows(19, 60))
    assert fake.batch_rows() == [1, 60]
    assert plane.counters()["outcomes"]["cancelled", "client_cancelled"] == 19


def test_a_cancelled_member_loses_its_answer_only(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(5)]
    plane.wait_queued(5)
    fake.release_held()
    wait_until(lambda: fake.batch_rows() == [1, 5], "the merged batch is out")
    calls[2].cancel()
    wait_until(lambda: plane.counters()["cancelled"] == 1, "the cancel arrived")
    fake.release()
    for n in (0, 1, 3, 4):
        np.testing.assert_array_equal(output(calls[n].result()), rows(n))


def test_a_running_batch_keeps_its_slot_until_the_reply(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    """Triton runs it to the end: a second batch beside it would only wait there."""
    call = fake.occupy(stub)
    call.cancel()
    wait_until(lambda: plane.counters()["cancelled"] == 1, "the cancel arrived")
    assert plane.counters()["in_flight"] == 0
    assert plane.snapshot().host_bytes == 0
    assert plane.model_snapshot().inflight_batches == 1
    later = stub.ModelInfer.future(infer_request(rows(2)), timeout=30)
    plane.wait_queued(1)
    assert fake.batch_rows() == [1]
    fake.release()
    np.testing.assert_array_equal(output(later.result()), rows(2))


def test_a_cancellable_model_is_reset_at_the_backend(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model(cancellable=True, staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.occupy(stub).cancel()
        wait_until(lambda: fake.cancelled == 1, "the backend is told")
        assert plane.model_snapshot().inflight_batches == 0
        later = stub.ModelInfer.future(infer_request(rows(2)), timeout=30)
        wait_until(lambda: len(fake.requests) == 2, "the slot is free")
        fake.release()
        np.testing.assert_array_equal(output(later.result()), rows(2))


def test_a_request_that_expires_in_the_queue_says_so(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    """By its own budget, so that the answer is ours and not made by the client."""
    fake.occupy(stub)
    request = infer_request(rows(1), parameters={"timeout": 150_000})
    error = error_of(stub.ModelInfer.future(request, timeout=30))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "Request timeout expired" in error.details()
    info = error_info(error)
    assert info.reason == "EXPIRED_IN_QUEUE"
    assert not has_retry_delay(error), "nothing is known of the model yet"
    assert pushback_ms(error) is None
    assert 150 <= int(info.metadata["queuedMs"]) < 20_000
    snapshot = plane.model_snapshot()
    assert (snapshot.queued_requests, snapshot.queued_bytes) == (0, 0)
    assert plane.counters()["outcomes"]["expired", "expired_in_queue"] == 1
    fake.release()


def test_a_grpc_deadline_frees_the_queue(stub: Stub, fake: FakeTriton, plane: DataPlane) -> None:
    fake.occupy(stub)
    calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=2) for n in range(50)]
    for call in calls:
        assert error_of(call).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    plane.wait_queued(0)
    wait_until(lambda: plane.counters()["in_flight"] == 1, "only the running one is left")
    counters = plane.counters()
    # A client that is slow lets some expire before it sends them.
    arrived = counters["admitted"] - 1 + counters["refused"]
    assert counters["expired"] + counters["cancelled"] + counters["refused"] == arrived
    assert 0 < arrived <= 50
    fake.release()
    np.testing.assert_array_equal(
        output(stub.ModelInfer(infer_request(rows(3)), timeout=30)), rows(3)
    )


def test_an_expired_request_in_flight_is_answered_at_its_deadline(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.hold()
    started = time.monotonic()
    request = infer_request(rows(1), parameters={"timeout": 200_000})
    error = error_of(stub.ModelInfer.future(request, timeout=30))
    elapsed_s = time.monotonic() - started
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info(error).reason == "EXPIRED_IN_FLIGHT"
    assert 0.2 <= elapsed_s < 20
    fake.release()


def test_the_objective_of_the_model_is_a_deadline(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model(slo_ns=150_000_000, staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(2)]
        codes = [error_of(call).code() for call in calls]
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        fake.release()
        plane.assert_balanced()
        stub.ModelInfer(infer_request(rows(2)), timeout=30)
    counters = plane.counters()
    assert (counters["slo_total"], counters["slo_good"]) == (3, 1)


def test_a_deadline_that_has_passed_is_refused_at_arrival(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    with RawClient(plane.address) as client:
        trailers = client.trailers(client.infer(infer_request(rows(1)), ("grpc-timeout", "0n")))
    assert trailers["grpc-status"] == "4"
    assert fake.requests == []
    assert plane.counters()["outcomes"]["refused", "deadline_infeasible"] == 1


def test_a_bad_timeout_header_is_refused(stub: Stub, plane: DataPlane) -> None:
    for text in ("1x", "S", "-1S"):
        with RawClient(plane.address) as client:
            trailers = client.trailers(client.infer(infer_request(rows(1)), ("grpc-timeout", text)))
        assert trailers["grpc-status"] not in ("0", "2"), text


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_cancels_a_second_disturb_nobody(plane: DataPlane, fake: FakeTriton) -> None:
    """On one connection: cancels of queued and running requests, and others that are answered.

    A machine that is too slow for so many takes longer for the same number.
    """

    def slow(request: Request, context: grpc.ServicerContext) -> Response:
        threading.Event().wait(0.005)
        return identity(request)

    fake.behaviour = slow
    model = identity_model(queue_requests_max=100_000, staged_batches_max=1)
    plane.apply([model], [fake.address], pb.Limits(streams_per_connection_max=100_000))
    answered = 0
    with connected(plane.address) as stub:
        started = time.monotonic()
        cancelled, wanted = 0, int(CANCELS_PER_S * STORM_S)
        kept: list[tuple[int, grpc.Future]] = []
        while cancelled < wanted:
            due = min(int((time.monotonic() - started) * CANCELS_PER_S), wanted)
            doomed = [
                stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
                for _ in range(min(due - cancelled, 100))
            ]
            kept.append((answered, stub.ModelInfer.future(infer_request(rows(answered)))))
            answered += 1
            for call in doomed:
                call.cancel()
            cancelled += len(doomed)
            while len(kept) > 20:
                value, call = kept.pop(0)
                np.testing.assert_array_equal(output(call.result(30)), rows(value))
        for value, call in kept:
            np.testing.assert_array_equal(output(call.result(30)), rows(value))
    plane.assert_balanced()
    page = plane.page()
    assert page["connections_total"] == 1, "the connection was never closed"
    counters = plane.counters()
    assert counters["completed"] >= answered
    assert plane.snapshot().host_bytes == 0
