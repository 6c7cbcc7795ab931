"""What is learned of device memory: read from the data plane, kept, and told to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import ModelSpec
from scheduler.backends.pool import BackendPool
from scheduler.backends.remembered import ModelKey
from scheduler.control.desired import DesiredState
from scheduler.control.device_memory.needs import MemoryNeeds
from scheduler.control.device_memory.priors import MemoryPriors
from scheduler.v1 import dataplane_pb2 as pb


class LearnedMemory:
    """`numbers` tells the devices' as they are now."""

    def __init__(
        self,
        state_directory: Path,
        pool: BackendPool,
        desired: DesiredState,
        numbers: Callable[[], Mapping[str, int]],
    ) -> None:
        self.needs = MemoryNeeds(state_directory, self._spec_of)
        self.priors = MemoryPriors(self.needs)
        self._pool = pool
        self._desired = desired
        self._numbers = numbers

    def take(self, snapshot: pb.Snapshot) -> None:
        self.needs.take(self._desired.model_index, self._numbers(), snapshot)
        self.priors.forget_others(self._pool.watches)

    def offer_statistics(self, backend: str, models: Iterable[service_pb2.ModelStatistics]) -> bool:
        return self.priors.offer_statistics(backend, models)

    def store(self) -> None:
        self.needs.store()

    def _spec_of(self, key: ModelKey) -> ModelSpec | None:
        entry = self._pool.catalog.get(key)
        return entry.spec if entry is not None else None
