"""On which devices the instances of a model are, at one backend.

Triton tells the numbers of the GPUs in a model's instance groups. `devices` of the backend gives
their keys; without it they are the numbers of NVML for a backend of this host, and the devices of a
metrics port elsewhere where that leaves no choice: a port does not tell the order of its devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from scheduler.backends.catalog import ModelSpec
from scheduler.config import Backend
from scheduler.control.executors import gpus_of
from scheduler.memory.source import DeviceReading


@dataclass(frozen=True)
class Places:
    """The devices' keys. With a `problem` they are not known now: the last ones, if any; none
    without: none is used. `candidates` are those that it may be on then."""

    keys: tuple[str, ...] = ()
    problem: str = ""
    candidates: tuple[str, ...] = ()


def instances_on_a_gpu(config: model_config_pb2.ModelConfig) -> int:
    """The most instances that share one GPU, as far as the groups name them.

    Those on a processor count where there are no others: they use one all the same.
    """
    counts: Counter[int] = Counter()
    anywhere = on_processor = 0
    for group in config.instance_group:
        if group.passive:
            continue
        count = max(group.count, 1)
        if group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU:
            on_processor += count
        elif group.gpus:
            counts.update(dict.fromkeys(group.gpus, count))
        else:
            anywhere += count
    return max(counts.values(), default=0) + anywhere or on_processor


def places_of(
    backend: Backend,
    spec: ModelSpec,
    told_gpus: Collection[int],
    local: Sequence[DeviceReading] | None,
    port: Sequence[DeviceReading],
) -> Places:
    """`told_gpus` are those that the configuration gives the model. `local` has what NVML tells
    where the backend is on this host, `port` what its metrics port tells."""
    if not told_gpus and not spec.config.instance_group:
        # An ensemble's steps are models of their own; of others Triton tells groups.
        ensemble = spec.config.HasField("ensemble_scheduling")
        return Places(() if ensemble else backend.devices)
    gpus = frozenset(told_gpus) or gpus_of(spec.config)
    if gpus is not None and not gpus:
        return Places()
    if backend.devices:
        return _by_config(backend.devices, gpus)
    if local:
        return _by_nvml(local, gpus)
    return _by_port(port, gpus)


def _numbers(gpus: frozenset[int]) -> str:
    return f"GPU{'s' if len(gpus) > 1 else ''} {', '.join(map(str, sorted(gpus)))}"


def _by_config(devices: tuple[str, ...], gpus: frozenset[int] | None) -> Places:
    if gpus is None:
        return Places(devices)
    beyond = frozenset(gpu for gpu in gpus if gpu >= len(devices))
    if beyond:
        return Places(
            problem=f"it has instances on {_numbers(beyond)}, and `devices` of the backend names "
            f"{len(devices)}"
        )
    return Places(tuple(devices[gpu] for gpu in sorted(gpus)))


def _by_nvml(local: Sequence[DeviceReading], gpus: frozenset[int] | None) -> Places:
    """CUDA sees of a divided GPU its first MIG instance only."""
    by_number: dict[int, str] = {}
    for reading in local:
        by_number.setdefault(reading.ordinal, reading.key)
    if gpus is None:
        return _only_one(tuple(by_number.values()))
    unknown = frozenset(gpus - by_number.keys())
    if unknown:
        return Places(
            problem=f"it has instances on {_numbers(unknown)}, which NVML does not tell of"
        )
    return Places(tuple(by_number[gpu] for gpu in sorted(gpus)))


def _by_port(port: Sequence[DeviceReading], gpus: frozenset[int] | None) -> Places:
    keys = tuple(reading.key for reading in port)
    if gpus is None:
        return _only_one(keys)
    if not keys:
        return Places(problem=f"it has instances on {_numbers(gpus)}, and no source tells of them")
    if gpus == frozenset(range(len(keys))):
        return Places(keys)
    return Places(
        problem=f"it has instances on {_numbers(gpus)}, and its host has several; name them in "
        "`devices` of the backend, in Triton's order",
        candidates=keys,
    )


def _only_one(keys: tuple[str, ...]) -> Places:
    if len(keys) == 1:
        return Places(keys)
    what = "several devices are there" if keys else "no source tells of a device"
    return Places(problem=f"its instance_group names no GPUs, and {what}", candidates=keys)
