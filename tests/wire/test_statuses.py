"""Codes, texts and typed details of refused requests, as a client receives them."""

from __future__ import annotations

from collections.abc import Callable

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
    infer_error,
    infer_request,
    output,
    pushback_ms,
    retry_delay_ms,
    rows,
)
from tests.wire.fake_triton import Behaviour, FakeTriton, Request, Response

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNKNOWN_ID = "[request id: <id_unknown>] "


def changed(change: Callable[[Request], object], **request: object) -> Request:
    message = infer_request(rows(1), **request)  # type: ignore[arg-type]
    change(message)
    return message


def set_shape(*shape: int) -> Callable[[Request], object]:
    def change(request: Request) -> None:
        request.inputs[0].shape[:] = shape

    return change


def set_input(**fields: object) -> Callable[[Request], object]:
    def change(request: Request) -> None:
        request.inputs[0].MergeFrom(type(request.inputs[0])(**fields))

    return change


def set_raw(data: bytes) -> Callable[[Request], object]:
    def change(request: Request) -> None:
        request.raw_input_contents[0] = data

    return change


BAD_REQUESTS = {
    "unknown model": (
        infer_request(rows(1), model="nope"),
        NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    ),
    "unknown version": (
        infer_request(rows(1), version="7"),
        NOT_FOUND,
        "Request for unknown model: 'identity' version 7 is not found",
    ),
    "version text": (
        infer_request(rows(1), version="abc"),
        INVALID,
        "failed to get model version from specified version string 'abc' (details: stol), "
        "version should be an integral value > 0",
    ),
    "wrong shape": (
        changed(set_shape(1, 8), request_id="r1"),
        INVALID,
        "[request id: r1] unexpected shape for input 'INPUT0' for model 'identity'. "
        "Expected [-1,16], got [1,8].",
    ),
    "no batch dimension": (
        changed(lambda request: request.inputs[0].ClearField("shape")),
        INVALID,
        UNKNOWN_ID + "input 'INPUT0' has no shape but model requires batch dimension for "
        "'identity'",
    ),
    "wrong datatype": (
        changed(set_input(datatype="INT32")),
        INVALID,
        UNKNOWN_ID + "inference input 'INPUT0' data-type is 'INT32', but model 'identity' "
        "expects 'FP32'",
    ),
    "raw size": (
        changed(set_raw(b"\0" * 60)),
        INVALID,
        UNKNOWN_ID + "input byte size mismatch for input 'INPUT0' for model 'identity'. "
        "Expected 64, got 60",
    ),
    "no data": (
        changed(lambda request: request.ClearField("raw_input_contents")),
        INVALID,
        "unable to find data for input tensor 'INPUT0' for model 'identity' in request.",
    ),
    "raw and typed": (
        changed(lambda request: request.inputs[0].contents.fp32_contents.append(1)),
        INVALID,
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for "
        "model 'identity'",
    ),
    "missing input": (
        changed(lambda request: [request.inputs.pop(), request.raw_input_contents.pop()]),
        INVALID,
        UNKNOWN_ID + "expected 1 inputs but got 0 inputs for model 'identity'. Got input(s) [], "
        "but missing required input(s) ['INPUT0']. Please provide all required input(s).",
    ),
    "unknown output": (
        infer_request(rows(1), outputs=["X"]),
        INVALID,
        "unexpected inference output 'X' for model 'identity'",
    ),
    "priority type": (
        infer_request(rows(1), parameters={"priority": "high"}),
        INVALID,
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    "priority value": (
        infer_request(rows(1), parameters={"priority": -1}),
        INVALID,
        "invalid value for 'priority', expected value >= 0.",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_with_the_text_of_triton(
    name: str, stub: Stub, fake: FakeTriton
) -> None:
    request, code, text = BAD_REQUESTS[name]
    error = infer_error(stub, request)
    assert error.code() == code
    assert text in error.details()
    assert pushback_ms(error) is None, "a retry would find the same"
    assert fake.requests == [], "refused before it reached a backend"
    np.testing.assert_array_equal(
        output(stub.ModelInfer(infer_request(rows(2)), timeout=30)), rows(2)
    )


def test_bytes_that_are_no_request_are_answered(plane: DataPlane, stub: Stub) -> None:
    with grpc.insecure_channel(plane.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        # The last two name an unknown model, or none, and break further down.
        broken = b"\x2a\x02\x0a\x7f"
        for data in (b"\xff\xff\xff", b"\x08\x96\x01\x0b", b"\x0a\x04nope" + broken, broken):
            error = error_of(call.future(data, timeout=30))
            assert error.code() == grpc.StatusCode.INTERNAL
            assert error.details() == "Unable to parse request"
        error = error_of(call.future(b"", timeout=30))
        assert error.code() == NOT_FOUND


def test_a_full_queue_refuses_with_the_time_to_retry(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model(queue_requests_max=3, staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(0)), timeout=30)]
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        calls += [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in (1, 2, 3)]
        plane.wait_queued(3)
        error = infer_error(stub, infer_request(rows(4), request_id="late"))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "[request id: late] Exceeds maximum queue size"
        assert error_info(error).reason == "QUEUE_FULL"
        assert retry_delay_ms(error) > 0
        assert (pushback_ms(error) or 0) >= retry_delay_ms(error)
        fake.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
    assert plane.counters()["outcomes"]["refused", "queue_full"] == 1


def test_the_queue_is_bounded_in_bytes(plane: DataPlane, fake: FakeTriton) -> None:
    size = infer_request(rows(0)).ByteSize()
    model = identity_model(queue_bytes_max=2 * (size + 5), staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(0)), timeout=30)]
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        calls += [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in (1, 2)]
        plane.wait_queued(2)
        queued_bytes = plane.model_snapshot().queued_bytes
        assert 2 * size <= queued_bytes <= 2 * (size + 5)
        error = infer_error(stub, infer_request(rows(3)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "QUEUE_FULL"
        fake.release()
        for call in calls:
            call.result()


def test_an_old_queue_refuses_new_work(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(queue_age_max_ns=50_000_000, staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(0)), timeout=30)]
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        calls.append(stub.ModelInfer.future(infer_request(rows(1)), timeout=30))
        wait_until(lambda: plane.model_snapshot().oldest_age_ns > 60_000_000, "the queue is old")
        error = infer_error(stub, infer_request(rows(2)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        fake.release()
        for call in calls:
            call.result()
    assert plane.counters()["outcomes"]["refused", "queue_age"] == 1


def test_host_bytes_are_bounded_over_all_connections(plane: DataPlane, fake: FakeTriton) -> None:
    limits = pb.Limits(host_bytes_max=100_000)
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with connected(plane.address) as one, connected(plane.address) as other:
        fake.hold()
        held = one.ModelInfer.future(infer_request(rows(0, 1000)), timeout=30)  # 64,000 bytes
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        error = infer_error(other, infer_request(rows(1, 1000), request_id="second"))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "HOST_MEMORY"
        small = other.ModelInfer.future(infer_request(rows(2)), timeout=30)
        plane.wait_queued(2)
        fake.release()
        np.testing.assert_array_equal(output(held.result()), rows(0, 1000))
        np.testing.assert_array_equal(output(small.result()), rows(2))


def test_typed_contents_count_as_what_they_become(plane: DataPlane, fake: FakeTriton) -> None:
    limits = pb.Limits(host_bytes_max=100_000)
    plane.apply([identity_model(datatype="INT64", dims=(-1,))], [fake.address], limits)

    def request(numbers: int) -> Request:
        message = Request(model_name="identity", id="it")
        message.inputs.add(name="INPUT0", datatype="INT64", shape=[1, numbers])
        message.inputs[0].contents.int64_contents.extend([1] * numbers)
        return message

    with connected(plane.address) as stub:
        error = infer_error(stub, request(20_000))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "HOST_MEMORY"
        assert stub.ModelInfer(request(5_000), timeout=30).outputs[0].shape == [1, 5_000]


def test_no_backend_is_unavailable(plane: DataPlane) -> None:
    backend = pb.Backend(index=0, address="127.0.0.1:1", connections=1, state=pb.BACKEND_STATE_DOWN)
    model = identity_model()
    model.placements[0].ready = False
    plane.apply([model], [backend], connected=False)
    with connected(plane.address) as stub:
        # Work is held for a moment, because backends come back; then it is refused at once.
        first = infer_error(stub, infer_request(rows(1)))
        assert first.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(first).reason == "NO_BACKEND"
        second = infer_error(stub, infer_request(rows(1)))
        assert second.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(second).reason == "NO_BACKEND"
        assert pushback_ms(second) == 1000
        assert retry_delay_ms(second) == 1000


def test_before_the_first_catalog_nothing_is_known_to_be_missing(
    plane: DataPlane, fake: FakeTriton
) -> None:
    with connected(plane.address) as stub:
        for applied in (False, True):
            if applied:
                plane.apply([], [fake.address])
            error = infer_error(stub, infer_request(rows(1)))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert error_info(error).reason == "NO_BACKEND"


def test_a_request_may_name_its_version(stub: Stub) -> None:
    for version in ("1", "01", "+1"):
        response = stub.ModelInfer(infer_request(rows(3), version=version), timeout=30)
        assert response.model_version == "1"


def backend_fails(code: grpc.StatusCode, text: str) -> Behaviour:
    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(code, text)
        raise AssertionError("abort raises")

    return behaviour


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "the model does not like this"),
        (grpc.StatusCode.INTERNAL, "Failed to process the request(s) for model 'identity'"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "out of something"),
        (grpc.StatusCode.FAILED_PRECONDITION, "percent % and\nnewline and ümläut"),
        (grpc.StatusCode.DATA_LOSS, ""),
    ],
)
def test_an_error_of_the_backend_keeps_its_code_and_text(
    code: grpc.StatusCode, text: str, stub: Stub, fake: FakeTriton
) -> None:
    fake.behaviour = backend_fails(code, text)
    error = infer_error(stub, infer_request(rows(1)))
    assert error.code() == code
    assert error.details() == text
