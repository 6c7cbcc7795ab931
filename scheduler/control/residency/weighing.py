"""What a load takes of device memory: the figures before and after it, or what Triton says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2

from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.control.device_memory.devices import NVML

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

POLL_PERIOD_S = 0.01
# For a look at the devices after a load, and at those of metrics ports, which Triton fills rarely.
LOOK_S, PORT_LOOK_S = 1.0, 3.5
# Of the time of a load whose weight is known well: requests wait meanwhile.
LOOK_PART = 0.1
STATISTICS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Before:
    """Free bytes by place, how many batches had come back from there, and `Turns.others`."""

    free: Mapping[str, int]
    batches: int
    others: tuple[int, int]


class Scale:
    """Weighs one load at a time on a place."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def before(self, places: Collection[str]) -> Before:
        return Before(self._free(places), self._batches(places), self._plane.turns.others)

    async def after(
        self, places: Collection[str], before: Before, load_s: float, certain: bool
    ) -> dict[str, int]:
        """What was taken, by place; empty where it cannot be told: no figures, or batches ran or
        clients loaded models whose memory is in the figures too. `certain`: it is known well
        already.
        """
        bound_s = LOOK_S if self.all_nvml(places) else PORT_LOOK_S
        if certain:
            bound_s = min(bound_s, load_s * LOOK_PART)
        if not before.free or not await self.looked(before.free, bound_s):
            return {}
        if before.others[0] or self._plane.turns.others != before.others:
            return {}
        if certain and self._batches(places) != before.batches:
            return {}
        now = self._free(places)
        return {
            place: before.free[place] - now[place]
            for place in before.free.keys() & now.keys()
            if before.free[place] > now[place]
        }

    async def looked(self, places: Collection[str], bound_s: float) -> bool:
        """Waits for figures of these devices that are younger than this call."""
        now_ns = time.monotonic_ns()
        end_ns = now_ns + int(bound_s * 1e9)
        while not self._younger(places, now_ns):
            if time.monotonic_ns() > end_ns:
                return False
            await asyncio.sleep(POLL_PERIOD_S)
        return True

    async def freed(self, places: Collection[str], before: Before, expected: int) -> None:
        """Waits, not for long, until the figures show what an unload gave back: a process that
        ends takes its time.
        """
        end_s = time.monotonic() + 2 * LOOK_S
        known = self._free(places).keys() & before.free.keys()
        if not known:
            return
        await self.looked(known, LOOK_S)
        while time.monotonic() < end_s:
            now = self._free(known)
            if sum(now.get(p, 0) - before.free[p] for p in known) >= expected // 2:
                return
            await asyncio.sleep(POLL_PERIOD_S)

    def _younger(self, places: Collection[str], than_ns: int) -> bool:
        current = self._plane.devices.current
        found = [current[place] for place in places if place in current]
        return all(d.reading.measured_at_ns >= than_ns for d in found if d.known)

    def _free(self, places: Collection[str]) -> dict[str, int]:
        current = self._plane.devices.current
        return {
            place: current[place].reading.free_bytes
            for place in places
            if place in current
            and current[place].known
            and current[place].reading.measured_at_ns > 0
        }

    def all_nvml(self, places: Collection[str]) -> bool:
        """Whether new figures come soon."""
        current = self._plane.devices.current
        return all(current[place].source == NVML for place in places if place in current)

    def _batches(self, places: Collection[str]) -> int:
        plane = self._plane
        if not plane.counters.valid:
            return 0
        there = {key for place in places for key in plane.devices.models_on(place)}
        indices = [plane.desired.model_index.get(key) for key in there]
        return sum(plane.counters.batches_returned(i) for i in indices if i is not None)


async def told_bytes(watch: BackendWatch, name: str, places: Collection[str]) -> dict[str, int]:
    """What Triton says that the model has on its GPUs, where its backend reports that."""
    request = service_pb2.ModelStatisticsRequest(name=name)
    try:
        answer = await watch.calls.rpc("ModelStatistics", request, STATISTICS_TIMEOUT_S)
    except RpcError:
        return {}
    by_gpu: dict[int, int] = {}
    for model in answer.model_stats:
        for memory in model.memory_usage:
            if memory.type == "GPU":
                by_gpu[memory.id] = by_gpu.get(memory.id, 0) + memory.byte_size
    ordered = list(places)
    if len(ordered) == 1 and by_gpu:
        return {ordered[0]: sum(by_gpu.values())}
    if len(ordered) != len(by_gpu):
        return {}
    return {place: by_gpu[gpu] for place, gpu in zip(ordered, sorted(by_gpu), strict=True)}
