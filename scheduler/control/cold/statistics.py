"""ModelStatistics: what the data plane saw, or what the Tritons of the pool count, added up.

Ours is the default, because the pool's numbers show merged batches and not requests. A client asks
for the pool's with the request metadata `infersched-statistics: backends`.

A step of an ensemble runs inside a Triton, unseen by the data plane: of such models ours are
completed by what the Tritons count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.fan_out import READ_TIMEOUT_S, Outcome, ask_all, reachable
from scheduler.control.plane import ControlPlane
from scheduler.control.versions import parse_version, until_nul
from scheduler.v1 import dataplane_pb2 as pb

VIEW_HEADER = "infersched-statistics"
VIEWS = ("scheduler", "backends")


class Statistics:
    """Answers ModelStatistics."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def model_statistics(
        self, request: service_pb2.ModelStatisticsRequest, view: str = "scheduler"
    ) -> service_pb2.ModelStatisticsResponse:
        """Raises ColdError."""
        version = parse_version(request.version)
        if view not in VIEWS:
            raise ColdError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{VIEW_HEADER} is one of {', '.join(VIEWS)}, got '{view}'",
            )
        if view == "backends":
            return await self._of_backends(request)
        return await self._of_scheduler(until_nul(request.name), version)

    async def _of_scheduler(self, name: str, version: str) -> service_pb2.ModelStatisticsResponse:
        plane = self._plane
        # Triton looks at the version only where there is a name.
        keys = [
            key
            for key in plane.pool.catalog
            if not name or (key[0] == name and version in ("", key[1]))
        ]
        if name and not keys:
            text = f"requested model '{name}' is not available"
            if plane.pool.versions(name):
                text = f"requested model version is not available for model '{name}'"
            raise ColdError(grpc.StatusCode.INVALID_ARGUMENT, text)
        # Asked first: what they do not count yet is then no run of theirs alone.
        theirs = await self._runs_of_steps(keys, name)
        index_of = plane.desired.model_index
        wanted = [index_of[key] for key in keys if key in index_of]
        found: dict[int, pb.ModelStatistics] = {}
        if wanted:
            try:
                answer = await plane.steering.statistics(wanted)
            except (ConnectionError, asyncio.TimeoutError) as error:
                raise ColdError(
                    grpc.StatusCode.UNAVAILABLE, f"the data plane does not answer: {error!r}"
                ) from error
            found = {model.index: model for model in answer.models}
        now_ms = time.time_ns() // 1_000_000
        models = [
            triton_statistics(key, found.get(index_of.get(key, -1), pb.ModelStatistics()), now_ms)
            for key in sorted(keys, key=lambda key: (key[0], int(key[1])))
        ]
        for model in models:
            if (model.name, model.version) in theirs:
                add_runs_inside_ensembles(model, theirs[model.name, model.version])
        return service_pb2.ModelStatisticsResponse(model_stats=models)

    async def _runs_of_steps(
        self, keys: list[tuple[str, str]], name: str
    ) -> dict[tuple[str, str], service_pb2.ModelStatistics]:
        """What backends that can be asked count of those of the models that are steps."""
        steps = {
            step.model_name
            for entry in self._plane.pool.catalog.values()
            for step in entry.spec.config.ensemble_scheduling.step
        }
        wanted = {key for key in keys if key[0] in steps}
        if not wanted:
            return {}
        try:
            outcome = await self._ask_backends(service_pb2.ModelStatisticsRequest(name=name))
        except ColdError:
            return {}  # none can be reached
        counted = merged_statistics(outcome.answers.values()).model_stats
        theirs = {(model.name, model.version): model for model in counted}
        return {key: theirs[key] for key in wanted if key in theirs}

    async def _of_backends(
        self, request: service_pb2.ModelStatisticsRequest
    ) -> service_pb2.ModelStatisticsResponse:
        outcome = await self._ask_backends(request)
        # A model need not be loaded everywhere.
        outcome.raise_unless_answered()
        return merged_statistics(outcome.answers.values())

    async def _ask_backends(self, request: service_pb2.ModelStatisticsRequest) -> Outcome:
        pool = self._plane.pool
        return await ask_all(pool, reachable(pool), "ModelStatistics", request, READ_TIMEOUT_S)


