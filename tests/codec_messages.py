"""ModelInfer messages for the codec's tests: models, valid requests, faults."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2

from scheduler._native import codec

Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse

ELEMENT_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    "BYTES": 0,
}
CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a test model; `dims` without the batch, -1 = variable."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """A test model, as the codec and as a Triton repository know it."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 4

    def schema(self, *, rows_max: int | None = None) -> codec.ModelSchema:
        limit = self.max_batch_size if rows_max is None else rows_max
        schema = codec.ModelSchema(
            self.name, "1", max_batch_size=self.max_batch_size, rows_max=limit
        )
        for tensor in self.inputs:
            schema.add_input(tensor.name, tensor.datatype, tensor.dims, optional=tensor.optional)
        for tensor in self.outputs:
            schema.add_output(tensor.name, tensor.datatype, tensor.dims)
        return schema


_OUTPUTS = (Tensor("X", "FP32", (1,)), Tensor("Y", "BYTES", (1,)))
MODELS = (
    Model("pair", (Tensor("A", "FP32", (4,)), Tensor("B", "INT32", (-1, 2))), _OUTPUTS),
    Model("text", (Tensor("S", "BYTES", (2,)),), _OUTPUTS),
    Model("flat", (Tensor("A", "FP32", (-1, 2)), Tensor("S", "BYTES", (-1,))), _OUTPUTS, 0),
    Model(
        "choice",
        (Tensor("A", "INT64", (2,)), Tensor("B", "FP32", (1,), True), Tensor("C", "FP32", (1,))),
        _OUTPUTS,
    ),
    Model(
        "types",
        tuple(Tensor(f"T_{datatype}", datatype, (2,), True) for datatype in ELEMENT_BYTES),
        _OUTPUTS,
    ),
)


