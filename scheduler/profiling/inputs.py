"""Requests of any number of rows for a model: from a file of real inputs, or random ones."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from scheduler.backends.catalog import ModelSpec, TensorSpec

Array = npt.NDArray[Any]
# Rows of random inputs that differ; larger batches repeat them.
RANDOM_ROWS = 64


class InputError(Exception):
    """The inputs do not fit the model; says what to change."""


def read_inputs(path: Path) -> dict[str, Array]:
    """Arrays by input: an .npz archive, a JSON object of nested lists, or a KServe request in JSON.

    Raises InputError.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and isinstance(value.get("inputs"), list):
            return {
                item["name"]: np.array(item["data"]).reshape(item["shape"])
                for item in value["inputs"]
            }
        if not isinstance(value, dict):
            raise ValueError("expected an object with the inputs by name")
        return {name: np.array(item) for name, item in value.items()}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} has no inputs that can be read: {error}") from error


def random_inputs(
    spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Arrays of RANDOM_ROWS rows. `shapes` has the dims of inputs with variable ones.

    Raises InputError where such dims are missing or do not fit.
    """
    unknown = shapes.keys() - {tensor.name for tensor in spec.inputs}
    if unknown:
        raise InputError(f"input {min(unknown)} is none of the model's")
    numbers = np.random.default_rng(seed)
    rows = (RANDOM_ROWS,) if spec.max_batch_size else ()
    return {
        tensor.name: _random(tensor, (*rows, *_dims(tensor, shapes.get(tensor.name))), numbers)
        for tensor in spec.inputs
        if not tensor.optional or tensor.name in shapes
    }


def _dims(tensor: TensorSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is None and -1 in tensor.dims:
        raise InputError(
            f"input {tensor.name} has the variable dims {list(tensor.dims)}; say them by "
            f"--shape {tensor.name}=" + ",".join("16" if d == -1 else str(d) for d in tensor.dims)
        )
    dims = tensor.dims if given is None else given
    fits = len(dims) == len(tensor.dims) and all(
        want in (-1, have) for want, have in zip(tensor.dims, dims, strict=True)
    )
    if not fits or min(dims, default=0) < 0:
        raise InputError(f"input {tensor.name} has dims {list(tensor.dims)}, not {list(dims)}")
    return dims


def _random(tensor: TensorSpec, shape: tuple[int, ...], numbers: np.random.Generator) -> Array:
    if tensor.datatype == "BYTES":
        words = numbers.integers(0, 10**8, shape)
        return np.array([str(word) for word in words.ravel()], dtype=object).reshape(shape)
    dtype = np.dtype(triton_to_np_dtype(tensor.datatype))
    if dtype.kind == "f":
        return numbers.random(shape).astype(dtype)
    # Indices into a table of the model are the usual meaning of integers: small ones exist.
    return numbers.integers(0, 2, shape).astype(dtype)


class RequestMaker:
    """Serialised ModelInferRequests of a wanted number of rows. Raises InputError."""

    def __init__(self, spec: ModelSpec, arrays: Mapping[str, Array]) -> None:
        self._spec = spec
        by_name = {tensor.name: tensor for tensor in spec.inputs}
        for name in arrays.keys() - by_name.keys():
            raise InputError(f"input {name} is none of the model's: {', '.join(by_name)}")
        for tensor in spec.inputs:
            if tensor.name not in arrays and not tensor.optional:
                raise InputError(f"input {tensor.name} is missing")
        self._arrays = {
            name: _of_datatype(by_name[name], array, bool(spec.max_batch_size))
            for name, array in arrays.items()
        }

    def message(self, rows: int) -> bytes:
        """The rows are those of the arrays, from the first on and again."""
        request = service_pb2.ModelInferRequest(
            model_name=self._spec.name, model_version=self._spec.version
        )
        for tensor in self._spec.inputs:
            if tensor.name not in self._arrays:
                continue
            array = self._arrays[tensor.name]
            if self._spec.max_batch_size:
                array = array[np.arange(rows) % len(array)]
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
            request.raw_input_contents.append(_raw(tensor.datatype, array))
        return bytes(request.SerializeToString())


def _of_datatype(tensor: TensorSpec, array: Array, batched: bool) -> Array:
    dims = array.shape[1:] if batched else array.shape
    if batched and (array.ndim == 0 or array.shape[0] == 0):
        raise InputError(f"input {tensor.name} has no rows; its first dimension is the batch")
    fits = len(dims) == len(tensor.dims) and all(
        want in (-1, have) for want, have in zip(tensor.dims, dims, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {tensor.name} has rows of shape {list(dims)}, the model wants "
            f"{list(tensor.dims)}"
        )
    if tensor.datatype == "BYTES":
        return array.astype(object)
    dtype = np.dtype(triton_to_np_dtype(tensor.datatype))
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and dtype.kind in "iu"):
        raise InputError(f"input {tensor.name} has {array.dtype}, the model wants {dtype}")
    return array.astype(dtype)


def _raw(datatype: str, array: Array) -> bytes:
    if datatype == "BYTES":
        return bytes(serialize_byte_tensor(array).item()) if array.size else b""
    if datatype == "BF16":
        # The upper half of a float, which is as good as any rounding for a load.
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return array.tobytes()
