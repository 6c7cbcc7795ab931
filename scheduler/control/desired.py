"""The wanted state of the data plane: the pool's catalog and the settings as one Apply."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scheduler.backends.catalog import ModelSpec, TensorSpec
from scheduler.backends.pool import BackendPool, CatalogEntry
from scheduler.backends.remembered import ModelKey
from scheduler.backends.watch import BackendStatus
from scheduler.config import Batching, Settings, batching_problems
from scheduler.config.objectives import PriorityClass
from scheduler.config.padding import Padding
from scheduler.control.cold.regions import Regions
from scheduler.control.device_memory.places import instances_on_a_gpu
from scheduler.control.device_memory.priors import MemoryPriors
from scheduler.control.executors import ExecutorGroups
from scheduler.control.indices import BACKENDS_MAX, MODELS_MAX, IndexBook
from scheduler.control.inert import delay_not_given
from scheduler.control.latency.priors import Priors
from scheduler.control.padding import apply_padding, padding_problems
from scheduler.control.payload_memory import PayloadMemory
from scheduler.control.steered import NOTHING_STEERED, Steered
from scheduler.control.triton_batching import forms_batches, held_requests, triton_message
from scheduler.security.tls import ClientTls
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

_STATES = {
    BackendStatus.SERVING: pb.BACKEND_STATE_SERVING,
    BackendStatus.DRAINING: pb.BACKEND_STATE_DRAINING,
    BackendStatus.DOWN: pb.BACKEND_STATE_DOWN,
}

_COMPRESSION = {
    "none": pb.COMPRESSION_NONE,
    "gzip": pb.COMPRESSION_GZIP,
    "deflate": pb.COMPRESSION_DEFLATE,
}


def key_text(key: ModelKey) -> str:
    """A model version as one key of the index book."""
    return f"{key[0]}\n{key[1]}"


@dataclass
class DesiredState:
    """Builds Apply messages; remembers the numbers and what the data plane found unmergeable."""

    runtime_directory: Path
    priors: Priors | None = None
    memory_priors: MemoryPriors | None = None
    model_index: dict[ModelKey, int] = field(default_factory=dict)
    backend_index: dict[str, int] = field(default_factory=dict)
    # The specification that could not be split; a reloaded model gets another chance.
    unmergeable: dict[ModelKey, tuple[ModelSpec, str]] = field(default_factory=dict)
    executor_groups: dict[tuple[ModelKey, str], int] = field(default_factory=dict)
    # Names of models that take no new requests: they are about to be unloaded.
    refusing: set[str] = field(default_factory=set)
    # Settings of a model that do nothing as things are.
    inert: dict[ModelKey, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._models = IndexBook(self.runtime_directory / "models.json", MODELS_MAX)
        self._backends = IndexBook(self.runtime_directory / "backends.json", BACKENDS_MAX)
        self._executors = ExecutorGroups(self.runtime_directory)
        self._reported: set[tuple[ModelKey, str]] = set()

    def build(
        self,
        pool: BackendPool,
        settings: Settings,
        regions: Regions,
        payload: PayloadMemory | None = None,
        devices: Mapping[tuple[ModelKey, str], Sequence[int]] | None = None,
        residency: Steered = NOTHING_STEERED,
        device_numbers: Mapping[str, int] | None = None,
    ) -> pb.Apply:
        """The complete wanted state (without a generation)."""
        device_keys = {number: key for key, number in (device_numbers or {}).items()}
        self.backend_index = self._backends.assign(pool.watches)
        indices = self._models.assign(key_text(key) for key in pool.catalog)
        self.model_index = {
            key: indices[key_text(key)] for key in pool.catalog if key_text(key) in indices
        }
        for key in pool.catalog.keys() - self.model_index.keys():
            self._report(key, f"there are more than {MODELS_MAX} models; it is not served")
        apply = pb.Apply(limits=_limits(settings))
        for address, index in self.backend_index.items():
            backend = apply.backends.add(index=index, address=address)
            backend.connections = pool.backends[address].connections
            backend.compression = _COMPRESSION[pool.backends[address].compression]
            backend.state = _STATES[pool.watches[address].status]
            if payload is not None and address in payload.regions:
                backend.shared_memory_region = payload.regions[address]
                backend.shared_memory_key = payload.key
            tls = pool.backends[address].tls
            if tls is not None:
                backend.tls.CopyFrom(tls_message(tls.files))
        groups = self.executor_groups = self._executors.assign(pool, settings)
        self.inert = {k: self._inert(k, entry.spec, settings) for k, entry in pool.catalog.items()}
        for key, index in sorted(self.model_index.items(), key=lambda item: item[1]):
            entry = pool.catalog[key]
            mine = settings.batching_for(key[0])
            batching = self._batching(key, entry.spec, mine)
            batching.refusing = key[0] in self.refusing or key[0] in residency.refusing
            model = _model(index, entry, batching, self.backend_index)
            for placement in model.placements:
                address = self.backend_at(placement.backend_index) or ""
                placement.ready &= (key[0], address) not in residency.leaving
                placement.executor_group = groups.get((key, address), 0)
                placement.device_indices.extend((devices or {}).get((key, address), ()))
                if len(placement.device_indices) > 1:
                    there = pool.watches[address].models.get(key, entry.spec)
                    placement.device_instances = instances_on_a_gpu(there.config)
                if self.priors is not None and not batching.direct_max:
                    placement.latency_prior.extend(self.priors.of(entry.spec, address, mine))
                if self.memory_priors is not None and placement.device_indices:
                    on = [device_keys.get(number, "") for number in placement.device_indices]
                    prior = self.memory_priors.of(entry.spec, address, mine, on)
                    if prior is not None:
                        placement.memory_prior.CopyFrom(prior)
            self._pad(key, entry.spec, mine.padding, model)
            apply.models.append(model)
        if self.memory_priors is not None:
            self.memory_priors.keep_loaded(_loaded(pool))
        apply.loadable.extend(residency.loadable)
        for name, region in sorted(regions.by_name.items()):
            having = region.backends & self.backend_index.keys()
            numbers = sorted(self.backend_index[address] for address in having)
            apply.regions.add(name=name, backend_indices=numbers)
        return apply

    def model_at(self, index: int) -> ModelKey | None:
        return next((key for key, i in self.model_index.items() if i == index), None)

    def backend_at(self, index: int) -> str | None:
        return next((a for a, i in self.backend_index.items() if i == index), None)

    def merging_off(self, key: ModelKey, spec: ModelSpec) -> str:
        """Why requests of this model are not merged; empty when they are."""
        if spec.max_batch_size <= 0:
            return "max_batch_size is 0"
        if spec.decoupled:
            return "decoupled"
        if spec.sequence:
            return "sequence"
        if spec.config.response_cache.enable:
            return "Triton's response cache knows requests, not batches"
        found = self.unmergeable.get(key)
        return found[1] if found is not None and found[0] == spec else ""

    def _inert(self, key: ModelKey, spec: ModelSpec, settings: Settings) -> list[str]:
        delay = "" if self.merging_off(key, spec) else delay_not_given(settings, spec)
        if delay:
            self._report(key, delay)
        return [*([delay] if delay else []), *self._executors.inert.get(key, ())]

    def _batching(self, key: ModelKey, spec: ModelSpec, batching: Batching) -> pb.Batching:
        for problem in batching_problems(batching, spec.max_batch_size):
            if spec.max_batch_size > 0:
                self._report(key, problem)
        return batching_message(batching, spec, merge=not self.merging_off(key, spec))

    def _pad(self, key: ModelKey, spec: ModelSpec, padding: Padding, model: pb.Model) -> None:
        if not padding.inputs:
            return
        problems = padding_problems(padding, spec.inputs, spec.outputs)
        if not model.batching.merge:
            problems.append(f"its requests are not merged: {self.merging_off(key, spec)}")
        for problem in problems:
            self._report(key, f"padding is off: {problem}")
        if not problems:
            apply_padding(padding, model)

    def _report(self, key: ModelKey, problem: str) -> None:
        if (key, problem) not in self._reported:
            self._reported.add((key, problem))
            log(logger, logging.WARNING, f"model {key[0]}: {problem}", version=key[1])


def batching_message(batching: Batching, spec: ModelSpec, merge: bool) -> pb.Batching:
    """The policy of one model. Sizes above the model's own limit are left out."""
    limit = spec.max_batch_size
    triton = triton_message(batching, spec)
    rows_max = limit if triton else min(batching.max_batch_rows or limit, limit)
    levels = max(batching.priority_levels, 1)
    # Triton itself schedules what belongs together or has many answers.
    direct = spec.sequence or spec.decoupled
    return pb.Batching(
        merge=merge and batching.merge,
        rows_max=rows_max,
        preferred_rows=[size for size in batching.preferred_batch_rows if size <= rows_max],
        mandatory_rows=[size for size in batching.mandatory_batch_rows if size <= rows_max],
        queue_delay_max_ns=batching.max_queue_delay,
        priority_levels=levels,
        default_priority=batching.default_priority or (levels + 1) // 2,
        slo_ns=0 if triton else batching.slo,
        queue_requests_max=batching.max_queue_requests,
        queue_bytes_max=batching.max_queue_bytes,
        queue_age_max_ns=0 if triton else batching.max_queue_age,
        staged_batches_max=batching.staged_batches,
        idempotent=batching.idempotent,
        cancellable=batching.cancellable,
        direct_max=batching.max_inflight if direct else 0,
        sequence_idle_ns=spec.sequence_idle_us * 1000,
        key_headers=batching.batch_keys,
        hold_requests=held_requests() if forms_batches(batching, spec) else 0,
        triton=triton,
        fixed_delay=batching.forms_by_delay,
        attainment=batching.attainment,
        value=batching.value or 0.0,
        levels=[] if triton else _level_policies(batching),
        aging_ns=0 if triton else batching.aging,
    )


