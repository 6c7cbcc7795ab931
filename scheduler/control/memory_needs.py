"""What the data plane has learned of the device memory that batches need, as last read."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.backends.remembered import ModelKey
from scheduler.control.desired import DesiredState
from scheduler.v1 import dataplane_pb2 as pb


class MemoryNeeds:
    """By model version and the key of the device."""

    def __init__(self) -> None:
        self.current: dict[tuple[ModelKey, str], pb.MemorySnapshot] = {}
        self._by_model: dict[ModelKey, dict[str, pb.MemorySnapshot]] = {}

    def take(
        self, desired: DesiredState, numbers: Mapping[str, int], snapshot: pb.Snapshot
    ) -> None:
        """Keeps what a snapshot says of its models; `numbers` are those of the devices."""
        keys = {number: key for key, number in numbers.items()}
        read = {desired.model_at(model.index) for model in snapshot.models}
        kept = {
            (model, device): need
            for (model, device), need in self.current.items()
            if model not in read and model in desired.model_index and device in numbers
        }
        for model in snapshot.models:
            name = desired.model_at(model.index)
            for need in model.memory:
                if name is not None and need.device_index in keys:
                    kept[name, keys[need.device_index]] = need
        self.current = kept
        self._by_model = {}
        for (key, device), need in kept.items():
            self._by_model.setdefault(key, {})[device] = need

    def of_model(self, key: ModelKey) -> dict[str, pb.MemorySnapshot]:
        """By device."""
        return self._by_model.get(key, {})
