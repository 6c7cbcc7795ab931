"""What the data plane is told of a model's need of device memory before its first batch.

The configuration's figures, else what was learned before, else the model's profile. A prior is said
once for a placement, until something that it depends on is another; learning replaces it anyway
where it is not fixed.

What an instance has room for already is not taken anew, but only as long as the server was not
started anew. Triton's own statistics tell the sizes that it has run since then.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import ModelSpec, profiled_model
from scheduler.backends.remembered import ModelKey
from scheduler.config import Batching
from scheduler.config.profile import ProfileError, check_model, load_profile
from scheduler.control.device_memory.needs import MemoryNeeds
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

Placement = tuple[ModelKey, str]


@dataclass(frozen=True)
class _Need:
    base_bytes: float
    bytes_per_row: float
    rows_high: int = 0  # of every instance there
    fixed: bool = False


class MemoryPriors:
    """Chooses and remembers the prior of every placement."""

    def __init__(self, needs: MemoryNeeds) -> None:
        self._needs = needs
        # The largest batch that a server has run since it was started.
        self._ran: dict[Placement, int] = {}
        self._said: dict[Placement, tuple[object, pb.MemoryPrior | None]] = {}
        self._reported: set[tuple[ModelKey, str]] = set()

    def of(
        self, spec: ModelSpec, backend: str, batching: Batching, devices: Sequence[str]
    ) -> pb.MemoryPrior | None:
        """The prior of a placement on these devices, if there is one."""
        placement = ((spec.name, spec.version), backend)
        identity = (
            profiled_model(spec).signature,
            batching.memory,
            batching.profile,
            tuple(devices),
            spec.instances,
            self._ran.get(placement, 0),
        )
        said = self._said.get(placement)
        if said is None or said[0] != identity:
            need = self._choose(spec, batching, devices)
            said = (identity, self._message(need, placement, spec) if need is not None else None)
            self._said[placement] = said
        return said[1]

    def offer_statistics(self, backend: str, models: Iterable[service_pb2.ModelStatistics]) -> bool:
        """What a Triton that was joined has run; returns whether a prior may be another."""
        before = {
            placement: rows for placement, rows in self._ran.items() if placement[1] == backend
        }
        now = {
            ((model.name, model.version), backend): max(
                (entry.batch_size for entry in model.batch_stats if entry.compute_infer.count),
                default=0,
            )
            for model in models
        }
        self.lost(backend)
        self._ran.update(now)
        return before != now

    def lost(self, backend: str) -> None:
        """It is away: it may be started anew."""
        self._ran = {placement: n for placement, n in self._ran.items() if placement[1] != backend}

    def keep_loaded(self, loaded: Container[Placement]) -> None:
        """Others may be loaded anew."""
        self._ran = {placement: n for placement, n in self._ran.items() if placement in loaded}

    def forget_others(self, backends: Container[str]) -> None:
        """What was said and counted of backends that are no more."""
        self._ran = {p: rows for p, rows in self._ran.items() if p[1] in backends}
        self._said = {p: said for p, said in self._said.items() if p[1] in backends}

    def renew(self) -> None:
        """Another data plane will ask: it gets what is known now."""
        self._said.clear()

    def _message(self, need: _Need, placement: Placement, spec: ModelSpec) -> pb.MemoryPrior:
        """Of one instance its server's largest batch is proof enough."""
        ran = self._ran.get(placement, 0)
        return pb.MemoryPrior(
            base_bytes=need.base_bytes,
            bytes_per_row=need.bytes_per_row,
            rows_high=ran if spec.instances == 1 else min(need.rows_high, ran),
            fixed=need.fixed,
        )

    def _choose(self, spec: ModelSpec, batching: Batching, devices: Sequence[str]) -> _Need | None:
        learned = self._learned(spec, devices)
        told = batching.memory
        if told is not None and (told.fixed or learned is None):
            rows_high = learned.rows_high if learned is not None else 0
            return _Need(told.base, told.per_row, rows_high, told.fixed)
        return learned or self._from_profile(spec, batching)

    def _learned(self, spec: ModelSpec, devices: Sequence[str]) -> _Need | None:
        """On several devices nothing is learned."""
        if len(devices) != 1 or _rows_differ(spec):
            return None
        found = self._needs.learned(spec, devices[0])
        if found is None:
            return None
        return _Need(found.base_bytes, found.bytes_per_row, found.rows_high)

    def _from_profile(self, spec: ModelSpec, batching: Batching) -> _Need | None:
        if batching.profile is None:
            return None
        try:
            profile = load_profile(batching.profile)
            check_model(profile, spec.name, spec.version, profiled_model(spec).signature)
        except ProfileError:
            return None  # said by the latencies' priors
        if profile.memory is None:
            return None
        if _rows_differ(spec):
            self._report((spec.name, spec.version), "the memory in its profile is not used: its "
                         "inputs have variable dims, so that rows may differ from those that were "
                         "measured")  # fmt: skip
            return None
        return _Need(profile.memory.base_bytes, profile.memory.bytes_per_row)

    def _report(self, key: ModelKey, problem: str) -> None:
        if (key, problem) not in self._reported:
            self._reported.add((key, problem))
            log(logger, logging.WARNING, f"model {key[0]}: {problem}", version=key[1])


def _rows_differ(spec: ModelSpec) -> bool:
    """The data plane takes its model's first row as the measure, which may be any."""
    return any(-1 in tensor.dims for tensor in spec.inputs)