def _level_policies(batching: Batching) -> list[pb.LevelPolicy]:
    """Of the levels from 1 to the last one that differs from the model."""
    levels = range(1, max(batching.priorities, default=0) + 1)
    classes = [batching.priorities.get(level, PriorityClass()) for level in levels]
    return [
        pb.LevelPolicy(
            slo_ns=item.slo, best_effort=item.best_effort, attainment=item.attainment or 0.0
        )
        for item in classes
    ]


def _model(
    index: int, entry: CatalogEntry, batching: pb.Batching, backend_index: Mapping[str, int]
) -> pb.Model:
    spec = entry.spec
    model = pb.Model(
        index=index,
        name=spec.name,
        version=spec.version,
        is_default_version=entry.is_default_version,
        max_batch_size=spec.max_batch_size,
        inputs=[tensor_message(tensor) for tensor in spec.inputs],
        outputs=[tensor_message(tensor) for tensor in spec.outputs],
        decoupled=spec.decoupled,
        sequence=spec.sequence,
        batching=batching,
    )
    for placement in entry.placements:
        if placement.address in backend_index:
            model.placements.add(
                backend_index=backend_index[placement.address],
                instances=placement.instances,
                ready=placement.ready,
            )
    return model


def _loaded(pool: BackendPool) -> set[tuple[ModelKey, str]]:
    """The placements that are ready."""
    return {
        (key, placement.address)
        for key, entry in pool.catalog.items()
        for placement in entry.placements
        if placement.ready
    }


