"""The control plane's part in learned latencies: reads, keeps and judges objectives by them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from tritonclient.grpc import service_pb2

from scheduler._native.counters import CountersPage
from scheduler.backends.catalog import profiled_model
from scheduler.backends.pool import BackendPool
from scheduler.backends.probe import RpcError
from scheduler.backends.remembered import ModelKey
from scheduler.config import Batching, Settings
from scheduler.config.objectives import objectives
from scheduler.config.profile import lone_request_ns, objective_below_floor
from scheduler.control.desired import DesiredState
from scheduler.control.latency.ignored_times import IgnoredTimes
from scheduler.control.latency.learned import LearnedLatencies, LearnedLatency, learned_latency
from scheduler.control.latency.priors import OBSERVATIONS_MIN, Priors
from scheduler.control.steering import SteeringClient
from scheduler.telemetry.logs import log
from scheduler.telemetry.metrics import LearnedFigures
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

READ_PERIOD_S = 5.0
# Of one request: the data plane serves nobody while it answers.
MODELS_AT_ONCE = 32
STORE_PERIOD_S = 60.0
STATISTICS_TIMEOUT_S = 5.0


class Beside(Protocol):
    """What is read and kept along with latencies, and is of something else."""

    def take(self, snapshot: pb.Snapshot) -> None:
        """What the data plane has answered."""

    def offer_statistics(self, backend: str, models: Iterable[service_pb2.ModelStatistics]) -> bool:
        """What a Triton that was joined has counted; returns whether a prior may be another."""

    def store(self) -> None:
        """Writes what is to outlive a restart."""


class Latencies:
    """What is known of latencies. `on_change` is called when a prior has come late."""

    def __init__(
        self,
        state_directory: Path,
        pool: BackendPool,
        steering: SteeringClient,
        counters: CountersPage,
        settings: Callable[[], Settings],
        on_change: Callable[[], None],
        beside: Beside | None = None,
    ) -> None:
        self.learned = LearnedLatencies(state_directory)
        self.priors = Priors(self.learned)
        # By model version and backend address, as last read.
        self.current: dict[tuple[ModelKey, str], pb.LatencySnapshot] = {}
        self.shared_memory = pb.SharedMemorySnapshot()
        self._floors_ns: dict[ModelKey, int] = {}
        self._ignored = IgnoredTimes()
        self._pool = pool
        self._steering = steering
        self._counters = counters
        self._settings = settings
        # Batches that had come back when a model was read last.
        self._read_at: dict[int, int] = {}
        # Told something since then.
        self._told_now: set[ModelKey] = set()
        self._on_change = on_change
        self._beside = beside
        self._stored_at_s = float("-inf")
        self._told: set[tuple[ModelKey, str, int]] = set()

    async def run(self, desired: DesiredState) -> None:
        """Reads again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(READ_PERIOD_S)
            await self.read(desired)
            if time.monotonic() - self._stored_at_s >= STORE_PERIOD_S:
                self.keep()

    async def read(self, desired: DesiredState) -> None:
        """Asks the data plane, if it is there, for the models that have run; keeps what is new."""
        ran = self._ran(desired)
        told, self._told_now = self._told_now, set()
        # Where none has: one, for what is not of a model.
        indices = list(ran) or list(desired.model_index.values())[:1]
        for start in range(0, len(indices), MODELS_AT_ONCE):
            asked = indices[start : start + MODELS_AT_ONCE]
            try:
                snapshot = await self._steering.snapshot(asked)
            except (ConnectionError, asyncio.TimeoutError):
                self._told_now |= told
                return
            told -= {desired.model_at(index) for index in asked}
            self.take(desired, snapshot)
            if self._beside is not None:
                self._beside.take(snapshot)
            self._read_at.update((index, ran[index]) for index in asked if index in ran)
        if self._counters.valid:
            self._ignored.take_clock(self._counters.page())
        self._ignored.tell(desired.model_index)

    def keep(self) -> None:
        """Writes what was learned to the state directory."""
        self.learned.store()
        if self._beside is not None:
            self._beside.store()
        self._stored_at_s = time.monotonic()

    def take(self, desired: DesiredState, snapshot: pb.Snapshot) -> None:
        """Keeps what a snapshot says, and tells of objectives that nothing can meet."""
        new: dict[tuple[ModelKey, str], pb.LatencySnapshot] = {}
        for model in snapshot.models:
            key = desired.model_at(model.index)
            for latency in model.latencies:
                address = desired.backend_at(latency.backend_index)
                if key is not None and address is not None:
                    new[key, address] = latency
        kept = {
            placement: old
            for placement, old in self.current.items()
            if placement[0] in desired.model_index and placement[1] in self._pool.watches
        }
        self.current = {**kept, **new}
        self.shared_memory = snapshot.shared_memory
        self._floors_ns = _floors_ns(self.current)
        self._ignored.take(new)
        self.learned.update(self._observed(new))
        self.priors.forget_others(self._pool.watches)
        self._tell({key for key, _ in new})

    def _ran(self, desired: DesiredState) -> dict[int, int]:
        """The models that have run or were told something since they were read; their batches.

        Of a data plane that writes no counters, all.
        """
        if not self._counters.valid:
            return dict.fromkeys(desired.model_index.values(), 0)
        batches = {i: self._counters.batches_returned(i) for i in desired.model_index.values()}
        told = {desired.model_index.get(key) for key in self._told_now}
        return {
            index: n
            for index, n in batches.items()
            if n != self._read_at.get(index, 0) or index in told
        }

    async def joined(self, address: str) -> None:
        """A backend has come: its batch statistics are a prior where nothing better is known."""
        watch = self._pool.watches.get(address)
        if watch is None:
            return
        request = service_pb2.ModelStatisticsRequest()
        try:
            answer = await watch.calls.rpc("ModelStatistics", request, STATISTICS_TIMEOUT_S)
        except RpcError:
            return
        changed = self.priors.offer_statistics(address, answer.model_stats)
        if self._beside is not None:
            changed |= self._beside.offer_statistics(address, answer.model_stats)
        if changed:
            self._on_change()

    def judge_priors(self) -> None:
        """Tells of objectives that nothing can meet by what the data plane was told just now."""
        told = self.priors.said_now()
        self._told_now |= told
        self._tell(told)

    def floor_ns(self, key: ModelKey) -> int:
        """What a lone request takes at the model on the fastest backend; 0: not known yet."""
        return self._floors_ns.get(key, 0)

    def problems(self, key: ModelKey, batching: Batching) -> dict[str, str]:
        """Objectives below the floor: key below the model's, and the sentence about it."""
        wanted = {} if batching.batching == "triton" else objectives(batching)
        if not wanted:
            return {}
        floor_ns, source = self.floor_ns(key), "measured here"
        if not floor_ns:
            floor_ns, source = self.priors.floor_ns(key), "learned earlier"
        found = {
            name: objective_below_floor(slo_ns, floor_ns, source) for name, slo_ns in wanted.items()
        }
        return {name: text for name, text in found.items() if text}

    def figures(self) -> dict[tuple[str, str, str], LearnedFigures]:
        """For the metrics, by model, version and backend."""
        return {
            (*key, address): LearnedFigures(
                error_seconds=latency.error_mean * _mean_ns(latency) / 1e9,
                margin=latency.margin,
                beyond_margin=latency.beyond_margin,
                rows_target=latency.rows_target,
            )
            for (key, address), latency in list(self.current.items())
            if latency.observations
        }

    def ignored_times(self) -> dict[tuple[str, str, str, str], int]:
        """For the metrics, by model, version, backend and kind; those that there were."""
        found = {
            (*key, address, kind): count
            for (key, address), latency in list(self.current.items())
            for kind, count in latency.ignored.items()
        }
        for (key, address), count in list(self.priors.ignored.items()):
            at = (*key, address, "prior")
            found[at] = found.get(at, 0) + count
        return found

    def _observed(
        self, new: Mapping[tuple[ModelKey, str], pb.LatencySnapshot]
    ) -> dict[tuple[ModelKey, str], LearnedLatency]:
        learned = {}
        for (key, address), latency in new.items():
            entry = self._pool.catalog.get(key)
            if entry is None:
                continue
            found = learned_latency(profiled_model(entry.spec), address, latency)
            if found is not None:
                learned[key, address] = found
        return learned

    def _tell(self, keys: Iterable[ModelKey]) -> None:
        for key in keys:
            batching = self._settings().batching_for(key[0])
            for name, text in self.problems(key, batching).items():
                told = (key, name, objectives(batching)[name])
                if told not in self._told:
                    self._told.add(told)
                    log(logger, logging.WARNING, f"models.{key[0]}.{name}: {text}; requests of it "
                        "are refused or late", version=key[1])  # fmt: skip


def _mean_ns(latency: pb.LatencySnapshot) -> float:
    """Of the batches that were observed."""
    batches = sum(size.batches for size in latency.sizes)
    return sum(size.backend_ns for size in latency.sizes) / batches if batches else 0.0


def _floors_ns(latencies: Mapping[tuple[ModelKey, str], pb.LatencySnapshot]) -> dict[ModelKey, int]:
    """Of every model that is known well enough, on its fastest backend."""
    floors: dict[ModelKey, int] = {}
    for (key, _), latency in latencies.items():
        found_ns = _lone_request_ns(latency) if latency.observations >= OBSERVATIONS_MIN else 0
        if found_ns:
            floors[key] = min(found_ns, floors.get(key, found_ns))
    return floors


def _lone_request_ns(latency: pb.LatencySnapshot) -> int:
    sizes = [size for size in latency.sizes if size.batches and size.backend_ns]
    return lone_request_ns(sorted((size.rows, size.backend_ns // size.batches) for size in sizes))
