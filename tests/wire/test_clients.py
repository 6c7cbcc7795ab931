"""Unmodified clients: tritonclient, its asyncio twin, and plain stubs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton


def infer_input(values: np.ndarray[Any, Any], datatype: str = "FP32") -> list[Any]:
    tensor = triton.InferInput("INPUT0", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


@pytest.fixture
def address(plane: DataPlane, fake: FakeTriton) -> str:
    texts = identity_model(1, "texts", datatype="BYTES", dims=[-1])
    assert plane.apply([identity_model(), texts], [fake.address]) == ""
    return plane.address


def test_tritonclient_infers_with_everything_it_offers(address: str, fake: FakeTriton) -> None:
    with triton.InferenceServerClient(address) as client:
        result = client.infer(
            "identity",
            infer_input(rows(1, 3)),
            model_version="1",
            request_id="seven",
            outputs=[triton.InferRequestedOutput("OUTPUT0")],
            priority=1,
            timeout=20_000_000,
            client_timeout=30,
            headers={"x-header": "value"},
            parameters={"text": "a", "number": 3, "flag": True},
        )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), rows(1, 3))
    assert result.get_response().id == "seven"
    assert result.get_response().model_version == "1"
    assert sorted(fake.requests[0].parameters) == ["flag", "number", "text"]


def test_tritonclient_sends_texts(address: str) -> None:
    texts = np.array([["one", "", "drei"], ["ü", "\0", "x" * 1000]], dtype=np.object_)
    with triton.InferenceServerClient(address) as client:
        result = client.infer("texts", infer_input(texts, "BYTES"))
    received = [text.decode() for text in result.as_numpy("OUTPUT0").ravel()]
    assert received == list(texts.ravel())


def test_tritonclient_calls_back(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        results: dict[str, Any] = {}

        def keep(result: Any, error: Any) -> None:
            assert error is None
            results[result.get_response().id] = result.as_numpy("OUTPUT0")

        for n in range(50):
            client.async_infer("identity", infer_input(rows(n)), keep, request_id=str(n))
        wait_until(lambda: len(results) == 50, "all callbacks ran")
    for n in range(50):
        np.testing.assert_array_equal(results[str(n)], rows(n))


def test_tritonclient_sees_errors_as_from_triton(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match="unknown model: 'nope'") as raised:
            client.infer("nope", infer_input(rows(1)))
        assert raised.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="unexpected shape for input 'INPUT0'"):
            client.infer("identity", infer_input(rows(1, 1, 8)))


def test_tritonclient_deadlines_hold(address: str, fake: FakeTriton, plane: DataPlane) -> None:
    fake.hold()
    with triton.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException) as raised:
            client.infer("identity", infer_input(rows(1)), client_timeout=0.2)
        assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        wait_until(lambda: plane.counters()["in_flight"] == 0, "its capacity is free")
    fake.release()


def test_tritonclient_cancels(address: str, fake: FakeTriton, plane: DataPlane) -> None:
    fake.hold()
    with triton.InferenceServerClient(address) as client:
        errors: list[Any] = []
        context = client.async_infer(
            "identity", infer_input(rows(1)), lambda result, error: errors.append(error)
        )
        wait_until(lambda: len(fake.requests) == 1, "it is in flight")
        context.cancel()
        wait_until(lambda: plane.counters()["cancelled"] == 1, "its capacity is free")
        wait_until(lambda: len(errors) == 1, "the callback ran")
    fake.release()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses_its_requests(address: str, algorithm: str) -> None:
    with triton.InferenceServerClient(address) as client:
        data = rows(1, 3)
        result = client.infer("identity", infer_input(data), compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), data)


def test_tritonclient_with_keepalive_stays_connected(address: str, plane: DataPlane) -> None:
    options = triton.KeepAliveOptions(
        keepalive_time_ms=20,
        keepalive_timeout_ms=20_000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    with triton.InferenceServerClient(address, keepalive_options=options) as client:
        turns = plane.page()["loop_turns"]
        for n in range(10):
            client.infer("identity", infer_input(rows(n)))
        # Each ping is a turn of the loop.
        wait_until(lambda: plane.page()["loop_turns"] > turns + 20, "pings are answered")
        client.infer("identity", infer_input(rows(1)))
    assert plane.page()["connections_total"] == 1


def test_asyncio_client_keeps_answers_apart(address: str) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            values = [rows(n, 1 + n % 5) for n in range(200)]
            results = await asyncio.gather(
                *(
                    client.infer("identity", infer_input(value), request_id=str(n))
                    for n, value in enumerate(values)
                )
            )
            for n, (value, result) in enumerate(zip(values, results, strict=True)):
                np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), value)
                assert result.get_response().id == str(n)

    asyncio.run(run())


def test_asyncio_client_cancels_by_task(address: str, fake: FakeTriton, plane: DataPlane) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            task = asyncio.create_task(client.infer("identity", infer_input(rows(1))))
            while not fake.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while plane.counters()["cancelled"] != 1:
                await asyncio.sleep(0.01)

    fake.hold()
    asyncio.run(asyncio.wait_for(run(), 20))
    fake.release()


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.0]),
    "FP64": ("fp64_contents", [1e300, float("inf")]),
    "BYTES": ("bytes_contents", [b"", b"text"]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_of_every_datatype(
    datatype: str, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(datatype=datatype, dims=[2])], [fake.address])
    field, values = TYPED[datatype]
    request = service_pb2.ModelInferRequest(model_name="identity")
    tensor = request.inputs.add(name="INPUT0", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    with connected(plane.address) as stub:
        response = stub.ModelInfer(request, timeout=30)
    expected = triton.InferResult(response).as_numpy("OUTPUT0").ravel().tolist()
    assert expected == values


def test_one_connection_carries_a_thousand_calls_at_once(
    stub: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(stub)
    # Without a deadline: by one, the first batches of an unknown model are smaller.
    calls = [stub.ModelInfer.future(infer_request(rows(n))) for n in range(900)]
    plane.wait_queued(900)
    fake.release()
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(output(call.result(60)), rows(n))
    assert len(fake.requests) == 1 + 15, "of 64 rows each"
    assert plane.page()["connections_total"] == 1


def test_a_wait_for_ready_client_finds_a_data_plane_that_starts_later(
    plane: DataPlane, fake: FakeTriton
) -> None:
    with grpc.insecure_channel(plane.address) as channel:
        call = Stub(channel).ModelInfer.future(
            infer_request(rows(1)), wait_for_ready=True, timeout=30
        )
        assert call.exception(timeout=30) is not None, "no catalog yet"
        plane.apply([identity_model()], [fake.address])
        Stub(channel).ModelInfer(infer_request(rows(1)), wait_for_ready=True, timeout=30)
