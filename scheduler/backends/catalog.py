"""What one Triton says about its models, in the terms the scheduler works with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.remembered import Described, ModelKey
from scheduler.config.profile import ProfiledModel, model_signature

# Where the configuration of a sequence model names no idle time.
SEQUENCE_IDLE_DEFAULT_US = 1_000_000
READY, LOADING, UNLOADING = "READY", "LOADING", "UNLOADING"
# Instances of an ensemble whose steps are not known: it has none of its own.
ENSEMBLE_INSTANCES = 2


class CatalogError(Exception):
    """A model's metadata or configuration cannot be used."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `dims` are without the batch dimension, -1 is variable."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    shape_tensor: bool = False
    ragged: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One version of a model as one backend serves it."""

    name: str
    version: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoupled: bool
    # When Triton forgets a sequence nobody speaks of; 0 for a model without sequences. Triton hands
    # the sequence of an ensemble's request on to its steps.
    sequence_idle_us: int
    instances: int
    metadata: service_pb2.ModelMetadataResponse
    config: model_config_pb2.ModelConfig

    @property
    def sequence(self) -> bool:
        return self.sequence_idle_us > 0

    def differs_from(self, other: ModelSpec) -> str:
        """Why the two must not serve one catalog entry together; empty when they may.

        Instance counts and settings that do not show in an answer may differ.
        """
        for key in ("max_batch_size", "decoupled", "sequence", "inputs", "outputs"):
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                return f"{key} {_brief(mine)} instead of {_brief(theirs)}"
        return ""


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        tensors = (f"{t.name} {t.datatype}{list(t.dims)}" for t in value)
        return "[" + ", ".join(tensors) + "]"
    return str(value)


def model_spec(
    version: str,
    metadata: service_pb2.ModelMetadataResponse,
    config: model_config_pb2.ModelConfig,
    others: Mapping[str, ModelSpec] | None = None,
) -> ModelSpec:
    """Reads a (completed) configuration. `others` has the models that an ensemble may go through.

    Raises CatalogError for what no scheduler can serve.
    """
    if not version.isascii() or not version.isdigit():
        raise CatalogError(f"model {config.name!r} has a version that is no number: {version!r}")
    steps = [others.get(s.model_name) for s in config.ensemble_scheduling.step] if others else []
    known = [step for step in steps if step is not None]
    return ModelSpec(
        name=config.name,
        version=version,
        max_batch_size=max(config.max_batch_size, 0),
        inputs=tuple(_input(tensor) for tensor in config.input),
        outputs=tuple(_output(tensor) for tensor in config.output),
        decoupled=config.model_transaction_policy.decoupled,
        sequence_idle_us=_sequence_idle_us(config, known),
        instances=_instances(config, known),
        metadata=metadata,
        config=config,
    )


def model_specs(described: Mapping[ModelKey, Described]) -> dict[ModelKey, ModelSpec]:
    """All models of a Triton that can be served."""
    specs = _specs(described, {})
    ensembles = {
        key: described[key]
        for key, spec in specs.items()
        if spec.config.HasField("ensemble_scheduling")
    }
    # Steps may be ensembles; they are nested no deeper than there are some.
    for _ in ensembles:
        again = _specs(ensembles, {name: spec for (name, _), spec in specs.items()})
        if all(specs[key] == spec for key, spec in again.items()):
            break
        specs |= again
    return specs


def _specs(
    described: Mapping[ModelKey, Described], others: Mapping[str, ModelSpec]
) -> dict[ModelKey, ModelSpec]:
    specs = {}
    for key, (metadata, config) in described.items():
        with contextlib.suppress(CatalogError):
            specs[key] = model_spec(key[1], metadata, config, others)
    return specs


def profiled_model(spec: ModelSpec) -> ProfiledModel:
    """The model as profiles and learned latencies name it."""
    tensors = ((t.name, t.datatype, t.dims) for t in (*spec.inputs, *spec.outputs))
    signature = model_signature(spec.max_batch_size, tensors)
    return ProfiledModel(name=spec.name, version=spec.version, signature=signature)


def _input(tensor: Any) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=datatype_name(tensor.data_type),
        dims=tuple(tensor.dims),
        optional=tensor.optional,
        shape_tensor=tensor.is_shape_tensor,
        ragged=tensor.allow_ragged_batch,
    )


def _output(tensor: Any) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=datatype_name(tensor.data_type),
        dims=tuple(tensor.dims),
        shape_tensor=tensor.is_shape_tensor,
    )


def datatype_name(data_type: int) -> str:
    """`TYPE_FP32` -> `FP32`; `TYPE_STRING` is `BYTES` on the wire."""
    name = str(model_config_pb2.DataType.Name(data_type)).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _sequence_idle_us(config: model_config_pb2.ModelConfig, steps: list[ModelSpec]) -> int:
    """Of an ensemble, of the step that forgets last: one that forgot tells so itself."""
    if not config.HasField("sequence_batching"):
        return max((step.sequence_idle_us for step in steps), default=0)
    idle_us = int(config.sequence_batching.max_sequence_idle_microseconds)
    return idle_us or SEQUENCE_IDLE_DEFAULT_US


def _instances(config: model_config_pb2.ModelConfig, steps: list[ModelSpec]) -> int:
    """How many executions run at once: the sum over the instance groups, per GPU."""
    if config.HasField("ensemble_scheduling"):
        return max((step.instances for step in steps), default=ENSEMBLE_INSTANCES)
    total = 0
    for group in config.instance_group:
        if group.passive:
            continue
        on_gpus = group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        total += max(group.count, 1) * (max(len(group.gpus), 1) if on_gpus else 1)
    return max(total, 1)


def batching_advice(config: model_config_pb2.ModelConfig) -> str:
    """The line to change where Triton's own batcher would wait on top of ours; else empty."""
    if not config.HasField("dynamic_batching"):
        return ""
    batching = config.dynamic_batching
    waits = batching.max_queue_delay_microseconds > 0
    # Triton fills [max_batch_size] into an empty block; without a delay it never waits for it.
    sizes = list(batching.preferred_batch_size)
    prefers = sizes != [config.max_batch_size] and any(size > 1 for size in sizes)
    if not waits and not prefers:
        return ""
    what = (
        f"max_queue_delay_microseconds: {batching.max_queue_delay_microseconds}"
        if waits
        else f"preferred_batch_size: {sizes}"
    )
    return (
        f"{what} in its dynamic_batching makes Triton wait again for rows that were merged here; "
        "in config.pbtxt replace the dynamic_batching block by: dynamic_batching { }"
    )
