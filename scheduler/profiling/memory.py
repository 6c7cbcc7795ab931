"""Measures need(b): batches of ever larger sizes, and what the device has less of after each.

Sizes go up one step at a time, and no further than what is free would hold by what has been seen.
The figures are looked at before and after every step until they stand still: where they do not, or
move again while the same batches are run once more, somebody else has moved memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scheduler.backends.catalog import ModelSpec
from scheduler.config.profile import MemoryProfile, MemorySize
from scheduler.config.units import format_size
from scheduler.memory.headroom import Headroom
from scheduler.memory.source import DeviceReading, MemorySource, SourceError
from scheduler.profiling.measure import MeasureError, OutOfMemoryError, Plan, Server
from scheduler.profiling.memory_fit import FitError, Step, fit_need, needs

# Figures that differ by less are the same.
SAME_BYTES = 2**20
LOOK_PERIOD_S = 0.05
# How long figures are waited for, to be told and to stand still.
TOLD_WITHIN_S = 10.0
STILL_WITHIN_S = 5.0
# At most so often the same batches are run until every instance has run one.
ROUNDS_MAX = 10
# Whole sweeps, where the model can be loaded anew for each.
SWEEPS_MAX = 3


@dataclass(frozen=True)
class Watched:
    """One device of a source, whose figures are still when `window_s` go by without a change."""

    source: MemorySource
    key: str
    window_s: float
    headroom: Headroom = field(default_factory=Headroom)
    own: bool = False  # what counts is what the server's processes use, not all that is used

    def used_bytes(self, reading: DeviceReading) -> int:
        return reading.own_bytes if self.own else reading.used_bytes

    def same(self, one: DeviceReading, other: DeviceReading) -> bool:
        return abs(self.used_bytes(one) - self.used_bytes(other)) <= SAME_BYTES

    def look(self, after_ns: int) -> DeviceReading:
        """Figures of `after_ns` of the monotonic clock or later. Raises MeasureError."""
        end_s = time.monotonic() + TOLD_WITHIN_S + self.window_s
        problem = ""
        while time.monotonic() < end_s:
            try:
                found = {reading.key: reading for reading in self.source.poll()}
            except SourceError as error:
                problem = str(error)
            else:
                reading = found.get(self.key)
                problem = reading.problem if reading is not None else "it is gone"
                if reading is not None and not problem and reading.measured_at_ns >= after_ns:
                    return reading
            time.sleep(LOOK_PERIOD_S)
        reason = problem or "its figures are not renewed"
        raise MeasureError(f"the memory of device {self.key} is not known: {reason}")

    def still(self) -> tuple[DeviceReading, bool]:
        """Figures from now on, and whether they stood still for a while."""
        now_ns = time.monotonic_ns()
        end_s = time.monotonic() + STILL_WITHIN_S + 4 * self.window_s
        first = last = self.look(now_ns)
        while time.monotonic() < end_s:
            if last.measured_at_ns - first.measured_at_ns >= self.window_s * 1e9:
                return last, True
            time.sleep(LOOK_PERIOD_S)
            last = self.look(now_ns)
            if not self.same(first, last):
                first = last
        return last, False


@dataclass
class _Sweep:
    server: Server
    spec: ModelSpec
    messages: Mapping[int, bytes]
    plan: Plan
    device: Watched
    on_batch: Callable[[], None]

    def run(self) -> MemoryProfile:
        steps: list[Step] = []
        stopped = ""
        for rows in self.plan.sizes:
            before, still = self.device.still()
            if not still and not steps:
                raise FitError("other tenants of the device moved memory all the time")
            room = before.free_bytes - self.device.headroom.bytes_of(before.total_bytes)
            wanted = self._predicted(steps, rows)
            if room <= 0 or wanted > room:
                stopped = (
                    f"before {rows} rows, which may take {format_size(int(wanted) >> 20 << 20)}: "
                    f"{format_size(max(room, 0) >> 20 << 20)} are free beside the headroom"
                )
                break
            try:
                steps.append(self._step(rows, before, still))
            except OutOfMemoryError as error:
                stopped = f"at {rows} rows, which ran out of memory: {error}"
                break
        if not steps:
            raise MeasureError(f"the memory of {self.spec.name} cannot be measured: {stopped}")
        return self._profile(steps, stopped)

    def _step(self, rows: int, before: DeviceReading, still: bool) -> Step:
        """Runs batches of this size until the device has no less for it."""
        self._infer(rows)
        after, stands = self.device.still()
        still = still and stands
        # Of several instances, one that has run none yet may do so at any further one.
        for _ in range(ROUNDS_MAX if self.plan.in_flight > 1 else 1):
            self._infer(rows)
            last, stands = self.device.still()
            still, unchanged = still and stands, self.device.same(after, last)
            if unchanged or not still:
                break
            after = last
        return Step(
            rows,
            self.device.used_bytes(after) - self.device.used_bytes(before),
            not (still and unchanged),
        )

    def _infer(self, rows: int) -> None:
        count = self.plan.in_flight
        self.server.infer(self.messages[rows], count, count, self.on_batch)

    def _predicted(self, steps: list[Step], rows: int) -> float:
        """The most that this size may add, by the steps before it; 0 for the first."""
        if not steps:
            return 0.0
        slopes = [steps[0].grown_bytes / steps[0].rows]  # with the base: more than a row takes
        if len(steps) > 1:
            slopes = [
                steps[n].grown_bytes / (steps[n].rows - steps[n - 1].rows)
                for n in range(max(len(steps) - 3, 1), len(steps))
            ]
        return max(*slopes, 0.0) * (rows - steps[-1].rows)

    def _profile(self, steps: list[Step], stopped: str) -> MemoryProfile:
        instances = self.plan.in_flight
        fit = fit_need(steps, instances)
        return MemoryProfile(
            device=self.device.key,
            source=self.device.source.name,
            instances=instances,
            base_bytes=fit.base_bytes,
            bytes_per_row=fit.bytes_per_row,
            r_squared=fit.r_squared,
            stopped=stopped,
            sizes=tuple(
                MemorySize(
                    rows=step.rows, need_bytes=max(need, 0.0), moved=step.rows in fit.discarded
                )
                for step, need in zip(steps, needs(fit, steps, instances), strict=True)
            ),
        )


def measure_memory(
    server: Server,
    spec: ModelSpec,
    messages: Mapping[int, bytes],
    plan: Plan,
    device: Watched,
    reload: bool = False,
    on_batch: Callable[[], None] = lambda: None,
) -> MemoryProfile:
    """Runs the plan's sizes once each, until one would not fit. Raises MeasureError.

    The model must not have run since it was loaded. With `reload` it is loaded anew before, and
    again where other tenants have moved memory.
    """
    if not reload:
        ran = [rows for rows, count in server.batches_run(spec).items() if count]
        if ran:
            raise MeasureError(
                f"{spec.name} has run batches of up to {max(ran)} rows since it was loaded, and "
                "keeps what they took: load it anew with --reload, or restart the Triton"
            )
    found: MemoryProfile | None = None
    problem: FitError | None = None
    for _ in range(SWEEPS_MAX if reload else 1):
        if reload:
            server.reload(spec)
        try:
            swept = _Sweep(server, spec, messages, plan, device, on_batch).run()
        except FitError as error:
            problem = error
            continue
        if found is None or _moved(swept) < _moved(found):
            found = swept
        if not _moved(found):
            break
    if found is None:
        again = "Measure again when the device is quiet" + ("" if reload else ", or with --reload")
        raise MeasureError(f"{problem}. {again}") from problem
    return found


def _moved(profile: MemoryProfile) -> int:
    return sum(size.moved for size in profile.sizes)
