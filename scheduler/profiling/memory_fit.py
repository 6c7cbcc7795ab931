"""need(b) = base + bytes a row, of what a device was seen to lose at ever larger batches.

An allocator keeps what it has once taken: a batch adds what it needs beyond the largest one before
it, and the first one the base as well. So every step between two sizes tells of itself only, and
one in which somebody else has taken or freed memory can be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Allocators take memory in pieces of up to so much, so that a step may be off by one.
PIECE_BYTES = 20 * 2**20
# What a step may differ from the line beside that.
AGREE_PART = 0.05


class FitError(Exception):
    """The steps do not tell the need; says why."""


@dataclass(frozen=True)
class Step:
    """From the size before to this one, all instances together; `moved`: by others, too."""

    rows: int
    grown_bytes: int
    moved: bool = False


@dataclass(frozen=True)
class NeedFit:
    """Of one instance. `discarded` has the rows of the steps that were left out."""

    base_bytes: float
    bytes_per_row: float
    r_squared: float
    discarded: tuple[int, ...]

    def need_bytes(self, rows: int) -> float:
        return self.base_bytes + self.bytes_per_row * rows


def fit_need(steps: Sequence[Step], instances: int = 1) -> NeedFit:
    """Of steps in the order of their sizes. Raises FitError.

    One step alone cannot tell base and rows apart: all is the rows', which larger batches than
    that do not exceed.
    """
    first = steps[0]
    if first.moved or first.grown_bytes < 0:
        raise FitError(
            f"other tenants of the device moved memory while it grew for the first batches, of "
            f"{first.rows} rows"
        )
    if len(steps) == 1:
        per_row = first.grown_bytes / instances / first.rows
        return NeedFit(0.0, per_row, 1.0, ())
    later = [(steps[n], steps[n].rows - steps[n - 1].rows) for n in range(1, len(steps))]
    used = _agreeing([(step, rows) for step, rows in later if not step.moved], instances)
    if not used:
        raise FitError("other tenants of the device moved memory at every step")
    per_row = max(_slope(used), 0.0) / instances
    base = max(first.grown_bytes / instances - per_row * first.rows, 0.0)
    kept = {first.rows, *(step.rows for step, _ in used)}
    discarded = tuple(step.rows for step in steps if step.rows not in kept)
    fit = NeedFit(base, per_row, 1.0, discarded)
    return NeedFit(base, per_row, _r_squared(fit, steps, instances), discarded)


def needs(fit: NeedFit, steps: Sequence[Step], instances: int) -> list[float]:
    """What an instance had taken after each step, by the line for those that were left out."""
    found, before, rows = [], 0.0, 0
    for step in steps:
        grown = step.grown_bytes / instances
        if step.rows in fit.discarded:
            grown = fit.bytes_per_row * (step.rows - rows)
        before, rows = before + grown, step.rows
        found.append(before)
    return found


def _slope(steps: Sequence[tuple[Step, int]]) -> float:
    """Bytes a row of all of them together."""
    return sum(step.grown_bytes for step, _ in steps) / sum(rows for _, rows in steps)


def _agreeing(steps: Sequence[tuple[Step, int]], instances: int) -> list[tuple[Step, int]]:
    """Those near the median slope, in which every row counts as much as any other."""
    if not steps:
        return []
    in_order = sorted(steps, key=lambda item: item[0].grown_bytes / item[1])
    passed = np.cumsum([rows for _, rows in in_order])
    middle, middle_rows = in_order[int(np.searchsorted(passed, passed[-1] / 2))]
    slope = middle.grown_bytes / middle_rows

    def agrees(step: Step, rows: int) -> bool:
        expected = slope * rows
        off = abs(step.grown_bytes - expected)
        return off <= abs(expected) * AGREE_PART + PIECE_BYTES * instances

    return [(step, rows) for step, rows in steps if agrees(step, rows)]


def _r_squared(fit: NeedFit, steps: Sequence[Step], instances: int) -> float:
    measured = np.asarray(needs(fit, steps, instances))
    line = np.asarray([fit.need_bytes(step.rows) for step in steps])
    spread = float(np.sum((measured - measured.mean()) ** 2))
    residual = float(np.sum((measured - line) ** 2))
    return 1.0 - residual / spread if spread else 1.0
