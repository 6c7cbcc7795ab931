"""`batching: triton`: what clients see of Triton's queue policies, and the hold for tests."""

from __future__ import annotations

import time

import grpc

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, error_info, error_of, infer_error, infer_request, rows
from tests.wire.fake_triton import FakeTriton

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def triton_model(*, hold_requests: int = 0, **policy: object) -> pb.Model:
    """Batches of four rows, with one queue policy."""
    level = pb.TritonQueuePolicy(**policy)  # type: ignore[arg-type]
    block = pb.TritonBatching(dynamic=True, preferred_rows=[4], levels=[level], default_level=1)
    return identity_model(triton=block, hold_requests=hold_requests)


def test_a_full_queue_refuses_with_tritons_code(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([triton_model(requests_max=1)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [fake.occupy(stub), stub.ModelInfer.future(infer_request(rows(1)), timeout=30)]
        plane.wait_queued(1)
        error = infer_error(stub, infer_request(rows(2), request_id="late"))
        assert error.code() == UNAVAILABLE
        assert error.details() == "[request id: late] Exceeds maximum queue size"
        assert error_info(error).reason == "QUEUE_FULL"
        fake.release()
        for call in calls:
            call.result()


def test_a_queue_timeout_is_told_with_tritons_code(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([triton_model(timeout_ns=20_000_000)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        occupying = fake.occupy(stub)
        late = stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
        # While no instance is free, Triton looks every half second.
        error = error_of(late)
        fake.release()
        assert (error.code(), error.details()) == (UNAVAILABLE, "Request timeout expired")
        occupying.result()


def test_a_timeout_parameter_is_no_budget_of_the_request(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([triton_model()], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        occupying = fake.occupy(stub)
        request = infer_request(rows(1))
        request.parameters["timeout"].int64_param = 1_000  # microseconds
        patient = stub.ModelInfer.future(request, timeout=30)
        wait_until(lambda: plane.counters()["admitted"] == 2, "both are admitted")
        admitted = time.monotonic()
        wait_until(lambda: time.monotonic() > admitted + 0.02, "the timeout has passed")
        fake.release()
        for call in (occupying, patient):
            call.result()


def test_nothing_is_split(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([triton_model()], [fake.address])
    with connected(plane.address) as stub:
        error = infer_error(stub, infer_request(rows(0, 65)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == (
        "[request id: <id_unknown>] inference request batch-size must be <= 64 for 'identity'"
    )
    assert fake.batch_rows() == []


def test_batches_are_held_until_enough_requests_are_queued(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([triton_model(hold_requests=6)], [fake.address])
    with connected(plane.address) as stub:
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(5)]
        plane.wait_queued(5)
        assert fake.batch_rows() == []
        calls.append(stub.ModelInfer.future(infer_request(rows(5)), timeout=30))
        for call in calls:
            call.result()
    assert fake.batch_rows() == [4, 2]