def bytes_tensor(elements: list[bytes]) -> bytes:
    """The raw form of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def random_elements(rng: random.Random, datatype: str, count: int) -> bytes | list[bytes]:
    if datatype == "BYTES":
        return [rng.randbytes(rng.choice((0, 1, 3, 40))) for _ in range(count)]
    if datatype == "BOOL":
        return bytes(rng.randrange(2) for _ in range(count))
    if datatype in ("FP32", "FP64"):
        # Python's float does not keep the bits of every NaN.
        return np.array(
            [rng.gauss(0, 1e6) for _ in range(count)], "<f4" if datatype == "FP32" else "<f8"
        ).tobytes()
    return rng.randbytes(count * ELEMENT_BYTES[datatype])


def raw_bytes(elements: bytes | list[bytes]) -> bytes:
    return bytes_tensor(elements) if isinstance(elements, list) else elements


def fill_contents(
    contents: service_pb2.InferTensorContents, datatype: str, elements: bytes | list[bytes]
) -> None:
    """Sets the typed form of `elements`; the datatype must have one."""
    field = getattr(contents, CONTENTS_FIELD[datatype])
    if isinstance(elements, list):
        field.extend(elements)
    else:
        numpy_type = {"FP32": "f4", "FP64": "f8", "BOOL": "?"}.get(
            datatype, f"{'u' if datatype[0] == 'U' else 'i'}{ELEMENT_BYTES[datatype]}"
        )
        field.extend(
            np.frombuffer(elements, f"<{numpy_type}" if numpy_type != "?" else "?").tolist()
        )


def random_request(rng: random.Random, model: Model, *, rows: int | None = None) -> Request:
    """A valid request of `model`."""
    request = Request(model_name=model.name, id=rng.choice(("", "7", "request-é", "x" * 40)))
    if rows is None:
        rows = rng.randint(1, max(model.max_batch_size, 1))
    tensors = [t for t in model.inputs if not t.optional or rng.random() < 0.5]
    if not tensors:
        tensors = [rng.choice(model.inputs)]
    rng.shuffle(tensors)
    typed = rng.random() < 0.3 and all(t.datatype in CONTENTS_FIELD for t in tensors)
    for tensor in tensors:
        shape = [dim if dim >= 0 else rng.randint(0, 3) for dim in tensor.dims]
        if model.max_batch_size:
            shape.insert(0, rows)
        entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        count = int(np.prod(shape, dtype=np.int64))
        elements = random_elements(rng, tensor.datatype, count)
        if typed:
            entry.contents.SetInParent()
            fill_contents(entry.contents, tensor.datatype, elements)
        else:
            request.raw_input_contents.append(raw_bytes(elements))
    for tensor in model.outputs:
        if rng.random() < 0.3:
            request.outputs.add(name=tensor.name)
    return request


def _any_parameter(rng: random.Random, parameter: service_pb2.InferParameter) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        parameter.bool_param = rng.random() < 0.5
    elif kind == 1:
        parameter.int64_param = rng.choice((-1, 0, 1, 5_000_000))
    elif kind == 2:
        parameter.string_param = "text"
    elif kind == 3:
        parameter.double_param = 0.5
    elif kind == 4:
        parameter.uint64_param = rng.choice((0, 1, 2**63))
    else:
        parameter.SetInParent()


def _fault_parameter(rng: random.Random, request: Request) -> None:
    keys = ("priority", "timeout", "other", "triton_enable_empty_final_response", "triton_x")
    _any_parameter(rng, request.parameters[rng.choice(keys)])


def _fault_shape(rng: random.Random, request: Request) -> None:
    shape = rng.choice(request.inputs).shape
    choice = rng.randrange(5)
    if choice == 0 or not shape:
        shape.append(rng.choice((1, 2)))
    elif choice == 1:
        del shape[rng.randrange(len(shape))]
    elif choice == 2:
        del shape[:]
    else:
        extremes = (-(2**63), -3, -1, 0, 1, 2, 5, 2**31, 2**32 + 1, 2**62, 2**63 - 1)
        shape[rng.randrange(len(shape))] = rng.choice(extremes)


def _fault_rows(rng: random.Random, request: Request) -> None:
    rows = rng.choice((-1, 0, 0, 1, 5, 7, 2**31, 2**32, 2**32 + 1))
    for entry in request.inputs:
        if entry.shape:
            entry.shape[0] = rows


def _fault_datatype(rng: random.Random, request: Request) -> None:
    odd = ("", "FP8", "fp32", "STRING", "INT", "INT3", "INT88", "BOOLEAN", "BYTESX")
    rng.choice(request.inputs).datatype = rng.choice((*ELEMENT_BYTES, *odd))


def _fault_input_name(rng: random.Random, request: Request) -> None:
    rng.choice(request.inputs).name = rng.choice(("", "Z", "A", "B", "é"))


def _fault_input_count(rng: random.Random, request: Request) -> None:
    choice = rng.randrange(3)
    if choice == 0:
        request.inputs.add(name=rng.choice(("Z", "A", "S")), datatype="FP32", shape=[1, 4])
    elif choice == 1:
        request.inputs.append(rng.choice(request.inputs))
    else:
        del request.inputs[rng.randrange(len(request.inputs))]


def _fault_raw(rng: random.Random, request: Request) -> None:
    raw = request.raw_input_contents
    choice = rng.randrange(4)
    if choice == 0 or not raw:
        raw.append(rng.randbytes(rng.choice((0, 4, 16))))
        return
    i = rng.randrange(len(raw))
    if choice == 1:
        del raw[i]
    elif choice == 2:
        raw[i] = raw[i][: rng.randrange(len(raw[i]) + 1)]
    else:
        raw[i] += rng.randbytes(rng.choice((1, 2, 4, 16)))


def _fault_strings(rng: random.Random, request: Request) -> None:
    for i, entry in enumerate(request.inputs):
        if entry.datatype == "BYTES" and i < len(request.raw_input_contents):
            elements = [rng.randbytes(rng.randrange(5)) for _ in range(rng.randrange(10))]
            request.raw_input_contents[i] = bytes_tensor(elements)


def _fault_contents(rng: random.Random, request: Request) -> None:
    contents = rng.choice(request.inputs).contents
    choice = rng.randrange(4)
    if choice == 0:
        contents.SetInParent()
        return
    datatype = rng.choice(list(CONTENTS_FIELD))
    fill_contents(contents, datatype, random_elements(rng, datatype, rng.randint(1, 4)))


def _fault_output(rng: random.Random, request: Request) -> None:
    output = request.outputs.add(name=rng.choice(("", "X", "Y", "Z", "W")))
    if rng.random() < 0.5:
        _any_parameter(rng, output.parameters[rng.choice(("classification", "binary_data"))])


FAULTS: tuple[Callable[[random.Random, Request], None], ...] = (
    _fault_parameter,
    _fault_shape,
    _fault_rows,
    _fault_datatype,
    _fault_input_name,
    _fault_input_count,
    _fault_raw,
    _fault_strings,
    _fault_contents,
    _fault_output,
)


def add_faults(rng: random.Random, request: Request, count: int) -> None:
    """Applies `count` random changes that may make the request wrong."""
    for _ in range(count):
        fault = rng.choice(FAULTS)
        if request.inputs or fault in (_fault_parameter, _fault_output, _fault_raw):
            fault(rng, request)
