"""What a failing backend means for the members of a batch: as little as possible."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import (
    Stub,
    connected,
    error_of,
    infer_error,
    infer_request,
    output,
    rows,
)
from tests.wire.fake_triton import Behaviour, FakeTriton, Request, Response, identity, values_of

POISON = -1000.0
POISON_TEXT = "a row is poisoned"


def poisonable(code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> Behaviour:
    """Fails the whole batch when one of its rows is poisoned, as a python model does."""

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        if (values_of(request)[:, 0] == POISON).any():
            context.abort(code, POISON_TEXT)
        return identity(request)

    return behaviour


def queue_behind_one(
    stub: Stub, plane: DataPlane, fake: FakeTriton, values: list[float]
) -> list[grpc.Future]:
    """One request in flight, the others queued; then the fake answers."""
    calls = [fake.occupy(stub)]
    calls += [stub.ModelInfer.future(infer_request(rows(value)), timeout=60) for value in values]
    plane.wait_queued(len(values))
    fake.release()
    return calls[1:]


# Every one that a server may answer with before the deadline.
ERRORS = [c for c in grpc.StatusCode if c.name not in ("OK", "DEADLINE_EXCEEDED")]
# A model's own texts, which are not Triton's of "identity", version 1.
NOT_OF_TRITON = {
    "other name": "Request for unknown model: 'other' is not found",
    "longer name": "Request for unknown model: 'identity2' has no available versions",
    "other version": "Request for unknown model: 'identity' version 11 is not at ready state",
    "in front": "step: Request for unknown model: 'identity' has no available versions",
    "behind": "Request for unknown model: 'identity' is not found in the index",
    "other ensemble": "in ensemble 'e', Request for unknown model: 'identity' is not found",
    "own step": "in ensemble 'identity', the index: Request for unknown model: 's' is not found",
    "namespace": "Request for unknown model: 'a::other' is not found",
    "half a namespace": "Request for unknown model: 'a:identity' is not found",
    "not ready": "Model 'other' is not ready",
    "stopping": "Server is stopping",
    "queue": "the index: Exceeds maximum queue size",
    "queue timeout": "Request timeout expired at the index",
}


@pytest.mark.parametrize("code", ERRORS, ids=lambda c: c.name)
def test_one_poisoned_request_fails_alone(
    code: grpc.StatusCode, stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = poisonable(code)
    values = [float(n) for n in range(16)]
    values[11] = POISON
    calls = queue_behind_one(stub, plane, fake, values)
    for value, call in zip(values, calls, strict=True):
        if value == POISON:
            error = error_of(call)
            assert (error.code(), error.details()) == (code, POISON_TEXT)
        else:
            np.testing.assert_array_equal(output(call.result()), rows(value))
    # 16, then halves: 8+8, 4+4, 2+2, 1+1.
    assert len(fake.requests) == 2 + 2 * 4
    counters = plane.counters()
    assert (counters["failed"], counters["completed"]) == (1, 16)
    assert counters["bisected_batches"] == 4


def test_what_is_not_idempotent_is_not_run_again(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model(idempotent=False, staged_batches_max=0)], [fake.address])
    fake.behaviour = poisonable()
    with connected(plane.address) as stub:
        calls = queue_behind_one(stub, plane, fake, [1.0, POISON, 2.0])
        assert [error_of(call).details() for call in calls] == [POISON_TEXT] * 3
    assert fake.batch_rows() == [1, 3]


@pytest.mark.parametrize("code", ERRORS, ids=lambda c: c.name)
def test_the_error_of_a_lone_request_is_its_answer(
    code: grpc.StatusCode, stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = poisonable(code)
    error = infer_error(stub, infer_request(rows(POISON)))
    assert (error.code(), error.details()) == (code, POISON_TEXT)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("text", NOT_OF_TRITON.values(), ids=NOT_OF_TRITON)
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND], ids=lambda c: c.name
)
def test_a_model_may_say_anything(
    code: grpc.StatusCode, text: str, stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    """Its backend is not taken for one that leaves."""

    def says(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(code, text)
        raise AssertionError("abort raises")

    fake.behaviour = says
    error = infer_error(stub, infer_request(rows(1)))
    assert (error.code(), error.details()) == (code, text)
    assert len(fake.requests) == 1
    assert plane.events_seen("backend_leaving") == []


def test_a_signature_that_fails_often_runs_unmerged(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = poisonable()
    for _ in range(4):
        calls = queue_behind_one(stub, plane, fake, [1.0, POISON])
        calls[0].result()
        error_of(calls[1])
    before = len(fake.requests)
    calls = queue_behind_one(stub, plane, fake, [1.0, 2.0, 3.0])
    for call in calls:
        call.result()
    assert fake.batch_rows()[before:] == [1, 1, 1, 1]


def row_count_lost(request: Request, context: grpc.ServicerContext) -> Response:
    """The first dimension of the reply is not the number of rows."""
    reply = identity(request)
    reply.outputs[0].shape[:] = [1, len(request.raw_input_contents[0]) // 4]
    return reply


def test_a_reply_that_cannot_be_split_switches_merging_off(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = row_count_lost
    calls = queue_behind_one(stub, plane, fake, [1.0, 2.0, 3.0])
    for value, call in zip((1.0, 2.0, 3.0), calls, strict=True):
        np.testing.assert_array_equal(output(call.result()), rows(value))
    event = plane.wait_event("merging_switched_off").merging_switched_off
    assert event.model_index == 0
    assert "OUTPUT0" in event.reason
    assert not plane.model_snapshot().merging
    before = len(fake.requests)
    for call in queue_behind_one(stub, plane, fake, [4.0, 5.0]):
        call.result()
    assert fake.batch_rows()[before:] == [1, 1, 1]
    # Another way of batching is a new chance.
    plane.apply([identity_model(staged_batches_max=0, rows_max=32)], [fake.address])
    assert plane.model_snapshot().merging


def without_raw(request: Request, context: grpc.ServicerContext) -> Response:
    reply = identity(request)
    del reply.raw_output_contents[:]
    return reply


def test_a_reply_without_data_does_not_reach_the_wrong_caller(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = without_raw
    for call in queue_behind_one(stub, plane, fake, [1.0, 2.0]):
        error = call.exception(timeout=30)
        if error is None:
            assert not call.result().raw_output_contents
        else:
            assert error.code() == grpc.StatusCode.INTERNAL


def test_bytes_that_are_no_reply_are_an_internal_error(plane: DataPlane) -> None:
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(2))

    class Garbage(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff")

    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        plane.apply([identity_model()], [f"127.0.0.1:{port}"])
        with connected(plane.address) as stub:
            error = infer_error(stub, infer_request(rows(1)))
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "malformed reply" in error.details()
    finally:
        server.stop(grace=0).wait()


def test_the_failed_part_answers_an_oversize_request(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.behaviour = poisonable()
    values = rows(1.0, 200)
    values[70] = POISON
    error = infer_error(stub, infer_request(values))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, POISON_TEXT)
    assert fake.batch_rows() == [64, 64], "the parts after the failed one are not sent"
    response = stub.ModelInfer(infer_request(rows(5.0, 65)), timeout=30)
    np.testing.assert_array_equal(output(response), rows(5.0, 65))


def test_a_slow_backend_is_probed_but_not_given_up(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.hold()
    call = stub.ModelInfer.future(infer_request(rows(1)), timeout=60)
    wait_until(lambda: fake.probes >= 5, "the silent backend is probed again and again")
    assert len(fake.requests) == 1
    fake.release()
    np.testing.assert_array_equal(output(call.result()), rows(1))
