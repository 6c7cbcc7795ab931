"""The benchmark of requests with an objective runs, and verifies its answers."""

from __future__ import annotations

import pytest

from benchmarks import slo_triton
from benchmarks.options import Options
from benchmarks.results import GOALS


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts four Tritons
def test_every_step_of_the_objective_benchmark_runs_and_is_verified(needs_triton: None) -> None:
    figures = slo_triton.run(Options(seconds=0.3, short=True))
    assert {figure.figure for figure in figures} == {n for n in GOALS if n.startswith("slo_")}
    assert all(figure.verified for figure in figures)
    ratios = [figure for figure in figures if "_ratio" in figure.figure]
    assert all("; ratio by round: " in figure.note for figure in ratios)
    assert not any("nothing" in figure.note for figure in ratios)
