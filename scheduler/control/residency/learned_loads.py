"""What loads of models took, in time and in device memory; kept in the state directory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scheduler.config.section import Section
from scheduler.control.kept_file import KeptFile

FILE_NAME = "model-loads.json"
# Models and backends come and go by other names.
ENTRIES_MAX = 4096
# The median of so many: what others took or freed meanwhile is in one of them only.
SAMPLES_MAX = 3
CERTAIN_SAMPLES = 2
# Of the last load in the mean: one that took longer is believed sooner.
RISE, FALL = 0.6, 0.3
# What a model was seen to need more than: it may have been others that had the memory.
LEAST_KEPT_S = 3600.0
# That it found none though nobody was left, where there are no figures: twice as long every time.
INFINITE_KEPT_S = 60.0
MIB = 2**20

Bytes = Annotated[int, Field(ge=0, le=2**50)]
Nanoseconds = Annotated[int, Field(ge=0, le=10**15)]


class LearnedLoad(Section):
    """One model on one backend; its weight by device is in bytes, the latest sample last."""

    model: Annotated[str, Field(max_length=4096)]
    backend: Annotated[str, Field(max_length=4096)]
    load_ns: Nanoseconds = 0
    weights: Annotated[
        dict[str, Annotated[tuple[Bytes, ...], Field(max_length=SAMPLES_MAX)]],
        Field(default={}, max_length=64),
    ]


class LearnedLoadsFile(Section):
    """The file."""

    format: Literal["infersched-loads"] = "infersched-loads"
    format_version: Literal[1] = 1
    loads: tuple[LearnedLoad, ...] = ()


@dataclass(frozen=True)
class _Least:
    """Of a device that had so much memory, at this moment, believed for so long."""

    need_bytes: float
    total_bytes: int
    seen_s: float
    kept_s: float


class LearnedLoads:
    """By model name and backend address."""

    def __init__(self, directory: Path) -> None:
        what = "the times and weights of loads"
        self._file = KeptFile(directory / FILE_NAME, LearnedLoadsFile, what)
        self._entries: dict[tuple[str, str], LearnedLoad] = {}  # the latest last
        self._by_model: dict[str, dict[str, LearnedLoad]] = {}
        # Of models that found no memory, by model, backend and place; not kept in the file.
        self._least: dict[tuple[str, str], dict[str, _Least]] = {}
        kept = self._file.load()
        for entry in kept.loads if kept is not None else ():
            self._put(entry)

    def load_ns(self, model: str, backend: str) -> int:
        """How long a load takes; 0 = not known. Of another backend where this one is new."""
        found = self._entries.get((model, backend))
        if found is not None and found.load_ns:
            return found.load_ns
        return max((entry.load_ns for entry in self._of_model(model)), default=0)

    def places(self, model: str, backend: str) -> tuple[str, ...]:
        """The devices that it was seen to take memory of there."""
        found = self._entries.get((model, backend))
        return tuple(found.weights) if found is not None else ()

    def weight(self, model: str, backend: str, place: str) -> tuple[int, bool]:
        """Bytes, 0 = not known, and whether they were seen often enough to rely on."""
        found = self._entries.get((model, backend))
        samples = found.weights.get(place, ()) if found is not None else ()
        if not samples:
            others = (entry.weights.values() for entry in self._of_model(model))
            samples = max((s for many in others for s in many), key=len, default=())
        if not samples:
            return 0, False
        return int(statistics.median_high(samples)), len(samples) >= CERTAIN_SAMPLES

    def least(self, model: str, backend: str, place: str, total_bytes: int) -> float:
        """What it needs there at least, in bytes; inf: more than there can be, 0: not known."""
        found = self._least.get((model, backend), {}).get(place)
        if found is None or found.total_bytes != total_bytes:
            return 0
        return found.need_bytes if time.monotonic() - found.seen_s < found.kept_s else 0

    def starved(
        self, model: str, backend: str, place: str, free_bytes: float, total_bytes: int
    ) -> None:
        """A load found no memory, and there was so much."""
        before = self.least(model, backend, place, total_bytes)
        # In whole MiB: it is told to people.
        needs = math.inf if math.isinf(free_bytes) else (int(free_bytes) // MIB + 1) * MIB
        kept_s = LEAST_KEPT_S
        if math.isinf(needs):
            last = self._least.get((model, backend), {}).get(place)
            again = last is not None and math.isinf(last.need_bytes)
            kept_s = min(2 * last.kept_s, LEAST_KEPT_S) if last and again else INFINITE_KEPT_S
        found = _Least(max(before, needs), total_bytes, time.monotonic(), kept_s)
        self._least.setdefault((model, backend), {})[place] = found
        while len(self._least) > ENTRIES_MAX:
            del self._least[next(iter(self._least))]

    def fits(self, model: str, backend: str) -> None:
        """It is loaded there."""
        self._least.pop((model, backend), None)

    def took(self, model: str, backend: str, load_ns: int) -> None:
        """A load has ended well after so long."""
        entry = self._entry(model, backend)
        before_ns = entry.load_ns or load_ns
        part = RISE if load_ns > before_ns else FALL
        mean_ns = before_ns + int(part * (load_ns - before_ns))
        self._put(entry.model_copy(update={"load_ns": max(min(mean_ns, 10**15), 1)}))

    def weighed(self, model: str, backend: str, weights: Mapping[str, int]) -> None:
        """What a load was seen to take, by device."""
        entry = self._entry(model, backend)
        found = {
            place: (*entry.weights.get(place, ()), weight)[-SAMPLES_MAX:]
            for place, weight in weights.items()
            if 0 < weight <= 2**50
        }
        if found:
            self._put(entry.model_copy(update={"weights": found}))

    def store(self) -> None:
        """Writes the file; a failure is told once."""
        self._file.store(LearnedLoadsFile(loads=tuple(self._entries.values())))

    def _of_model(self, model: str) -> Iterable[LearnedLoad]:
        return self._by_model.get(model, {}).values()

    def _entry(self, model: str, backend: str) -> LearnedLoad:
        found = self._entries.get((model, backend))
        return found or LearnedLoad(model=model, backend=backend, weights={})

    def _put(self, entry: LearnedLoad) -> None:
        self._entries.pop((entry.model, entry.backend), None)
        self._entries[entry.model, entry.backend] = entry
        self._by_model.setdefault(entry.model, {})[entry.backend] = entry
        while len(self._entries) > ENTRIES_MAX:
            model, backend = next(iter(self._entries))
            del self._entries[model, backend], self._by_model[model][backend]
            if not self._by_model[model]:
                del self._by_model[model]
