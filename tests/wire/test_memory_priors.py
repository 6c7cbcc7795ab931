"""What an Apply says of device memory before a first batch, as the data plane takes it."""

from __future__ import annotations

import time

import grpc

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model
from tests.wire.calls import Stub, error_info, infer_error, infer_request, rows
from tests.wire.fake_triton import FakeTriton, Request, Response, identity

MIB = 1 << 20
BASE, PER_ROW = 200 * MIB, 100 * MIB


def apply(plane: DataPlane, fake: FakeTriton, prior: pb.MemoryPrior | None) -> None:
    model = identity_model()
    model.placements[0].device_indices.append(3)
    if prior is not None:
        model.placements[0].memory_prior.CopyFrom(prior)
    assert plane.apply([model], [fake.address]) == ""


def need(plane: DataPlane, free: int) -> tuple[float, float, int, int]:
    """(base, bytes a row, rows of marks, largest batch) with so much free."""
    reading = pb.DeviceMemory(
        index=3, known=True, free_bytes=free, total_bytes=10_000 * MIB,
        measured_at_ns=time.monotonic_ns(),
    )  # fmt: skip
    plane.tell_memory(pb.MemoryReadings(devices=[reading]))
    (model,) = plane.snapshot(0).models
    (found,) = model.memory
    return found.base_bytes, found.bytes_per_row, found.rows_high, found.rows_limit


def test_a_prior_limits_the_first_batch(plane: DataPlane, fake: FakeTriton) -> None:
    apply(plane, fake, None)
    assert need(plane, 1_000 * MIB)[3] == 1  # nothing is known
    apply(plane, fake, pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW))
    assert need(plane, 1_000 * MIB) == (BASE, PER_ROW, 0, 8)
    prior = pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW, rows_high=20)
    apply(plane, fake, prior)
    assert need(plane, 1_000 * MIB) == (BASE, PER_ROW, 20, 30)


def test_room_that_was_said_once_is_not_said_again(plane: DataPlane, fake: FakeTriton) -> None:
    prior = pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW, rows_high=20)
    apply(plane, fake, prior)
    assert need(plane, 1_000 * MIB)[2:] == (20, 30)
    model = identity_model()
    assert plane.apply([model], [fake.address]) == ""
    apply(plane, fake, pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW))
    assert need(plane, 1_000 * MIB)[2:] == (0, 8)  # it was nowhere meanwhile
    apply(plane, fake, prior)
    assert need(plane, 1_000 * MIB)[2:] == (20, 30)


def test_a_fixed_need_that_is_fixed_no_more_is_a_beginning(
    plane: DataPlane, fake: FakeTriton
) -> None:
    apply(plane, fake, pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW, fixed=True))
    assert need(plane, 1_000 * MIB) == (BASE, PER_ROW, 0, 8)
    apply(plane, fake, None)
    assert need(plane, 1_000 * MIB) == (BASE, PER_ROW, 0, 8)
    apply(plane, fake, pb.MemoryPrior(base_bytes=0, bytes_per_row=50 * MIB))
    assert need(plane, 1_000 * MIB) == (0, 50 * MIB, 0, 20)


def test_batches_in_flight_say_that_memory_limits_them(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    apply(plane, fake, pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW, fixed=True))
    need(plane, 1_000 * MIB)
    calls = [fake.occupy(stub)]
    calls += [stub.ModelInfer.future(infer_request(rows(float(n))), timeout=60) for n in range(12)]
    plane.wait_queued(12)
    in_flight: list[tuple[int, bool]] = []

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        (batch,) = plane.snapshot().batches
        in_flight.append((batch.rows, batch.memory_limited))
        return identity(request)

    fake.behaviour = behaviour
    fake.release()
    for call in calls:
        call.result()
    assert in_flight == [(1, False), (8, True), (4, False)]


def test_a_refusal_tells_more_bytes_than_are_free(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    apply(plane, fake, pb.MemoryPrior(base_bytes=BASE, bytes_per_row=PER_ROW))
    need(plane, 1_000 * MIB)

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(grpc.StatusCode.INTERNAL, "CUDA error: out of memory")

    fake.behaviour = behaviour
    info = error_info(infer_error(stub, infer_request(rows(1.0))))
    assert info.reason == "DEVICE_MEMORY"
    # A row would have fitted by what is predicted: it needs more than is free.
    assert info.metadata["freeBytes"] == str(1_000 * MIB)
    assert info.metadata["predictedBytes"] == str(1_000 * MIB + 1)