def served_placements(applied: pb.Apply | None) -> set[tuple[int | None, int | None]]:
    """The (model, backend) indices that a state gives requests to."""
    if applied is None:
        return set()
    serving = {b.index for b in applied.backends if b.state == pb.BACKEND_STATE_SERVING}
    return {
        (model.index, placement.backend_index)
        for model in applied.models
        for placement in model.placements
        if placement.ready and placement.backend_index in serving
    }


def tls_message(tls: ClientTls) -> pb.Tls:
    return pb.Tls(
        ca_file=str(tls.ca or ""),
        certificate_file=str(tls.certificate or ""),
        key_file=str(tls.key or ""),
        server_name=tls.server_name,
    )


def tensor_message(tensor: TensorSpec) -> pb.Tensor:
    return pb.Tensor(
        name=tensor.name,
        datatype=tensor.datatype,
        dims=tensor.dims,
        optional=tensor.optional,
        shape_tensor=tensor.shape_tensor,
        ragged=tensor.ragged,
    )


def _limits(settings: Settings) -> pb.Limits:
    server, tenants = settings.server, settings.tenants
    limits = pb.Limits(
        message_bytes_max=server.message_bytes_max,
        host_bytes_max=server.host_bytes_max,
        shared_memory_bytes_max=server.shared_memory_bytes_max,
        connections_max=server.connections_max,
        streams_per_connection_max=server.streams_per_connection_max,
        forward_metadata=server.forward_metadata,
        response_compression=_COMPRESSION[server.response_compression],
    )
    if tenants.metadata_key is not None:
        limits.tenant_metadata_key = tenants.metadata_key
        # The first is everybody who is not named.
        weights = {"": tenants.default_weight, **tenants.weights}
        limits.tenants.extend(pb.Tenant(name=n, weight=weights[n]) for n in sorted(weights))
    return limits
