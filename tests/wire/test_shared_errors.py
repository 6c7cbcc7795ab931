"""Errors of calls whose tensors are in shared memory: whose it is after them."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, infer_error, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request, Response
from tests.wire.shared_payload import places_of, share

WIDTH = 50_000  # 200 KB a row


def large_model() -> pb.Model:
    return identity_model(dims=[WIDTH], staged_batches_max=0)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNKNOWN", "RESOURCE_EXHAUSTED", "ABORTED"])
def test_an_error_of_a_model_leaves_the_memory_in_use(
    code: str, plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    memory = share(plane, fake, [large_model()])

    def fails(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(grpc.StatusCode[code], "the index is away")
        raise AssertionError("abort raises")

    fake.behaviour = fails
    error = infer_error(stub, infer_request(rows(1, 1, WIDTH)))
    assert error.details() == "the index is away"
    fake.behaviour = memory.identity
    answer = stub.ModelInfer(infer_request(rows(2, 1, WIDTH)), timeout=30)
    np.testing.assert_array_equal(output(answer), rows(2, 1, WIDTH))
    assert places_of(fake.requests[-1])
    assert plane.events_seen("shared_memory_lost") == []
    wait_until(lambda: plane.snapshot().shared_memory.used_bytes == 0, "no block is held")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("UNAVAILABLE", "Cancelling all calls"),
        ("UNAVAILABLE", "Server shutdown"),
        ("UNAVAILABLE", "upstream request timeout"),
        ("CANCELLED", ""),
    ],
)
def test_a_call_that_the_backend_stopped_waiting_for_keeps_its_memory(
    code: str, text: str, plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    share(plane, fake, [large_model()])

    def cut_off(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(grpc.StatusCode[code], text)
        raise AssertionError("abort raises")

    fake.behaviour = cut_off
    infer_error(stub, infer_request(rows(1, 1, WIDTH)))
    assert plane.snapshot().shared_memory.quarantined_calls == 1
    plane.wait_event("shared_memory_lost")
