"""What the data plane has learned of the device memory that batches need: as last read, and kept
over restarts in one file of the state directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from scheduler.backends.catalog import ModelSpec, profiled_model
from scheduler.backends.remembered import ModelKey
from scheduler.config.profile import Bytes, Count, ProfiledModel
from scheduler.config.section import Section
from scheduler.control.kept_file import KeptFile
from scheduler.v1 import dataplane_pb2 as pb

FILE_NAME = "memory_needs.json"
# Devices come and go by other names.
ENTRIES_MAX = 4096


class LearnedNeed(Section):
    """Of one model version on one device, in one instance; every instance there had room for
    batches of `rows_high` rows."""

    model: ProfiledModel
    device: Annotated[str, Field(min_length=1)]
    base_bytes: Bytes
    bytes_per_row: Bytes
    rows_high: Annotated[int, Field(ge=0, le=2**32 - 1)]
    samples: Count


class NeedsFile(Section):
    """The file."""

    format: Literal["infersched-memory-needs"] = "infersched-memory-needs"
    format_version: Literal[1] = 1
    needs: tuple[LearnedNeed, ...] = ()


class MemoryNeeds:
    """By model version and the key of the device. `spec_of` tells the models as they are served."""

    def __init__(self, directory: Path, spec_of: Callable[[ModelKey], ModelSpec | None]) -> None:
        self.current: dict[tuple[ModelKey, str], pb.MemorySnapshot] = {}
        self._by_model: dict[ModelKey, dict[str, pb.MemorySnapshot]] = {}
        self._spec_of = spec_of
        self._file = KeptFile(directory / FILE_NAME, NeedsFile, "learned needs of device memory")
        kept = self._file.load()
        needs = kept.needs if kept is not None else ()
        self._kept = {((n.model.name, n.model.version), n.device): n for n in needs}
        self._written = dict(self._kept)

    def take(
        self, models: Mapping[ModelKey, int], devices: Mapping[str, int], snapshot: pb.Snapshot
    ) -> None:
        """Keeps what a snapshot says of its models; `models` and `devices` have the numbers."""
        keys = {number: key for key, number in devices.items()}
        names = {number: key for key, number in models.items()}
        read = {names.get(model.index) for model in snapshot.models}
        kept = {
            (model, device): need
            for (model, device), need in self.current.items()
            if model not in read and model in models and device in devices
        }
        for model in snapshot.models:
            name = names.get(model.index)
            for need in model.memory:
                if name is not None and need.device_index in keys:
                    kept[name, keys[need.device_index]] = need
                    self._keep(name, keys[need.device_index], need)
        self.current = kept
        self._by_model = {}
        for (key, device), need in kept.items():
            self._by_model.setdefault(key, {})[device] = need

    def of_model(self, key: ModelKey) -> dict[str, pb.MemorySnapshot]:
        """By device."""
        return self._by_model.get(key, {})

    def learned(self, spec: ModelSpec, device: str) -> LearnedNeed | None:
        """Of this device; of the one that has seen most where this one is new."""
        key, signature = (spec.name, spec.version), profiled_model(spec).signature
        found = self._kept.get((key, device))
        if found is not None and found.model.signature == signature:
            return found
        return max(self._others(key, signature), key=lambda need: need.samples, default=None)

    def _others(self, key: ModelKey, signature: str) -> Iterator[LearnedNeed]:
        """What they have room for says nothing of another device."""
        for (model, _), need in self._kept.items():
            if model == key and need.model.signature == signature:
                yield need.model_copy(update={"rows_high": 0})

    def store(self) -> None:
        """Writes the file if anything has changed."""
        if self._kept != self._written and self._file.store(
            NeedsFile(needs=tuple(self._kept.values()))
        ):
            self._written = dict(self._kept)

    def _keep(self, key: ModelKey, device: str, need: pb.MemorySnapshot) -> None:
        """Beyond the bound what was not renewed for longest goes."""
        spec = self._spec_of(key)
        if spec is None or not need.confirmed:
            return
        try:
            learned = LearnedNeed(
                model=profiled_model(spec),
                device=device,
                base_bytes=need.base_bytes,
                bytes_per_row=need.bytes_per_row,
                rows_high=need.rows_high,
                samples=need.samples,
            )
        except ValidationError:
            return
        self._kept.pop((key, device), None)
        self._kept[key, device] = learned
        for old in list(self._kept)[: max(len(self._kept) - ENTRIES_MAX, 0)]:
            del self._kept[old]
