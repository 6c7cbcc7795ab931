"""What the control plane changes while work is queued or out, and what the counters say of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2

from scheduler._native.counters import CountersPage
from scheduler.dataplane.frames import pack_frame
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
    rows,
)
from tests.wire.fake_triton import FakeTriton, Request

VALUES = 100_000
TEXT = service_pb2.InferParameter(string_param="high")


def test_a_number_given_to_another_model_answers_the_queue_of_the_first(
    plane: DataPlane, stub: Stub, fake: FakeTriton
) -> None:
    first = fake.occupy(stub)
    queued = stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
    plane.wait_queued(1)
    other = identity_model(name="other", staged_batches_max=0)
    assert plane.apply([other], [fake.address]) == ""
    error = error_of(queued)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error_info(error).reason == "NO_BACKEND"
    fake.release()
    np.testing.assert_array_equal(output(first.result()), rows(7777.0))
    response = stub.ModelInfer(infer_request(rows(2), model="other"), timeout=30)
    np.testing.assert_array_equal(output(response), rows(2))


def test_a_cancelled_request_that_cannot_be_split_switches_nothing_off(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """The reply of a model without batch dimension has no rows, and nobody asks for them."""
    model = identity_model(max_batch_size=0, staged_batches_max=0)
    assert plane.apply([model], [fake.address]) == ""
    values = rows(1)[0]
    with connected(plane.address) as stub:
        fake.hold()
        call = stub.ModelInfer.future(infer_request(values), timeout=30)
        wait_until(lambda: len(fake.requests) == 1, "the backend has it")
        call.cancel()
        wait_until(lambda: plane.counters()["in_flight"] == 0, "it is cancelled")
        fake.release()
        wait_until(lambda: not plane.snapshot().batches, "the reply has come")
        np.testing.assert_array_equal(
            output(stub.ModelInfer(infer_request(values), timeout=30)), values
        )
    kinds = [event.WhichOneof("event") for event in plane.events]
    assert "merging_switched_off" not in kinds
    page = CountersPage(plane.counters_fd).backend(0)
    assert page is not None
    assert page["failed_batches"] == 0


def typed_request() -> Request:
    """One byte each on the wire, eight when converted."""
    request = Request(model_name="identity")
    tensor = request.inputs.add(name="INPUT0", datatype="INT64", shape=[1, VALUES])
    tensor.contents.int64_contents.extend([1] * VALUES)
    return request


def test_converted_contents_are_charged_as_well(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(datatype="INT64", dims=(-1,), staged_batches_max=0)
    limits = pb.Limits(host_bytes_max=4 * VALUES)
    assert plane.apply([model], [fake.address], limits) == ""
    with connected(plane.address) as stub:
        error = infer_error(stub, typed_request())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "HOST_MEMORY"
        assert plane.snapshot().host_bytes == 0
        limits.host_bytes_max = 20 * VALUES
        assert plane.apply([model], [fake.address], limits) == ""
        fake.hold()
        call = stub.ModelInfer.future(typed_request(), timeout=30)
        wait_until(lambda: len(fake.requests) == 1, "the backend has it")
        assert plane.snapshot().host_bytes > 9 * VALUES
        fake.release()
        assert call.result() is not None


def test_a_removed_backend_leaves_the_counters(plane: DataPlane, fake: FakeTriton) -> None:
    page = CountersPage(plane.counters_fd)
    with FakeTriton() as second:
        models = [identity_model(backends=(0, 1))]
        assert plane.apply(models, [fake.address, second.address]) == ""
        assert page.backend(1) is not None
        assert plane.apply([identity_model()], [fake.address]) == ""
        wait_until(lambda: page.backend(1) is None, "the second backend is gone")
        assert page.backend(0) is not None


def test_resets_of_clients_are_counted(plane: DataPlane, stub: Stub, fake: FakeTriton) -> None:
    fake.occupy(stub)
    calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(5)]
    plane.wait_queued(5)
    for call in calls:
        call.cancel()
    wait_until(lambda: plane.page()["streams_reset_total"] == 5, "five resets are counted")


def test_contradictions_are_refused(plane: DataPlane, stub: Stub, fake: FakeTriton) -> None:
    twice = identity_model()
    twice.placements.append(twice.placements[0])
    assert "more than once" in plane.apply([twice], [fake.address])
    backend = pb.Backend(index=0, address=fake.address, state=pb.BACKEND_STATE_SERVING)
    assert "given twice" in plane.apply([identity_model()], [backend, backend])
    same_name = [identity_model(0), identity_model(1)]
    assert "given twice" in plane.apply(same_name, [fake.address])
    tenants = {
        "weight of tenant 'a'": [pb.Tenant(name="a", weight=-1)],
        "tenant 'a' is given twice": [pb.Tenant(name="a", weight=1)] * 2,
        "at most 1024": [pb.Tenant(name=str(n), weight=1) for n in range(1025)],
    }
    for error, wanted in tenants.items():
        limits = pb.Limits(tenant_metadata_key="x-tenant", tenants=wanted)
        assert error in plane.apply([identity_model()], [fake.address], limits)
    huge = identity_model(max_batch_size=1 << 40)
    assert "out of range" in plane.apply([huge], [fake.address])
    response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
    np.testing.assert_array_equal(output(response), rows(1))


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("inputs['INPUT0']", lambda request: setattr(request.inputs[0], "datatype", "INT32")),
        ("inputs", lambda request: request.inputs.append(request.inputs[0])),
        ("outputs", lambda request: request.outputs.add(name="nothing")),
        ("parameters", lambda request: request.parameters["priority"].CopyFrom(TEXT)),
    ],
)
def test_a_bad_request_names_its_bad_field(
    field: str, spoil: Callable[[Request], object], stub: Stub
) -> None:
    request = infer_request(rows(1))
    spoil(request)
    error = infer_error(stub, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.message == error.details()
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    assert [(v.field, v.description) for v in details.field_violations] == [
        (field, error.details())
    ]


def test_a_control_plane_that_reads_nothing_is_let_go(
    plane: DataPlane, stub: Stub, fake: FakeTriton
) -> None:
    """Its unread answers are bounded, and serving goes on."""
    models = [identity_model(), *(identity_model(n, f"model-{n}") for n in range(1, 200))]
    assert plane.apply(models, [fake.address]) == ""
    request = pack_frame(pb.ToDataPlane(snapshot=pb.SnapshotRequest()).SerializeToString())
    with socket.socket(socket.AF_UNIX) as mute:
        mute.settimeout(120)
        mute.connect(str(Path(plane.cold_socket).with_name("steering.sock")))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            mute.sendall(request * 100_000)
    response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
    np.testing.assert_array_equal(output(response), rows(1))


def test_ten_thousand_models_are_served_and_counted(plane: DataPlane, fake: FakeTriton) -> None:
    models = [identity_model(n, f"model-{n}") for n in range(10_000)]
    assert plane.apply(models, [fake.address]) == ""
    with connected(plane.address) as client:
        for number in (0, 4_095, 4_096, 9_999):
            request = infer_request(rows(number), model=f"model-{number}")
            np.testing.assert_array_equal(
                output(client.ModelInfer(request, timeout=30)), rows(number)
            )
            assert plane.counters(number)["completed"] == 1
    models[5_000].batching.queue_requests_max = 0
    assert plane.apply(models, [fake.address]) == ""
    with connected(plane.address) as client:
        refused = infer_error(client, infer_request(rows(1), model="model-5000"))
        assert error_info(refused).reason == "QUEUE_FULL"
