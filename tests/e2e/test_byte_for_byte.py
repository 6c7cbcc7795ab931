"""The answer to a merged request equals, byte for byte, the answer Triton gives to it alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import Stub, connected
from tests.wire.raw_client import INFER_PATH

REQUESTS = 300
ROWS_MAX = 8

Request = service_pb2.ModelInferRequest


def add_input(request: Request, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)


def texts(rng: random.Random, count: int) -> bytes:
    """`count` BYTES elements, empty ones and long ones too."""
    lengths = [rng.choice((0, 1, 5, 40, 3000)) for _ in range(count)]
    return b"".join(n.to_bytes(4, "little") + rng.randbytes(n) for n in lengths)


def identity_input(rng: random.Random, model: str, rows: int) -> tuple[str, list[int], bytes]:
    if model == "identity_bytes":
        return "BYTES", [rows, 2], texts(rng, 2 * rows)
    if model == "identity_int64":
        width = rng.choice((1, 3, 700))
        return "INT64", [rows, width], rng.randbytes(8 * rows * width)
    if model == "identity_fp16":
        return "FP16", [rows, 4, 2], rng.randbytes(2 * 8 * rows)
    if model == "identity_bool":
        return "BOOL", [rows, 3], bytes(rng.randrange(2) for _ in range(3 * rows))
    if model == "unbatched":
        return "FP32", [16], rng.randbytes(4 * 16)
    return "FP32", [rows, 16], rng.randbytes(4 * 16 * rows)


def random_request(rng: random.Random, model: str, number: int) -> Request:
    request = Request(model_name=model)
    if rng.random() < 0.7:
        request.id = f"request-{number}"
    if rng.random() < 0.3:
        request.model_version = "1"
    rows = rng.randint(1, ROWS_MAX)
    if model == "mixed":
        tensors = [
            ("VALUES", "FP32", [rows, 16], np.float32(rng.random()) * np.ones((rows, 16), "f4")),
            ("LABEL", "BYTES", [rows, 1], texts(rng, rows)),
        ]
        rng.shuffle(tensors)
        for name, datatype, shape, data in tensors:
            raw = data if isinstance(data, bytes) else data.astype(np.float32).tobytes()
            add_input(request, name, datatype, shape, raw)
        names = ["VALUES_ECHO", "LABEL_ECHO", "SUM"]
    else:
        add_input(request, "INPUT0", *identity_input(rng, model, rows))
        names = ["OUTPUT0"]
    if rng.random() < 0.4:
        for name in rng.sample(names, rng.randint(1, len(names))):
            request.outputs.add(name=name)
    if rng.random() < 0.2:
        request.parameters["kind"].string_param = rng.choice("ab")
    if rng.random() < 0.2:
        request.parameters["priority"].int64_param = 1
    return request


def executed_batches(stub: Stub, model: str) -> dict[int, int]:
    """Executions by batch size, as Triton counted them."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    statistics = stub.ModelStatistics(request, timeout=30).model_stats[0]
    return {
        int(entry.batch_size): int(entry.compute_infer.count) for entry in statistics.batch_stats
    }


def executed_rows(stub: Stub, model: str) -> int:
    return sum(size * count for size, count in executed_batches(stub, model).items())


def shuffled_wire_order(message: bytes) -> bytes:
    """The same message with its fields in another order, as other encoders write it."""
    parsed = Request.FromString(message)
    raw = Request()
    raw.raw_input_contents.extend(parsed.raw_input_contents)
    rest = Request()
    rest.CopyFrom(parsed)
    rest.ClearField("raw_input_contents")
    return raw.SerializeToString() + rest.SerializeToString()


MODELS = (
    "identity",
    "identity_bytes",
    "identity_int64",
    "identity_fp16",
    "identity_bool",
    "identity_small",
    "mixed",
    "unbatched",
)


@pytest.fixture(scope="module")
def gathering(
    triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedScheduler]:
    """A scheduler that waits for more requests, however slowly a client sends them."""
    config = tmp_path_factory.mktemp("config") / "infersched.yaml"
    config.write_text("defaults: {max_queue_delay: 500ms}\n")
    arguments = ["--backend", triton.grpc_address, "--config", str(config)]
    with ServedScheduler(arguments) as served:
        yield served


@pytest.mark.parametrize("model", MODELS)
def test_merged_answers_equal_lone_ones(
    model: str, triton: EmbeddedTriton, gathering: ServedScheduler, rng: random.Random
) -> None:
    requests = [random_request(rng, model, number) for number in range(REQUESTS)]
    with connected(triton.grpc_address) as direct, connected(gathering.address) as through:
        sent_rows = sum(rows_of(request, model) for request in requests)
        first = executed_rows(direct, model)
        expected = [direct.ModelInfer(request, timeout=30) for request in requests]
        # Triton counts after it has answered.
        wait_until(lambda: executed_rows(direct, model) - first >= sent_rows, "all is counted")
        before = executed_batches(direct, model)
        calls = [through.ModelInfer.future(request, timeout=60) for request in requests]
        answers = [call.result() for call in calls]
        wait_until(lambda: executed_rows(direct, model) - first >= 2 * sent_rows, "all is counted")
        after = executed_batches(direct, model)
    for request, answer, alone in zip(requests, answers, expected, strict=True):
        assert answer == alone, f"{request.id}: {request.inputs}"
        # Equal in all that protobuf knows; and the same bytes, whatever the order of fields.
        assert answer.ByteSize() == alone.ByteSize()
    grown = {size: count - before.get(size, 0) for size, count in after.items()}
    grown = {size: count for size, count in grown.items() if count}
    assert sum(size * count for size, count in grown.items()) == sent_rows, "each row ran once"
    if model == "unbatched":
        assert set(grown) <= {0, 1}
    else:
        limit = 8 if model == "identity_small" else 64
        assert max(grown) <= limit
        assert max(grown) > ROWS_MAX or limit == ROWS_MAX, f"requests were merged: {grown}"
        assert sum(grown.values()) < REQUESTS


def rows_of(request: Request, model: str) -> int:
    return 1 if model == "unbatched" else int(request.inputs[0].shape[0])


def test_the_order_of_fields_on_the_wire_does_not_matter(
    triton: EmbeddedTriton, scheduler: ServedScheduler, rng: random.Random
) -> None:
    messages = [random_request(rng, "mixed", number).SerializeToString() for number in range(100)]
    with (
        grpc.insecure_channel(triton.grpc_address) as direct,
        grpc.insecure_channel(scheduler.address) as through,
    ):
        infer: Any = direct.unary_unary(INFER_PATH)
        expected = [infer(message, timeout=30) for message in messages]
        infer = through.unary_unary(INFER_PATH)
        calls = [infer.future(shuffled_wire_order(message), timeout=60) for message in messages]
        for call, alone in zip(calls, expected, strict=True):
            answer = service_pb2.ModelInferResponse.FromString(call.result())
            assert answer == service_pb2.ModelInferResponse.FromString(alone)
