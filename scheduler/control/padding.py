"""Configured padding against what a model's inputs and outputs really are."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator

from scheduler.backends.catalog import TensorSpec
from scheduler.config.padding import InputPadding, OutputPadding, Padding
from scheduler.v1 import dataplane_pb2 as pb

_INTEGER_BITS = {
    f"{sign}{bits}": (bits, sign == "INT") for sign in ("INT", "UINT") for bits in (8, 16, 32, 64)
}
_FLOAT_CODES = {"FP16": "<e", "FP32": "<f", "FP64": "<d"}
_NUMERIC = (*_INTEGER_BITS, *_FLOAT_CODES, "BF16", "BOOL")
# The others cannot hold every length exactly.
_LENGTH_TYPES = (*_INTEGER_BITS, "FP32", "FP64")


def element_bytes(datatype: str, value: bool | int | float | str | None) -> bytes:
    """One element of padding as it lies in a tensor; of BYTES the text alone.

    Raises ValueError when the datatype has no such value.
    """
    if datatype == "BYTES":
        if value is None or isinstance(value, str):
            return (value or "").encode()
        raise ValueError(f"value {value!r} is no text, which BYTES needs; put it in quotes")
    number = 0 if value is None else value
    if isinstance(number, str):
        raise ValueError(f"value {value!r} is no number, which {datatype} needs")
    try:
        return _number_bytes(datatype, number)
    except (OverflowError, struct.error):
        raise ValueError(f"value {value!r} does not fit {datatype}") from None


def _number_bytes(datatype: str, number: float) -> bytes:
    if datatype in _INTEGER_BITS:
        if not math.isfinite(number) or int(number) != number:
            raise OverflowError
        bits, signed = _INTEGER_BITS[datatype]
        return int(number).to_bytes(bits // 8, "little", signed=signed)
    if datatype == "BOOL":
        if number not in (0, 1):
            raise OverflowError
        return bytes([int(number)])
    if datatype == "BF16":
        (bits,) = struct.unpack("<I", struct.pack("<f", number))
        # To the nearest, ties to even; a NaN has no neighbour.
        rounded = bits if number != number else bits + 0x7FFF + (bits >> 16 & 1)
        return struct.pack("<H", rounded >> 16)
    if datatype in _FLOAT_CODES:
        return struct.pack(_FLOAT_CODES[datatype], number)
    raise OverflowError


def padding_problems(
    padding: Padding, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> list[str]:
    """Why the padding does not fit the model, as sentences; none when it does."""
    by_input = {tensor.name: tensor for tensor in inputs}
    by_output = {tensor.name: tensor for tensor in outputs}
    problems: list[str] = []
    for name, padded in padding.inputs.items():
        problems += _input_problems(name, padded, by_input)
    for name, output in padding.outputs.items():
        problems += _axis_problems(f"output {name}", by_output.get(name), output)
    return problems


def _axis_problems(
    what: str, tensor: TensorSpec | None, padded: InputPadding | OutputPadding
) -> list[str]:
    if tensor is None:
        return [f"{what} is none of the model's"]
    if padded.axis >= len(tensor.dims):
        return [f"{what} has no axis {padded.axis}: its dims are {list(tensor.dims)}"]
    if tensor.dims[padded.axis] != -1:
        return [
            f"{what} has the fixed length {tensor.dims[padded.axis]} at axis {padded.axis}; only "
            "a variable one (-1) can be padded"
        ]
    return []


def _input_problems(
    name: str, padded: InputPadding, inputs: dict[str, TensorSpec]
) -> Iterator[str]:
    tensor = inputs.get(name)
    yield from _axis_problems(f"input {name}", tensor, padded)
    if tensor is None:
        return
    if tensor.shape_tensor or tensor.ragged:
        yield f"input {name} is a shape tensor or ragged, which is never merged"
    try:
        element_bytes(tensor.datatype, padded.value)
    except ValueError as error:
        yield f"input {name}: {error}"
    if padded.mask:
        yield from _described_problems("mask", padded.mask, inputs, _NUMERIC, (-1,))
    if padded.length:
        yield from _described_problems("length", padded.length, inputs, _LENGTH_TYPES, (1,))
        yield from _length_problems(padded, inputs.get(padded.length))


def _described_problems(
    role: str,
    name: str,
    inputs: dict[str, TensorSpec],
    datatypes: Iterable[str],
    dims: tuple[int, ...],
) -> Iterator[str]:
    tensor = inputs.get(name)
    if tensor is None:
        yield f"{role} {name} is none of the model's inputs"
        return
    if tensor.datatype not in datatypes:
        yield f"{role} {name} is {tensor.datatype}, which cannot hold a {role}"
    if tensor.dims not in (dims, (-1,)):
        yield f"{role} {name} has dims {list(tensor.dims)}; it needs {list(dims)}"


def _length_problems(padded: InputPadding, tensor: TensorSpec | None) -> Iterator[str]:
    if tensor is None or tensor.datatype not in _INTEGER_BITS:
        return
    bits, signed = _INTEGER_BITS[tensor.datatype]
    if max(padded.lengths) >= 2 ** (bits - signed):
        yield f"length {padded.length} is {tensor.datatype}, too narrow for {max(padded.lengths)}"


def apply_padding(padding: Padding, model: pb.Model) -> None:
    """Writes padding that has no problems into the model's tensors."""
    for tensor in model.inputs:
        padded = padding.inputs.get(tensor.name)
        if padded is None:
            continue
        tensor.padding.axis = padded.axis
        tensor.padding.buckets.extend(padded.lengths)
        tensor.padding.value = element_bytes(tensor.datatype, padded.value)
        tensor.padding.mask_input = padded.mask
        tensor.padding.length_input = padded.length
    for tensor in model.outputs:
        output = padding.outputs.get(tensor.name)
        if output is not None:
            tensor.trim_to = output.follows
            tensor.trim_axis = output.axis
