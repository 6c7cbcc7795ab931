"""The client of the JavaScript world against the data plane and a fake Triton."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.grpc_js import JsClient, NotInstalledError, install
from tests.wire.calls import infer_request, rows
from tests.wire.fake_triton import FakeTriton, Request, Response, identity


@pytest.fixture
def client(plane: DataPlane, fake: FakeTriton) -> Iterator[JsClient]:
    try:
        install()
    except NotInstalledError as error:
        pytest.skip(str(error))
    assert plane.apply([identity_model(staged_batches_max=0)], [fake.address]) == ""
    with JsClient(address=plane.address) as running:
        yield running


def test_many_calls_are_merged_and_answered(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.hold()
    calls = [client.start(infer_request(rows(n, 1 + n % 3))) for n in range(300)]
    wait_until(lambda: plane.counters()["in_flight"] == 300, "all have come")
    fake.release()
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(client.values(call), rows(n, 1 + n % 3))
    assert len(fake.requests) < 15, "of up to 64 rows, 600 in all"


def test_large_messages_pass_both_ways(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(dims=(-1,))], [fake.address])
    values = rows(1, 4, 300_000)  # 4.8 MB
    np.testing.assert_array_equal(client.values(client.start(infer_request(values))), values)


def test_errors_arrive_with_code_text_and_details(client: JsClient) -> None:
    answer = client.answer(client.start(infer_request(rows(1), model="nope")))
    assert answer["code"] == 5
    assert answer["details"] == "Request for unknown model: 'nope' is not found"
    request = infer_request(rows(1), parameters={"priority": "high"})
    assert client.answer(client.start(request))["code"] == 3
    assert client.answer(client.start(b"\xff\xff"))["code"] == 13


def test_a_refusal_carries_details_and_pushback(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    model = identity_model(queue_requests_max=1, staged_batches_max=0)
    plane.apply([model], [fake.address])
    fake.hold()
    # grpc-js itself obeys the pushback for a retry policy; it has none here.
    first = client.start(infer_request(rows(1)))
    wait_until(lambda: len(fake.requests) == 1, "it is in flight")
    second = client.start(infer_request(rows(2)))
    plane.wait_queued(1)
    refused = client.answer(client.start(infer_request(rows(3))))
    assert refused["code"] == 8
    assert int(refused["trailers"]["grpc-retry-pushback-ms"][0]) >= 1
    assert refused["trailers"]["grpc-status-details-bin"]
    fake.release()
    np.testing.assert_array_equal(client.values(first), rows(1))
    np.testing.assert_array_equal(client.values(second), rows(2))


def test_deadlines_and_cancels_free_the_queue(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.hold()
    first = client.start(infer_request(rows(1)))
    wait_until(lambda: len(fake.requests) == 1, "it is in flight")
    expired = client.start(infer_request(rows(2)), timeout_ms=150)
    cancelled = client.start(infer_request(rows(3)), cancel_after_ms=100)
    assert client.answer(expired)["code"] == 4
    assert client.answer(cancelled)["code"] == 1
    plane.wait_queued(0)
    assert plane.counters()["in_flight"] == 1
    fake.release()
    np.testing.assert_array_equal(client.values(first), rows(1))


def test_metadata_pass_both_ways(client: JsClient, plane: DataPlane, fake: FakeTriton) -> None:
    def with_metadata(request: Request, context: grpc.ServicerContext) -> Response:
        context.send_initial_metadata((("x-version", "7"),))
        context.set_trailing_metadata((("x-cost", "3"), ("x-blob-bin", b"\x00\xff")))
        return identity(request)

    fake.behaviour = with_metadata
    limits = pb.Limits(forward_metadata=["x-tenant", "x-key-bin"])
    plane.apply([identity_model()], [fake.address], limits)
    key = base64.b64encode(b"\x00\x01\xfe").decode()
    sent = {"x-tenant": "gold", "x-key-bin": key, "x-other": "stays here"}
    answer = client.answer(client.start(infer_request(rows(1)), metadata=sent))
    assert answer["code"] == 0, answer
    (received,) = fake.metadata
    assert (received["x-tenant"], received["x-key-bin"]) == ("gold", str(b"\x00\x01\xfe"))
    assert "x-other" not in received
    assert answer["headers"]["x-version"] == ["7"]
    assert answer["trailers"]["x-cost"] == ["3"]
    assert base64.b64decode(answer["trailers"]["x-blob-bin"][0]) == b"\x00\xff"
