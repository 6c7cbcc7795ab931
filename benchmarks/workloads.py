"""The requests the benchmarks send: pools of distinct, prepared ModelInferRequests.

A pool is a function of its name, size and seed, so that the process that loads and the process that
verifies make the same one. Every payload has other tensor values: an answer that went to the wrong
request cannot pass for the right one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tritonclient.grpc import service_pb2

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Payload:
    """One serialised ModelInferRequest and its number of rows (first dimension)."""

    message: bytes
    rows: int


def one_row(dims: Sequence[int], model: str, count: int, seed: int) -> list[Payload]:
    """One row of FP32[dims] named INPUT0, nothing else."""
    values = np.random.default_rng(seed)
    payloads = []
    for _ in range(count):
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, *dims])
        request.raw_input_contents.append(values.random(dims, dtype=np.float32).tobytes())
        payloads.append(Payload(request.SerializeToString(), 1))
    return payloads


def simple(model: str, count: int, seed: int) -> list[Payload]:
    """One row of FP32[16] named INPUT0, nothing else."""
    return one_row((16,), model, count, seed)


def mixed(model: str, count: int, seed: int) -> list[Payload]:
    """1-8 rows of VALUES FP32[16] and LABEL BYTES[1], ids, parameters, fields in shuffled order."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    payloads = []
    for index in range(count):
        rows = rng.randint(1, 8)
        request = service_pb2.ModelInferRequest(model_name=model, id=f"request-{index}")
        request.parameters["client"].string_param = "benchmark"
        if rng.random() < 0.5:
            request.parameters["priority"].int64_param = rng.randint(0, 2)
        if rng.random() < 0.5:
            request.parameters["timeout"].int64_param = 60_000_000
        request.inputs.add(name="VALUES", datatype="FP32", shape=[rows, 16])
        request.inputs.add(name="LABEL", datatype="BYTES", shape=[rows, 1])
        labels = [rng.randbytes(rng.randint(0, 24)) for _ in range(rows)]
        values = numbers.random((rows, 16), dtype=np.float32).tobytes()
        strings = b"".join(len(label).to_bytes(4, "little") + label for label in labels)
        if rng.random() < 0.5:  # inputs come in any order, their contents in the same one
            request.inputs.reverse()
            values, strings = strings, values
        request.raw_input_contents.extend([values, strings])
        payloads.append(Payload(shuffle_fields(request, rng), rows))
    return payloads


def image(model: str, count: int, seed: int) -> list[Payload]:
    """One row of FP32[3, 224, 224]: 600 KB."""
    return one_row((3, 224, 224), model, count, seed)


def large(model: str, count: int, seed: int) -> list[Payload]:
    """One row of FP32[4194304]: 16 MiB."""
    return one_row((4 << 20,), model, count, seed)


def of_priority(level: int, model: str, count: int, seed: int) -> list[Payload]:
    """As `simple`, with the request parameter `priority`."""
    payloads = []
    for payload in simple(model, count, seed):
        request = service_pb2.ModelInferRequest.FromString(payload.message)
        request.parameters["priority"].uint64_param = level
        payloads.append(Payload(request.SerializeToString(), payload.rows))
    return payloads


WORKLOADS: dict[str, Callable[[str, int, int], list[Payload]]] = {
    "simple": simple,
    "mixed": mixed,
    "image": image,
    "large": large,
    "priority1": partial(of_priority, 1),
    "priority2": partial(of_priority, 2),
}


def shuffle_fields(request: service_pb2.ModelInferRequest, rng: random.Random) -> bytes:
    """The same message with its fields in another order; a repeated field keeps its own order."""
    pieces = []
    for field, value in request.ListFields():
        alone = type(request)()
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, entry in value.items():
                one = type(request)()
                getattr(one, field.name)[key].CopyFrom(entry)
                pieces.append(one.SerializeToString())
            continue
        if field.name in ("inputs", "raw_input_contents"):
            getattr(alone, field.name).extend(value)
        else:
            setattr(alone, field.name, value)
        pieces.append(alone.SerializeToString())
    rng.shuffle(pieces)
    return b"".join(pieces)
