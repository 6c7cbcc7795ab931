"""Random models, served by tritonservers and by one scheduler in front of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.codec_messages import ELEMENT_BYTES, Model, Tensor
from tests.serving import ServedScheduler

# What the scheduler batches by: its own policy, or as Triton's dynamic batcher does.
DEFAULT_BATCHING = "default"
BATCHINGS = (DEFAULT_BATCHING, "triton")
# Of the models that tell what an oversize request is answered where it has not to be split.
LARGER_ROWS_MAX = 2**31 - 1
SOURCE = Path(__file__).parent / "models" / "generic.py"
# The faults of tests.codec_messages name tensors after these, so that some hit.
INPUT_NAMES = ("A", "B", "S", "AB", "T_FP32")
OUTPUT_NAMES = ("X", "Y", "W", "XY")
# What a python model may say of an error.
ERROR_CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
)


@dataclass(frozen=True)
class WorldModel(Model):
    """A model with what its python file does: (output, the input it echoes or None: digest)."""

    plan: tuple[tuple[str, str | None], ...] = ()
    poison: int | None = None
    poison_code: str = "INTERNAL"


def larger_name(name: str) -> str:
    """Of the model that does as the model `name`, in larger batches."""
    return f"larger_{name}"


def larger_models(chosen: tuple[WorldModel, ...]) -> tuple[WorldModel, ...]:
    return tuple(
        replace(model, name=larger_name(model.name), max_batch_size=LARGER_ROWS_MAX)
        for model in chosen
        if model.max_batch_size > 0
    )


@dataclass(frozen=True)
class World:
    """Where the two ways begin, and the models behind both."""

    models: tuple[WorldModel, ...]
    straight: str
    through: str
    # The first one is also asked straight.
    backends: tuple[str, ...]


def random_dims(rng: random.Random) -> tuple[int, ...]:
    rank = rng.choice((1, 1, 1, 2, 3))
    return tuple(-1 if rng.random() < 0.3 else rng.randint(1, 4) for _ in range(rank))


def random_model(rng: random.Random, name: str) -> WorldModel:
    """1–3 inputs of any type, at least one of them required; 1–4 outputs."""
    batched = rng.random() < 0.8
    names = rng.sample(INPUT_NAMES, rng.choice((1, 1, 2, 3)))
    inputs = []
    for number, tensor in enumerate(names):
        optional = number > 0 and rng.random() < 0.4
        datatype = rng.choice(list(ELEMENT_BYTES))
        inputs.append(Tensor(tensor, datatype, random_dims(rng), optional))
    required = [tensor for tensor in inputs if not tensor.optional]
    outputs, plan = [], []
    for tensor in rng.sample(OUTPUT_NAMES, rng.randint(1, len(OUTPUT_NAMES))):
        if rng.random() < 0.4:
            outputs.append(Tensor(tensor, "INT64", (1,)))
            plan.append((tensor, None))
        else:
            source = rng.choice(required)
            outputs.append(Tensor(tensor, source.datatype, source.dims))
            plan.append((tensor, source.name))
    rng.shuffle(inputs)
    # The model answers its outputs in another order than its configuration has them.
    rng.shuffle(plan)
    return WorldModel(
        name,
        tuple(inputs),
        tuple(outputs),
        rng.choice((1, 2, 4, 8, 8, 16, 64)) if batched else 0,
        tuple(plan),
        rng.randrange(251) if rng.random() < 0.15 else None,
        rng.choice(ERROR_CODES),
    )


def random_models(seed: int | str, count: int) -> tuple[WorldModel, ...]:
    return tuple(random_model(random.Random(f"{seed}/model/{n}"), f"m{n}") for n in range(count))


def plan_of(model: WorldModel) -> dict[str, object]:
    return {"outputs": model.plan, "poison": model.poison, "poison_code": model.poison_code}


def write_repository(repository: Path, chosen: tuple[WorldModel, ...]) -> None:
    for model in chosen:
        models.write_model(
            repository,
            model.name,
            source=SOURCE,
            inputs=[models.Tensor(t.name, t.datatype, t.dims, t.optional) for t in model.inputs],
            outputs=[models.Tensor(t.name, t.datatype, t.dims) for t in model.outputs],
            max_batch_size=model.max_batch_size,
            parameters={"plan": json.dumps(plan_of(model))},
        )


def random_block(rng: random.Random, model: WorldModel) -> dict[str, object]:
    """A dynamic_batching block that refuses nothing: no answer is another because of it."""
    rows = range(1, model.max_batch_size + 1)
    block: dict[str, object] = {}
    if rng.random() < 0.5:
        block["preferred_batch_size"] = sorted(rng.sample(rows, rng.randint(1, min(len(rows), 3))))
    if rng.random() < 0.5:
        block["max_queue_delay_microseconds"] = rng.choice((100, 1000, 5000))
    if rng.random() < 0.3:
        block["preserve_ordering"] = True
    if rng.random() < 0.3:
        block |= {"priority_levels": 3, "default_priority_level": rng.randint(1, 3)}
    return block


def model_settings(
    batching: str, rng: random.Random, chosen: tuple[WorldModel, ...]
) -> dict[str, dict[str, object]]:
    """Of a configuration with this `batching`. By the default one half of the models wait a little
    for more requests to merge; as Triton batches, most that can have a block of their own."""
    if batching == DEFAULT_BATCHING:
        return {model.name: {"max_queue_delay": "20ms"} for model in chosen[::2]}
    settings: dict[str, dict[str, object]] = {}
    for model in chosen:
        settings[model.name] = {"batching": batching}
        if model.max_batch_size > 0 and rng.random() < 0.8:
            settings[model.name]["dynamic_batching"] = random_block(rng, model)
    return settings


@contextmanager
def world(
    directory: Path,
    chosen: tuple[WorldModel, ...],
    settings: dict[str, dict[str, object]],
    *,
    backends: int = 1,
) -> Iterator[World]:
    """So many Tritons of the same models and the scheduler, ready."""
    # One for all: texts of python models name their file.
    repository = directory / "models"
    repository.mkdir()
    write_repository(repository, chosen + larger_models(chosen))
    configuration = directory / "configuration.yaml"
    # Nobody has to learn that the end is near.
    drain = {"drain": {"propagation_wait": "0s"}}
    configuration.write_text(yaml.safe_dump({"server": drain, "models": settings}))
    with ExitStack() as stack:
        tritons = [stack.enter_context(EmbeddedTriton(repository)) for _ in range(backends)]
        addresses = tuple(triton.grpc_address for triton in tritons)
        arguments = ["--config", str(configuration)]
        for address in addresses:
            arguments += ["--backend", address]
        scheduler = stack.enter_context(ServedScheduler(arguments))
        yield World(chosen, addresses[0], scheduler.address, addresses)