def triton_statistics(
    key: tuple[str, str], seen: pb.ModelStatistics, now_ms: int
) -> service_pb2.ModelStatistics:
    """The numbers of the data plane in Triton's form. `now_ms` is the time since the epoch.

    Input and output are not told apart from the time at the backend: all of it is compute_infer.
    """
    answer = service_pb2.ModelStatistics(
        name=key[0],
        version=key[1],
        inference_count=seen.rows,
        execution_count=seen.batches,
    )
    if seen.completed.count + seen.failed.count > 0 and seen.last_answer_age_ns >= 0:
        answer.last_inference = now_ms - seen.last_answer_age_ns // 1_000_000
    failures = (seen.failed, seen.rejected, seen.cancelled)
    count = seen.completed.count
    for field, (times, ns) in {
        "success": (count, seen.completed.total_ns),
        "fail": (sum(f.count for f in failures), sum(f.total_ns for f in failures)),
        "queue": (count, seen.queue_ns),
        "compute_input": (count, 0),
        "compute_infer": (count, seen.backend_ns),
        "compute_output": (count, 0),
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }.items():
        duration = getattr(answer.inference_stats, field)
        duration.SetInParent()
        duration.count, duration.ns = times, ns
    for size in seen.batch_sizes:
        entry = answer.batch_stats.add(batch_size=size.rows)
        entry.compute_input.count = size.batches
        entry.compute_infer.count = size.batches
        entry.compute_infer.ns = size.backend_ns
        entry.compute_output.count = size.batches
    return answer


def add_runs_inside_ensembles(
    ours: service_pb2.ModelStatistics, theirs: service_pb2.ModelStatistics
) -> None:
    """Completes a step's numbers by all that its Tritons ran.

    They count every batch from here as one request. Its time there takes the place of what was
    measured here, as nobody tells it from the time of the other runs. Tritons that tell of less
    than went there have begun anew, or cannot be asked: what is ours stays as it is.
    """
    if theirs.execution_count < ours.execution_count:
        return
    seen, counted = ours.inference_stats, theirs.inference_stats
    runs_inside = max(counted.success.count - ours.execution_count, 0)
    measured_ns = sum(batch.compute_infer.ns for batch in ours.batch_stats)
    for field in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        duration = getattr(seen, field)
        replaced_ns = measured_ns if field in ("success", "compute_infer") else 0
        duration.count += runs_inside
        duration.ns = max(duration.ns - replaced_ns, 0) + getattr(counted, field).ns
    ours.last_inference = max(ours.last_inference, theirs.last_inference)
    ours.inference_count = max(ours.inference_count, theirs.inference_count)
    ours.execution_count = theirs.execution_count
    del ours.batch_stats[:]
    ours.batch_stats.extend(theirs.batch_stats)


def merged_statistics(
    answers: Iterable[service_pb2.ModelStatisticsResponse],
) -> service_pb2.ModelStatisticsResponse:
    """The sums by model version; batches by size, responses by their place, memory by device."""
    merged: dict[tuple[str, str], service_pb2.ModelStatistics] = {}
    for answer in answers:
        for model in answer.model_stats:
            into = merged.setdefault(
                (model.name, model.version),
                service_pb2.ModelStatistics(name=model.name, version=model.version),
            )
            _add_model(into, model)
    return service_pb2.ModelStatisticsResponse(model_stats=[merged[key] for key in sorted(merged)])


def _add_model(into: service_pb2.ModelStatistics, model: service_pb2.ModelStatistics) -> None:
    into.last_inference = max(into.last_inference, model.last_inference)
    into.inference_count += model.inference_count
    into.execution_count += model.execution_count
    _add_durations(into.inference_stats, model.inference_stats)
    for batch in model.batch_stats:
        same = [entry for entry in into.batch_stats if entry.batch_size == batch.batch_size]
        _add_durations(
            same[0] if same else into.batch_stats.add(batch_size=batch.batch_size), batch
        )
    for place, responses in model.response_stats.items():
        _add_durations(into.response_stats[place], responses)
    for memory in model.memory_usage:
        known = [m for m in into.memory_usage if (m.type, m.id) == (memory.type, memory.id)]
        entry = known[0] if known else into.memory_usage.add(type=memory.type, id=memory.id)
        entry.byte_size += memory.byte_size


def _add_durations(into: Message, model: Message) -> None:
    """Adds up the StatisticDuration fields."""
    for descriptor, value in model.ListFields():
        if isinstance(value, service_pb2.StatisticDuration):
            total: Any = getattr(into, descriptor.name)
            total.SetInParent()
            total.count += value.count
            total.ns += value.ns
