"""Headers, shared-memory regions and deadlines: what joins, splits and steers requests."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model
from tests.streams import OpenStream
from tests.wire.calls import (
    ANSWER_TIMEOUT_S,
    Stub,
    connected,
    infer_error,
    infer_request,
    output,
    rows,
    set_parameter,
)
from tests.wire.fake_triton import FakeTriton, Message, Request, Response, identity, one_reply
from tests.wire.test_streams import decoupled_model


def test_requests_share_a_batch_when_their_key_headers_agree(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """The key is not passed on unless it is forwarded as well."""
    model = identity_model(staged_batches_max=0, key_headers=["X-Tenant"])
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        fake.occupy(stub)
        tenants = ["a", "b", None, "a", "b", None, "a"]
        calls = [
            stub.ModelInfer.future(
                infer_request(rows(n)),
                timeout=ANSWER_TIMEOUT_S,
                metadata=(("x-tenant", tenant),) if tenant else (),
            )
            for n, tenant in enumerate(tenants)
        ]
        plane.wait_queued(len(tenants))
        fake.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
    assert sorted(fake.batch_rows()[1:]) == [2, 2, 3]
    assert not any("x-tenant" in metadata for metadata in fake.metadata)


def test_key_headers_of_a_stream_hold_for_its_requests(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(staged_batches_max=0, key_headers=["x-tenant"])
    plane.apply([model], [fake.address], pb.Limits(forward_metadata=["x-tenant"]))
    with connected(plane.address) as stub:
        fake.occupy(stub)
        with (
            OpenStream(stub, metadata=(("x-tenant", "a"),)) as one,
            OpenStream(stub, metadata=(("x-tenant", "b"),)) as two,
        ):
            for stream in (one, two):
                stream.send(infer_request(rows(1)), infer_request(rows(2)))
            plane.wait_queued(4)
            fake.release()
            for stream in (one, two):
                stream.read_many(2)
    assert fake.batch_rows()[1:] == [2, 2]
    assert sorted(metadata["x-tenant"] for metadata in fake.metadata[1:]) == ["a", "b"]


def test_metadata_of_the_answer_reaches_every_member(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    def with_metadata(request: Request, context: grpc.ServicerContext) -> Response:
        context.send_initial_metadata((("x-version", "7"),))
        context.set_trailing_metadata((("x-cost", "3"), ("x-blob-bin", b"\x00\xff")))
        if request.inputs[0].shape[0] == 1:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "alone")
        return identity(request)

    fake.occupy(stub)
    calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(3)]
    plane.wait_queued(3)
    fake.behaviour = with_metadata
    fake.release()
    expected = {"x-cost": "3", "x-blob-bin": b"\x00\xff"}
    for call in calls:
        call.result()
        assert dict(call.initial_metadata())["x-version"] == "7"
        assert expected.items() <= dict(call.trailing_metadata()).items()
    error = infer_error(stub, infer_request(rows(9)))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert expected.items() <= dict(error.trailing_metadata()).items()


BLANKS = (" first", "last ", " ", "")


def test_metadata_with_blanks_at_their_ends_pass_both_ways(
    fake: FakeTriton, plane: DataPlane
) -> None:
    """gRPC's own clients and servers send them, HTTP/2 forbids them."""
    names = [f"x-{number}" for number in range(len(BLANKS))]
    metadata = tuple(zip(names, BLANKS, strict=True))

    def echoing(request: Request, context: grpc.ServicerContext) -> Response:
        context.send_initial_metadata(metadata)
        context.set_trailing_metadata(metadata)
        return identity(request)

    fake.behaviour = echoing
    plane.apply([identity_model()], [fake.address], pb.Limits(forward_metadata=names))
    with connected(plane.address) as stub:
        call = stub.ModelInfer.future(infer_request(rows(1)), metadata=metadata, timeout=30)
        call.result()
    assert set(metadata) <= set(fake.metadata[-1].items())
    assert set(metadata) <= set(call.initial_metadata())
    assert set(metadata) <= set(call.trailing_metadata())


@pytest.fixture
def talkative(fake: FakeTriton, plane: DataPlane) -> Iterator[Stub]:
    """Models "identity" and "decoupled" at a fake whose streams have metadata of their own."""

    def with_metadata(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        context.send_initial_metadata((("x-version", "7"),))
        context.set_trailing_metadata((("x-cost", "3"), ("x-blob-bin", b"\x00\xff")))
        if request.inputs[0].shape[0] == 1:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "alone")
        yield from one_reply(request)

    fake.stream_behaviour = with_metadata
    plane.apply([identity_model(), decoupled_model()], [fake.address])
    with connected(plane.address) as client:
        yield client


