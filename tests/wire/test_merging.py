"""Requests that wait together run together, and each caller gets its own rows back."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import (
    ANSWER_TIMEOUT_S,
    Stub,
    connected,
    infer_request,
    output,
    rows,
)
from tests.wire.fake_triton import FakeTriton, Request, Response, identity, values_of


def test_requests_that_wait_for_the_slot_form_one_batch(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    first = fake.occupy(stub)
    # Without a deadline: by one, the first batches of an unknown model are smaller.
    calls = [stub.ModelInfer.future(infer_request(rows(n), request_id=f"r{n}")) for n in range(40)]
    plane.wait_queued(40)
    fake.release()
    for n, call in enumerate(calls):
        response = call.result(ANSWER_TIMEOUT_S)
        assert response.id == f"r{n}"
        np.testing.assert_array_equal(output(response), rows(n))
    np.testing.assert_array_equal(output(first.result()), rows(7777.0))
    assert fake.batch_rows() == [1, 40]
    counters = plane.counters()
    assert counters["batches"] == 2
    assert counters["completed"] == 41


def test_rows_not_requests_fill_a_batch(stub: Stub, fake: FakeTriton, plane: DataPlane) -> None:
    fake.occupy(stub)
    sizes = [30, 30, 4, 1]  # 64 rows fit into a batch
    calls = [stub.ModelInfer.future(infer_request(rows(n, size))) for n, size in enumerate(sizes)]
    plane.wait_queued(4)
    fake.release()
    for n, (size, call) in enumerate(zip(sizes, calls, strict=True)):
        np.testing.assert_array_equal(output(call.result(ANSWER_TIMEOUT_S)), rows(n, size))
    assert fake.batch_rows() == [1, 64, 1]


def test_a_request_larger_than_a_batch_is_split_and_put_together(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    values = rows(5.0, 150)
    response = stub.ModelInfer(infer_request(values, request_id="big"), timeout=30)
    assert response.id == "big"
    assert list(response.outputs[0].shape) == [150, 16]
    np.testing.assert_array_equal(output(response), values)
    assert fake.batch_rows() == [64, 64, 22]
    assert plane.counters()["admitted"] == 1


@pytest.mark.parametrize("batching", [{"rows_max": 2}, {"rows_max": 4, "mandatory_rows": [1, 2]}])
def test_a_request_of_more_than_1024_batches_is_refused(
    plane: DataPlane, fake: FakeTriton, batching: dict[str, object]
) -> None:
    model = identity_model(dims=(1,), max_batch_size=4, **batching)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub, pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(infer_request(rows(1.0, 2049)[:, :1]), timeout=ANSWER_TIMEOUT_S)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details().endswith("batch-size must be <= 2048 for 'identity'")
    assert fake.batch_rows() == []


def test_the_rest_of_an_oversize_request_shares_its_batch(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    large = stub.ModelInfer.future(infer_request(rows(1.0, 70)), timeout=30)
    plane.wait_queued(1)
    small = stub.ModelInfer.future(infer_request(rows(2.0, 3)), timeout=30)
    plane.wait_queued(2)
    fake.release()
    np.testing.assert_array_equal(output(large.result()), rows(1.0, 70))
    np.testing.assert_array_equal(output(small.result()), rows(2.0, 3))
    assert fake.batch_rows() == [1, 64, 9]


def test_other_shapes_and_other_parameters_queue_side_by_side(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(dims=(-1,), staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.occupy(stub)
        kinds = [(16, {}), (8, {}), (16, {"key": "a"}), (16, {"key": "b"})]
        calls = [
            stub.ModelInfer.future(
                infer_request(rows(n, 1, width), parameters=parameters), timeout=30
            )
            for n in range(5)
            for width, parameters in kinds
        ]
        plane.wait_queued(20)
        fake.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n // 4, 1, kinds[n % 4][0]))
    assert fake.batch_rows() == [1, 5, 5, 5, 5]
    shapes = [(request.inputs[0].shape[1], dict(request.parameters)) for request in fake.requests]
    assert len({(width, str(parameters)) for width, parameters in shapes}) == 4


def test_scheduling_parameters_do_not_keep_requests_apart(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    kinds = [{}, {"priority": 1}, {"timeout": 20_000_000}, {"priority": 2, "timeout": 25_000_000}]
    calls = [
        stub.ModelInfer.future(infer_request(rows(n), parameters=kind), timeout=30)
        for n, kind in enumerate(kinds)
    ]
    plane.wait_queued(4)
    fake.release()
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(output(call.result()), rows(n))
    assert fake.batch_rows() == [1, 4]
    assert not fake.requests[-1].parameters, "consumed, not forwarded"


def two_outputs(request: Request, context: grpc.ServicerContext) -> Response:
    """SECOND = INPUT0 and FIRST = -INPUT0, the requested ones, in the order of the model."""
    wanted = [tensor.name for tensor in request.outputs] or ["FIRST", "SECOND"]
    reply = Response(model_name=request.model_name, model_version="1", id=request.id)
    for name, sign in (("FIRST", -1), ("SECOND", 1)):
        if name in wanted:
            reply.outputs.add(name=name, datatype="FP32", shape=request.inputs[0].shape)
            reply.raw_output_contents.append((sign * values_of(request)).tobytes())
    return reply


def test_each_member_gets_the_outputs_it_asked_for(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(staged_batches_max=0)
    tensor = model.outputs.pop()
    for name in ("FIRST", "SECOND"):
        model.outputs.add(name=name, datatype=tensor.datatype, dims=tensor.dims)
    plane.apply([model], [fake.address])
    fake.behaviour = two_outputs
    selections = [["FIRST"], ["SECOND"], [], ["SECOND", "FIRST"]]
    with connected(plane.address) as stub:
        fake.occupy(stub)
        calls = [
            stub.ModelInfer.future(infer_request(rows(n), outputs=selection), timeout=30)
            for n, selection in enumerate(selections)
        ]
        plane.wait_queued(4)
        fake.release()
        for n, (selection, call) in enumerate(zip(selections, calls, strict=True)):
            response = call.result()
            names = [tensor.name for tensor in response.outputs]
            assert names == sorted(selection or ["FIRST", "SECOND"])
            assert len(response.raw_output_contents) == len(names)
            for index, name in enumerate(names):
                expected = rows(n) * (-1 if name == "FIRST" else 1)
                np.testing.assert_array_equal(output(response, index), expected)
    assert fake.batch_rows() == [1, 4]


def test_bytes_tensors_merge_and_split_by_elements(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(datatype="BYTES", dims=(2,), staged_batches_max=0)
    plane.apply([model], [fake.address])

    def request(strings: list[bytes]) -> service_pb2.ModelInferRequest:
        message = service_pb2.ModelInferRequest(model_name="identity")
        message.inputs.add(name="INPUT0", datatype="BYTES", shape=[len(strings) // 2, 2])
        message.raw_input_contents.append(
            b"".join(len(text).to_bytes(4, "little") + text for text in strings)
        )
        return message

    groups = [[b"", b"one"], [b"x" * 70_000, b"two", b"", b""], [b"\0\1\2\3", b"four"]]
    with connected(plane.address) as stub:
        fake.hold()
        first = stub.ModelInfer.future(request([b"a", b"b"]), timeout=30)
        wait_until(lambda: len(fake.requests) == 1, "the fake has the first batch")
        calls = [stub.ModelInfer.future(request(group), timeout=30) for group in groups]
        plane.wait_queued(3)
        fake.release()
        for group, call in zip(groups, calls, strict=True):
            assert call.result().raw_output_contents == request(group).raw_input_contents
        first.result()
    assert fake.batch_rows() == [1, 4]


def test_typed_contents_merge_with_raw_ones(stub: Stub, fake: FakeTriton, plane: DataPlane) -> None:
    fake.occupy(stub)
    typed = service_pb2.ModelInferRequest(model_name="identity", id="typed")
    tensor = typed.inputs.add(name="INPUT0", datatype="FP32", shape=[2, 16])
    tensor.contents.fp32_contents.extend(rows(1.0, 2).ravel().tolist())
    calls = [
        stub.ModelInfer.future(typed, timeout=30),
        stub.ModelInfer.future(infer_request(rows(2.0)), timeout=30),
    ]
    plane.wait_queued(2)
    fake.release()
    np.testing.assert_array_equal(output(calls[0].result()), rows(1.0, 2))
    np.testing.assert_array_equal(output(calls[1].result()), rows(2.0))
    assert fake.batch_rows() == [1, 3]


def test_mandatory_sizes_are_padded_and_the_padding_is_cut_off(
    plane: DataPlane, fake: FakeTriton
) -> None:
    model = identity_model(mandatory_rows=[4, 16], staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        for count in (1, 4, 5, 16, 17):
            response = stub.ModelInfer(infer_request(rows(count, count)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(count, count))
    assert fake.batch_rows() == [4, 4, 16, 16, 16, 4]
    padded = values_of(fake.requests[0])
    np.testing.assert_array_equal(padded, np.repeat(rows(1), 4, axis=0))


def test_an_unbatched_model_runs_each_request_alone(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model(max_batch_size=0, staged_batches_max=0)], [fake.address])

    def request(value: float) -> service_pb2.ModelInferRequest:
        message = infer_request(rows(value))
        message.inputs[0].shape[:] = [16]
        return message

    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(request(n), timeout=30) for n in range(3)]
        plane.wait_queued(2)
        fake.release()
        for n, call in enumerate(calls):
            assert list(call.result().outputs[0].shape) == [16]
            np.testing.assert_array_equal(output(call.result()), rows(n)[0])
    assert [list(request.inputs[0].shape) for request in fake.requests] == [[16]] * 3


def test_a_merged_batch_carries_the_longest_remaining_deadline(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    calls = [
        stub.ModelInfer.future(infer_request(rows(n)), timeout=timeout_s)
        for n, timeout_s in enumerate((20, 100, 60))
    ]
    plane.wait_queued(3)
    fake.release()
    for call in calls:
        call.result()
    remaining_s = fake.remaining_s[1]
    assert remaining_s is not None
    assert 60 < remaining_s < 102, "gRPC rounds long time-outs up by a hundredth"


def test_forwarded_metadata_reaches_the_backend_and_keeps_batches_apart(
    plane: DataPlane, fake: FakeTriton
) -> None:
    from scheduler.v1 import dataplane_pb2 as pb

    limits = pb.Limits(forward_metadata=["x-tenant"])
    plane.apply([identity_model(staged_batches_max=0)], [fake.address], limits)
    with connected(plane.address) as stub:
        fake.occupy(stub)
        tenants = ["red", "blue", "red", "blue"]
        calls = [
            stub.ModelInfer.future(
                infer_request(rows(n)),
                timeout=30,
                metadata=[("x-tenant", tenant), ("x-private", "stays here")],
            )
            for n, tenant in enumerate(tenants)
        ]
        plane.wait_queued(4)
        fake.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
    assert fake.batch_rows() == [1, 2, 2]
    assert [metadata.get("x-tenant") for metadata in fake.metadata] == [None, "red", "blue"]
    assert not any("x-private" in metadata for metadata in fake.metadata)


def test_a_lone_request_keeps_its_id_and_unknown_parameters(stub: Stub, fake: FakeTriton) -> None:
    parameters = {"text": "a", "number": 7, "flag": True, "fraction": 0.5}
    stub.ModelInfer(infer_request(rows(1), request_id="mine", parameters=parameters), timeout=30)
    assert fake.requests[0].id == "mine"
    sent = infer_request(rows(1), parameters=parameters).parameters
    assert dict(fake.requests[0].parameters) == dict(sent)
    assert identity(fake.requests[0]).id == "mine"
