"""Padded and merged answers are the model's answers to each request alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler

BUCKETS = (4, 16)
REQUESTS = 60
TIMEOUT_S = 60.0
CONFIG = """
models:
  masked:
    max_queue_delay: 500ms
    preferred_batch_rows: [32]
    padding:
      inputs:
        TOKENS: {lengths: [4, 16], value: 7, mask: MASK, length: LENGTH}
        WORDS: {lengths: [4, 16], value: filler}
      outputs:
        SUMS: {axis: 1, follows: TOKENS}
        WORDS_ECHO: {follows: WORDS}
"""

Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse
Stub = service_pb2_grpc.GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def stubs(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stub, Stub]]:
    """To a Triton of the masked model, and to a scheduler that pads before it."""
    directory = tmp_path_factory.mktemp("padding")
    models.write_model(
        directory,
        "masked",
        source="masked",
        inputs=[
            models.Tensor("TOKENS", "INT32", (-1,)),
            models.Tensor("WORDS", "BYTES", (-1,)),
            models.Tensor("MASK", "FP32", (-1,)),
            models.Tensor("LENGTH", "INT64", (1,)),
        ],
        outputs=[
            models.Tensor("SUMS", "FP32", (2, -1)),
            models.Tensor("WORDS_ECHO", "BYTES", (-1,)),
            models.Tensor("MEAN", "FP32", (1,)),
            models.Tensor("SEEN", "INT32", (2,)),
        ],
    )
    config = Path(tmp_path_factory.mktemp("config")) / "infersched.yaml"
    config.write_text(CONFIG)
    with (
        EmbeddedTriton(directory) as triton,
        ServedScheduler(["--config", str(config), "--backend", triton.grpc_address]) as served,
        grpc.insecure_channel(triton.grpc_address) as straight,
        grpc.insecure_channel(served.address) as through,
    ):
        yield Stub(straight), Stub(through)


def random_request(rng: random.Random, number: int) -> tuple[Request, Request]:
    """A request as a client of the scheduler sends it, and the same with mask and length."""
    rows, length = rng.randint(1, 3), rng.choice((1, 2, 3, 4, 9, 15, 16, 20))
    tokens = np.array([[rng.randint(-9, 9) for _ in range(length)] for _ in range(rows)], "<i4")
    words = b"".join(
        n.to_bytes(4, "little") + rng.randbytes(n)
        for n in (rng.choice((0, 3, 2000)) for _ in range(rows * length))
    )
    request = Request(model_name="masked", id=f"request-{number}")
    request.inputs.add(name="TOKENS", datatype="INT32", shape=[rows, length])
    request.inputs.add(name="WORDS", datatype="BYTES", shape=[rows, length])
    request.raw_input_contents.extend([tokens.tobytes(), words])
    complete = Request()
    complete.CopyFrom(request)
    complete.inputs.add(name="MASK", datatype="FP32", shape=[rows, length])
    complete.inputs.add(name="LENGTH", datatype="INT64", shape=[rows, 1])
    complete.raw_input_contents.append(np.ones((rows, length), "<f4").tobytes())
    complete.raw_input_contents.append(np.full(rows, length, "<i8").tobytes())
    return request, complete


def take_seen(response: Response) -> tuple[int, int]:
    """Removes SEEN: rows and length that the model was called with."""
    (index,) = [i for i, output in enumerate(response.outputs) if output.name == "SEEN"]
    del response.outputs[index]
    rows, length = np.frombuffer(response.raw_output_contents.pop(index), "<i4")[:2]
    return int(rows), int(length)


def test_padded_answers_are_those_to_each_request_alone(stubs: tuple[Stub, Stub]) -> None:
    straight, through = stubs
    rng = random.Random(3)
    requests = [random_request(rng, number) for number in range(REQUESTS)]
    # A client that knows the mask may send it to the scheduler, too.
    sent = [complete if rng.random() < 0.2 else request for request, complete in requests]
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda r: through.ModelInfer(r, timeout=TIMEOUT_S), sent))

    merged = 0
    for answer, (request, complete) in zip(answers, requests, strict=True):
        expected = straight.ModelInfer(complete, timeout=TIMEOUT_S)
        own_rows, own_length = take_seen(expected)
        rows, length = take_seen(answer)
        assert length == next((n for n in BUCKETS if n >= own_length), own_length)
        merged += rows > own_rows
        assert answer == expected, request.id
    assert merged > REQUESTS // 4, "most requests went alone"


def test_a_lone_request_is_padded_too(stubs: tuple[Stub, Stub]) -> None:
    straight, through = stubs
    request, complete = random_request(random.Random(8), 0)

    answer = through.ModelInfer(request, timeout=TIMEOUT_S)
    expected = straight.ModelInfer(complete, timeout=TIMEOUT_S)

    rows, length = take_seen(expected)
    assert take_seen(answer) == (rows, next(n for n in (*BUCKETS, length) if n >= length))
    assert answer == expected
