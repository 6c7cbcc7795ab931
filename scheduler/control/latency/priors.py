"""What the data plane is told of a model's latency before its first batch.

The best that there is: learned here before, else the model's profile, else the batch statistics of
the Triton. A prior is said once for a placement: a state that changed with every batch would be
applied with every batch, and observations replace it anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable

from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import ModelSpec, profiled_model
from scheduler.backends.remembered import ModelKey
from scheduler.config import Batching
from scheduler.config.profile import (
    HOUR_NS,
    ProfileError,
    check_model,
    load_profile,
    lone_request_ns,
)
from scheduler.control.latency.learned import COUNT_MAX, LearnedLatencies
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

Prior = tuple[pb.BatchSize, ...]
# The first batches of a model are often many times too long.
OBSERVATIONS_MIN = 20
ROWS_MAX = 2**31 - 1


def statistics_prior(statistics: service_pb2.ModelStatistics) -> Prior:
    """Triton's compute times by batch size; entries that make no sense are left out."""
    return _prior(size for size in _counted(statistics) if _sensible(*size))


def _counted(statistics: service_pb2.ModelStatistics) -> list[tuple[int, int, int]]:
    """(rows, batches, mean in ns) of what has run."""
    return [
        (
            entry.batch_size,
            entry.compute_infer.count,
            _compute_ns(entry) // entry.compute_infer.count,
        )
        for entry in statistics.batch_stats
        if entry.compute_infer.count
    ]


def _compute_ns(entry: service_pb2.InferBatchStatistics) -> int:
    return int(entry.compute_input.ns + entry.compute_infer.ns + entry.compute_output.ns)


def _sensible(rows: int, _: int, mean_ns: int) -> bool:
    return 0 < rows <= ROWS_MAX and 0 < mean_ns <= HOUR_NS


def _prior(sizes: Iterable[tuple[int, int, int]]) -> Prior:
    """Of (rows, batches, mean in ns)."""
    prior = []
    for rows, batches, mean_ns in sorted(sizes):
        counted = min(batches, COUNT_MAX)
        prior.append(pb.BatchSize(rows=rows, batches=counted, backend_ns=counted * mean_ns))
    return tuple(prior)


def _floor_ns(prior: Prior) -> int:
    known = [size for size in prior if size.batches >= OBSERVATIONS_MIN]
    return lone_request_ns([(size.rows, size.backend_ns // size.batches) for size in known])


class Priors:
    """Chooses and remembers the prior of every placement."""

    def __init__(self, learned: LearnedLatencies) -> None:
        self._learned = learned
        self._statistics: dict[tuple[ModelKey, str], Prior] = {}
        # Batch sizes whose statistics made no sense, by placement.
        self.ignored: dict[tuple[ModelKey, str], int] = {}
        self._said: dict[tuple[ModelKey, str], tuple[object, Prior]] = {}
        self._reported: set[tuple[ModelKey, str]] = set()
        self._said_now: set[ModelKey] = set()
        # What one row takes by what was learned earlier, by backend.
        self._floors_ns: dict[ModelKey, dict[str, int]] = {}

    def of(self, spec: ModelSpec, backend: str, batching: Batching) -> Prior:
        """The prior of a placement; the same until the model or its profile is another."""
        key = (spec.name, spec.version)
        identity = (profiled_model(spec).signature, batching.profile)
        said = self._said.get((key, backend))
        if said is None or said[0] != identity:
            said = (identity, self._choose(spec, backend, batching))
            self._said[key, backend] = said
            if said[1]:
                self._said_now.add(key)
        return said[1]

    def said_now(self) -> set[ModelKey]:
        """The models of which something was said since this was asked last."""
        found, self._said_now = self._said_now, set()
        return found

    def floor_ns(self, key: ModelKey) -> int:
        """What a lone request takes on the fastest backend by what was said; 0: nothing sure."""
        return min((ns for ns in self._floors_ns.get(key, {}).values() if ns), default=0)

    def offer_statistics(self, backend: str, models: Iterable[service_pb2.ModelStatistics]) -> bool:
        """What a Triton that was joined has counted; returns whether a placement lacked it."""
        lacking = False
        for model in models:
            placement = ((model.name, model.version), backend)
            absurd = sum(not _sensible(*size) for size in _counted(model))
            if absurd:
                self.ignored[placement] = self.ignored.get(placement, 0) + absurd
                self._report(placement[0], "batch statistics of Triton that make no sense are "
                             f"ignored (backend {backend})", sizes=absurd)  # fmt: skip
            self._statistics[placement] = statistics_prior(model)
            said = self._said.get(placement)
            if self._statistics[placement] and said is not None and not said[1]:
                del self._said[placement]
                lacking = True
        return lacking

    def forget_others(self, backends: Container[str]) -> None:
        """What was said and counted of backends that are no more."""
        for known in (self._said, self._statistics, self.ignored):
            for placement in [p for p in known if p[1] not in backends]:
                del known[placement]
        kept = {
            key: {backend: ns for backend, ns in floors_ns.items() if backend in backends}
            for key, floors_ns in self._floors_ns.items()
        }
        self._floors_ns = {key: floors_ns for key, floors_ns in kept.items() if floors_ns}

    def renew(self) -> None:
        """Another data plane will ask: it gets what is known now."""
        self._said.clear()

    def _choose(self, spec: ModelSpec, backend: str, batching: Batching) -> Prior:
        key, signature = (spec.name, spec.version), profiled_model(spec).signature
        learned = self._from_learned(key, signature, backend)
        # Not of a profile: objectives are judged by it when it is read. Nor of Triton's statistics:
        # a first batch that took seconds is in their means.
        self._floors_ns.setdefault(key, {})[backend] = _floor_ns(learned)
        return (
            learned
            or self._from_profile(spec, signature, batching)
            or self._statistics.get((key, backend), ())
        )

    def _from_learned(self, key: ModelKey, signature: str, backend: str) -> Prior:
        found = self._learned.entry(key, signature, backend)
        if found is None:
            if self._learned.of_other_model(key, signature):
                self._report(key, "its learned latencies are ignored: they are of a model with "
                             "other inputs, outputs or another max_batch_size")  # fmt: skip
            return ()
        return _prior((size.rows, size.batches, size.mean_ns) for size in found.sizes)

    def _from_profile(self, spec: ModelSpec, signature: str, batching: Batching) -> Prior:
        if batching.profile is None:
            return ()
        key = (spec.name, spec.version)
        try:
            profile = load_profile(batching.profile)
            check_model(profile, spec.name, spec.version, signature)
        except ProfileError as error:
            self._report(key, f"its profile {batching.profile} is ignored: {error}")
            return ()
        return _prior((size.rows, size.batches, size.mean_ns) for size in profile.sizes)

    def _report(self, key: ModelKey, problem: str, **fields: int) -> None:
        if (key, problem) not in self._reported:
            self._reported.add((key, problem))
            log(logger, logging.WARNING, f"model {key[0]}: {problem}", version=key[1], **fields)
