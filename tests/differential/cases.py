"""Random requests of random models: valid ones, ones with faults, and damaged bytes.

A case follows from the seed and its number alone. Cases of one chunk draw from the same few models
and templates, so that many of them may share a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from tests.codec_messages import (
    CONTENTS_FIELD,
    Request,
    Tensor,
    add_faults,
    fill_contents,
    random_elements,
    raw_bytes,
)
from tests.codec_wire import Speller, mutate
from tests.differential.worlds import WorldModel

CHUNK = 256
CHUNK_MODELS = 3
TEMPLATES = 2
ELEMENTS_MAX = 20_000
VERSIONS = ("1", "1", "1", "-1", "01", "7", "0", "abc", " 1", "1x", "99999999999999999999")


@dataclass(frozen=True)
class Case:
    """One request as bytes, and what was meant by it."""

    number: int
    kind: str
    model: WorldModel
    message: bytes

    @property
    def request(self) -> Request | None:
        """What protobuf reads in the message."""
        try:
            return Request.FromString(self.message)
        except DecodeError:
            return None

    @property
    def batches(self) -> int:
        """Executions that it takes alone."""
        request, rows_max = self.request, self.model.max_batch_size
        if request is None or rows_max == 0 or not request.inputs or not request.inputs[0].shape:
            return 1
        return max(-(-request.inputs[0].shape[0] // rows_max), 1)


@dataclass(frozen=True)
class Template:
    """What requests must have in common to share a batch."""

    inputs: tuple[Tensor, ...]
    tails: dict[str, list[int]]
    parameters: dict[str, str | int | float | bool]


def random_template(rng: random.Random, model: WorldModel) -> Template:
    inputs = tuple(t for t in model.inputs if not t.optional or rng.random() < 0.5)
    tails = {
        t.name: [dim if dim >= 0 else rng.choice((0, 1, 1, 2, 3, 17)) for dim in t.dims]
        for t in inputs
    }
    parameters: dict[str, str | int | float | bool] = {}
    if rng.random() < 0.25:
        for key in rng.sample(("kind", "n", "é", "zz"), rng.randint(1, 2)):
            parameters[key] = rng.choice(("a", "", 7, -1, 0.5, True, False))
    return Template(inputs, tails, parameters)


def random_rows(rng: random.Random, model: WorldModel) -> int:
    """Mostly few, sometimes none, the most, or more than that."""
    limit = model.max_batch_size
    choice = rng.random()
    if choice < 0.75:
        return rng.randint(1, min(limit, 4))
    if choice < 0.85:
        return rng.randint(1, limit)
    if choice < 0.92:
        return rng.choice((limit, limit + 1))
    return rng.randint(limit, 3 * limit) if choice < 0.98 else 0


def valid_request(rng: random.Random, model: WorldModel, template: Template) -> Request:
    """A request of the template, with the freedom that members of one batch have."""
    request = Request(model_name=model.name)
    request.id = rng.choice(("", "", f"r{rng.randrange(1000)}", "é" * 70))
    rows = random_rows(rng, model) if model.max_batch_size else 1
    row_elements = sum(int(np.prod(tail, dtype=np.int64)) for tail in template.tails.values())
    rows = min(rows, max(ELEMENTS_MAX // max(row_elements, 1), 1))
    tensors = rng.sample(template.inputs, len(template.inputs))
    typed = rng.random() < 0.25 and all(t.datatype in CONTENTS_FIELD for t in tensors)
    for tensor in tensors:
        shape = list(template.tails[tensor.name])
        count = max(rows, 1) * int(np.prod(shape, dtype=np.int64))
        if model.max_batch_size:
            shape.insert(0, rows)
        entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        elements = random_elements(rng, tensor.datatype, count)
        if typed:
            entry.contents.SetInParent()
            fill_contents(entry.contents, tensor.datatype, elements)
        else:
            request.raw_input_contents.append(raw_bytes(elements))
    add_options(rng, request, model, template)
    return request


def add_options(
    rng: random.Random, request: Request, model: WorldModel, template: Template
) -> None:
    """Version, parameters and requested outputs."""
    if rng.random() < 0.2:
        request.model_version = "1"
    for key, value in template.parameters.items():
        set_parameter(request, key, value)
    if rng.random() < 0.2:
        request.parameters["priority"].int64_param = rng.randrange(4)
    if rng.random() < 0.2:
        request.parameters["timeout"].int64_param = rng.choice((0, -1, 60_000_000, 2**62))
    if rng.random() < 0.4:
        for tensor in rng.sample(model.outputs, rng.randint(1, len(model.outputs))):
            output = request.outputs.add(name=tensor.name)
            if rng.random() < 0.15 and tensor.datatype != "BYTES":
                output.parameters["classification"].int64_param = rng.choice((1, 2, 50))


def set_parameter(request: Request, key: str, value: str | int | float | bool) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(request.parameters[key], kinds[type(value)], value)


def _fault_model(rng: random.Random, request: Request) -> None:
    request.model_name = rng.choice(("nope", "", request.model_name + "x", "m0\0m1"))


def _fault_version(rng: random.Random, request: Request) -> None:
    request.model_version = rng.choice(VERSIONS)


def _fault_scheduling(rng: random.Random, request: Request) -> None:
    key = rng.choice(("priority", "timeout", "sequence_id", "sequence_start", "sequence_end"))
    parameter = request.parameters[key]
    choice = rng.randrange(5)
    if choice == 0:
        parameter.string_param = rng.choice(("", "text"))
    elif choice == 1:
        parameter.bool_param = True
    elif choice == 2:
        parameter.uint64_param = rng.choice((0, 3, 2**64 - 1))
    elif choice == 3:
        parameter.double_param = 1.5
    else:
        parameter.int64_param = rng.choice((-1, 0, 1, 60_000_000))


def _fault_region(rng: random.Random, request: Request) -> None:
    tensors = [*request.inputs, *request.outputs]
    if not tensors:
        return
    parameters = rng.choice(tensors).parameters
    parameters["shared_memory_region"].string_param = "nowhere"
    if rng.random() < 0.7:
        parameters["shared_memory_byte_size"].int64_param = rng.choice((-1, 0, 4, 64))


def _fault_tensors(rng: random.Random, request: Request) -> None:
    add_faults(rng, request, 1)


FAULTS: Sequence[Callable[[random.Random, Request], None]] = (
    _fault_model,
    _fault_version,
    _fault_scheduling,
    _fault_region,
    *((_fault_tensors,) * 16),
)


def random_case(seed: int, number: int, models: Sequence[WorldModel]) -> Case:
    rng = random.Random(f"{seed}/case/{number}")
    chunk = f"{seed}/chunk/{number // CHUNK}"
    few = random.Random(chunk).sample(models, min(CHUNK_MODELS, len(models)))
    model = rng.choice(few)
    group = f"{chunk}/{model.name}/{rng.randrange(TEMPLATES)}"
    request = valid_request(rng, model, random_template(random.Random(group), model))
    choice = rng.random()
    kind = "valid" if choice < 0.6 else "broken" if choice < 0.92 else "damaged"
    if kind == "broken":
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(FAULTS)(rng, request)
    odd = rng.random() < 0.4
    message = Speller(rng).request(request) if odd else request.SerializeToString()
    if kind == "damaged":
        message = mutate(rng, message, rng.randint(1, 4))
    return Case(number, kind, model, message)