def decoupled(count: int) -> Request:
    return infer_request(rows(1, count), model="decoupled")


def test_headers_of_a_backend_stream_reach_the_client_before_its_first_reply(
    talkative: Stub,
) -> None:
    with OpenStream(talkative) as stream:
        stream.send(decoupled(2))
        stream.read()
        stream.send(infer_request(rows(1)))
        stream.read()
        assert dict(stream.call.initial_metadata())["x-version"] == "7"


def test_headers_that_come_after_the_first_reply_are_left_out(talkative: Stub) -> None:
    with OpenStream(talkative) as stream:
        stream.send(infer_request(rows(1)))
        stream.read()
        stream.send(decoupled(2))
        stream.read()
        assert "x-version" not in dict(stream.call.initial_metadata())


def test_trailers_of_a_backend_stream_that_ends_before_the_clients_reach_it(
    talkative: Stub,
) -> None:
    with OpenStream(talkative) as stream:
        stream.send(decoupled(1))
        assert stream.read().error_message == "alone"
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()
        assert dict(stream.call.initial_metadata())["x-version"] == "7"
        expected = {"x-cost": "3", "x-blob-bin": b"\x00\xff"}
        assert expected.items() <= dict(stream.call.trailing_metadata()).items()


def in_region(name: str, value: float = 1.0) -> Request:
    request = infer_request(rows(value))
    del request.raw_input_contents[:]
    set_parameter(request.inputs[0].parameters["shared_memory_region"], name)
    set_parameter(request.inputs[0].parameters["shared_memory_byte_size"], 64)
    return request


@pytest.fixture
def other() -> Iterator[FakeTriton]:
    with FakeTriton() as server:
        yield server


def test_requests_of_a_region_go_alone_to_where_it_is(
    plane: DataPlane, fake: FakeTriton, other: FakeTriton
) -> None:
    def empty(request: Request, context: grpc.ServicerContext) -> Response:
        return Response(model_name=request.model_name, model_version="1", id=request.id)

    fake.behaviour = other.behaviour = empty
    model = identity_model(backends=(0, 1))
    regions = {"first": [0], "second": [1], "both": [0, 1]}
    plane.apply([model], [fake.address, other.address], regions=regions)
    both = in_region("first")
    both.outputs.add(name="OUTPUT0")
    set_parameter(both.outputs[0].parameters["shared_memory_region"], "both")
    set_parameter(both.outputs[0].parameters["shared_memory_byte_size"], 64)
    nowhere = in_region("first")
    nowhere.outputs.add(name="OUTPUT0")
    set_parameter(nowhere.outputs[0].parameters["shared_memory_region"], "second")
    set_parameter(nowhere.outputs[0].parameters["shared_memory_byte_size"], 64)
    with connected(plane.address) as stub:
        calls = [
            stub.ModelInfer.future(request, timeout=ANSWER_TIMEOUT_S)
            for request in [in_region("second")] * 5 + [both] * 5
        ]
        for call in calls:
            call.result()
        assert (fake.batch_rows(), other.batch_rows()) == ([1] * 5, [1] * 5)
        assert {
            r.inputs[0].parameters["shared_memory_region"].string_param for r in other.requests
        } == {"second"}
        for request, name in ((in_region("third"), "third"), (nowhere, "first")):
            error = infer_error(stub, request)
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert error.details() == f"Unable to find shared memory region: '{name}'"
        plane.apply([model], [fake.address, other.address])
        assert infer_error(stub, in_region("second")).code() == grpc.StatusCode.NOT_FOUND


def test_a_backend_that_gives_up_at_the_deadline_keeps_its_slot_for_a_while(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """Triton answers at the deadline while the execution goes on."""
    plane.apply([identity_model(staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        error = infer_error(stub, infer_request(rows(1)), timeout=2)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert fake.remaining_s[0] is not None
        assert fake.remaining_s[0] < 2.1
        call = stub.ModelInfer.future(infer_request(rows(2)), timeout=ANSWER_TIMEOUT_S)
        fake.release()
        np.testing.assert_array_equal(output(call.result()), rows(2))
