"""Rows of one model that differ in their bytes: a cap of one shape holds for the others."""

from __future__ import annotations

import grpc
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model
from tests.wire.calls import Matrix, Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request, Response, identity, rows_of

NARROW, WIDE = 16, 64
WIDE_FITS = 4


def width_of(request: Request) -> int:
    return int(request.inputs[0].shape[1])


def arena(request: Request, context: grpc.ServicerContext) -> Response:
    if width_of(request) == WIDE and rows_of(request) > WIDE_FITS:
        context.abort(grpc.StatusCode.INTERNAL, "CUDA error: out of memory")
    return identity(request)


def identity_of_any_width(padded: bool) -> pb.Model:
    model = identity_model(dims=(-1,), staged_batches_max=0, queue_delay_max_ns=0)
    if padded:
        model.inputs[0].padding.buckets.extend([NARROW, WIDE])
        model.outputs[0].trim_to = "INPUT0"
    return model


def batches_of(
    requests: list[Matrix], stub: Stub, plane: DataPlane, fake: FakeTriton
) -> list[tuple[int, int]]:
    """(rows, width) of the batches in which these requests go that came together."""
    occupying = fake.occupy(stub)
    before = len(fake.requests)
    calls = [stub.ModelInfer.future(infer_request(values), timeout=60) for values in requests]
    plane.wait_queued(len(calls))
    fake.release()
    for values, call in zip(requests, calls, strict=True):
        assert output(call.result()).tolist() == values.tolist()
    occupying.result()
    return [(rows_of(request), width_of(request)) for request in fake.requests[before:]]


@pytest.mark.parametrize("padded", [False, True])
def test_a_cap_counts_for_rows_of_all_widths(
    padded: bool, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = arena
    # The shorter ones become as wide as the others where they are padded.
    width = 40 if padded else WIDE
    assert plane.apply([identity_of_any_width(padded)], [fake.address]) == ""
    with connected(plane.address) as stub:
        wide = [rows(float(n), width=width) for n in range(16)]
        sent = batches_of(wide, stub, plane, fake)
        assert sent[:2] == [(16, WIDE), (8, WIDE)]
        assert set(sent[2:]) == {(8, WIDE), (4, WIDE)}
        # Six rows of four times the width are what the last failure left.
        narrow = [rows(float(n)) for n in range(40)]
        assert batches_of(narrow, stub, plane, fake) == [(24, NARROW), (16, NARROW)]
        assert batches_of(wide[:10], stub, plane, fake)[0] == (6, WIDE)
    assert plane.counters()["failed"] == 0


def test_rows_of_a_model_without_variable_dimensions_are_alike(
    plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = lambda request, context: (
        context.abort(grpc.StatusCode.INTERNAL, "CUDA error: out of memory")
        if rows_of(request) > WIDE_FITS
        else identity(request)
    )
    model = identity_model(dims=(NARROW,), staged_batches_max=0, queue_delay_max_ns=0)
    assert plane.apply([model], [fake.address]) == ""
    with connected(plane.address) as stub:
        values = [rows(float(n)) for n in range(16)]
        assert batches_of(values, stub, plane, fake)[:2] == [(16, NARROW), (8, NARROW)]
        assert batches_of(values, stub, plane, fake)[0] == (6, NARROW)
