"""Learned latencies, kept over restarts in one file of the state directory.

What is of a model that has changed meanwhile says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from scheduler.backends.remembered import ModelKey
from scheduler.config.profile import Count, ProfiledModel, Time
from scheduler.config.section import Section
from scheduler.control.kept_file import KeptFile
from scheduler.v1 import dataplane_pb2 as pb

FILE_NAME = "latencies.json"
# Backends come and go by other names.
ENTRIES_MAX = 4096
# A number of observations that no further one adds to.
COUNT_MAX = 1_000


class LearnedSize(Section):
    """The usual time of a batch of this size in nanoseconds."""

    rows: Annotated[int, Field(ge=1, le=2**31 - 1)]
    batches: Count
    mean_ns: Time


class LearnedLatency(Section):
    """One model version on one backend."""

    model: ProfiledModel
    backend: str
    observations: Count
    sizes: Annotated[tuple[LearnedSize, ...], Field(min_length=1, max_length=4096)]


class LearnedFile(Section):
    """The file."""

    format: Literal["infersched-latencies"] = "infersched-latencies"
    format_version: Literal[1] = 1
    latencies: tuple[LearnedLatency, ...] = ()


def learned_latency(
    model: ProfiledModel, backend: str, latency: pb.LatencySnapshot
) -> LearnedLatency | None:
    """What a snapshot says, None where nothing was observed or the numbers make no sense."""
    if not latency.observations:
        return None
    sizes = []
    for size in latency.sizes:
        if size.rows and size.batches and size.backend_ns:
            mean_ns = size.backend_ns // size.batches
            batches = min(size.batches, COUNT_MAX)
            sizes.append({"rows": size.rows, "batches": batches, "mean_ns": mean_ns})
    try:
        return LearnedLatency.model_validate(
            {
                "model": model,
                "backend": backend,
                "observations": latency.observations,
                "sizes": sizes,
            }
        )
    except ValidationError:
        return None


class LearnedLatencies:
    """What was learned in earlier lives and in this one, by model version and backend address."""

    def __init__(self, directory: Path) -> None:
        self._file = KeptFile(directory / FILE_NAME, LearnedFile, "learned latencies")
        kept = self._file.load()
        entries = kept.latencies if kept is not None else ()
        self._entries = {((e.model.name, e.model.version), e.backend): e for e in entries}
        self._written = dict(self._entries)

    def entry(self, key: ModelKey, signature: str, backend: str) -> LearnedLatency | None:
        """Of this backend; of the one that has seen most where this one is new."""
        found = self._entries.get((key, backend))
        if found is not None and found.model.signature == signature:
            return found
        others = [
            entry
            for (model, _), entry in self._entries.items()
            if model == key and entry.model.signature == signature
        ]
        return max(others, key=lambda entry: entry.observations, default=None)

    def of_other_model(self, key: ModelKey, signature: str) -> bool:
        """Whether all that is known of this name and version is of another model."""
        signatures = {e.model.signature for (k, _), e in self._entries.items() if k == key}
        return bool(signatures) and signature not in signatures

    def update(self, learned: Mapping[tuple[ModelKey, str], LearnedLatency]) -> None:
        """Takes over what is newer; beyond the bound what was not renewed for longest goes."""
        for placement, entry in learned.items():
            self._entries.pop(placement, None)
            self._entries[placement] = entry
        for placement in list(self._entries)[: max(len(self._entries) - ENTRIES_MAX, 0)]:
            del self._entries[placement]

    def store(self) -> None:
        """Writes the file if anything has changed."""
        if self._entries == self._written:
            return
        if self._file.store(LearnedFile(latencies=tuple(self._entries.values()))):
            self._written = dict(self._entries)
