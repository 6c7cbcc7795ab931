"""The line through what batches take of a device: arenas, pieces, and others that move memory."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.config.profile import MemoryProfile, MemorySize, Profile
from scheduler.profiling.measure import default_sizes
from scheduler.profiling.memory_fit import FitError, Step, fit_need, needs
from scheduler.profiling.plot import memory_svg
from tests.unit.profiling.test_profile import GOOD

MIB, GIB = 2**20, 2**30
ROWS_MAX = 64


def arena_steps(
    base: int, per_row: int, instances: int, piece: int, others: dict[int, int]
) -> list[Step]:
    """Of arenas that take whole pieces and keep their largest; `others` moved so much at sizes."""
    steps, held = [], 0
    for rows in default_sizes(ROWS_MAX):
        need = max(math.ceil((base + rows * per_row) / piece) * piece, held)
        steps.append(Step(rows, instances * (need - held) + others.get(rows, 0)))
        held = need
    return steps


@given(
    base=st.integers(0, 4 * GIB),
    per_row=st.integers(8 * MIB, 512 * MIB),
    instances=st.integers(1, 4),
    piece=st.sampled_from([1, 2 * MIB]),
    seed=st.integers(0, 2**32),
)
@example(base=829 * MIB, per_row=64 * MIB, instances=1, piece=2 * MIB, seed=0)
def test_the_need_is_found_beside_others_that_move_memory_now_and_then(
    base: int, per_row: int, instances: int, piece: int, seed: int
) -> None:
    turns = random.Random(seed)
    disturbed = turns.sample(default_sizes(ROWS_MAX)[1:], 3)
    # Large ones are left out by their size; which those are is not what is drawn here.
    others = {rows: turns.choice([-1, 1]) * turns.randint(GIB, 8 * GIB) for rows in disturbed}
    quiet = sum(
        rows - before
        for before, rows in zip(default_sizes(64), default_sizes(64)[1:], strict=False)
        if rows not in others
    )
    steps = arena_steps(base, per_row, instances, piece, others)
    if quiet * 2 < ROWS_MAX:  # the median row is of a disturbed step
        return
    fit = fit_need(steps, instances)
    actual = base + ROWS_MAX * per_row
    slack = 2 * piece * 4
    assert abs(fit.need_bytes(ROWS_MAX) - actual) <= 0.03 * actual + slack
    assert abs(fit.bytes_per_row - per_row) <= 0.03 * per_row + slack / 8


def test_an_exact_line_without_others() -> None:
    fit = fit_need(arena_steps(613 * MIB, 458 * MIB, 2, 1, {}), 2)
    assert fit.base_bytes == pytest.approx(613 * MIB)
    assert fit.bytes_per_row == pytest.approx(458 * MIB)
    assert fit.r_squared == pytest.approx(1)
    assert fit.discarded == ()


def test_steps_at_which_others_moved_memory_are_named_and_filled_by_the_line() -> None:
    steps = arena_steps(256 * MIB, 64 * MIB, 1, 1, {4: -3 * GIB, 16: GIB})
    seen_to_move = [Step(s.rows, s.grown_bytes, moved=s.rows == 24) for s in steps]
    fit = fit_need(seen_to_move)
    assert fit.discarded == (4, 16, 24)
    expected = [(256 + 64 * step.rows) * MIB for step in steps]
    assert needs(fit, seen_to_move, 1) == pytest.approx(expected)


def test_a_flat_need_has_no_bytes_a_row() -> None:
    fit = fit_need([Step(1, 3 * GIB), Step(2, 0), Step(4, 0), Step(8, 0)])
    assert (fit.base_bytes, fit.bytes_per_row) == (3 * GIB, 0)


def test_one_size_is_all_rows() -> None:
    fit = fit_need([Step(4, 2 * GIB)], instances=2)
    assert (fit.base_bytes, fit.bytes_per_row) == (0, 256 * MIB)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step(1, GIB, moved=True), Step(2, GIB)], "for the first batches, of 1 rows"),
        ([Step(1, -GIB), Step(2, GIB)], "for the first batches"),
        ([Step(1, GIB), Step(2, GIB, moved=True), Step(4, GIB, moved=True)], "at every step"),
    ],
)
def test_what_says_nothing_is_no_need(steps: list[Step], message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_need(steps)


def test_a_profile_keeps_its_memory_and_draws_it() -> None:
    sizes = (MemorySize(rows=1, need_bytes=GIB), MemorySize(rows=4, need_bytes=2 * GIB, moved=True))
    need = MemoryProfile(
        device="GPU-a", source="nvml", instances=1, base_bytes=GIB * 2 / 3, bytes_per_row=GIB / 3,
        r_squared=1.0, sizes=sizes,
    )  # fmt: skip
    profile = GOOD.model_copy(update={"memory": need})
    assert Profile.model_validate_json(profile.model_dump_json()).memory == need
    picture = ElementTree.fromstring(memory_svg(profile, need))
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert [circle.get("fill") == "white" for circle in circles] == [False, True]
