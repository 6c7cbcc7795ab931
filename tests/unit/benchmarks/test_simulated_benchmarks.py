"""The benchmarks that need no Triton, in their smallest runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from benchmarks import (
    decisions,
    device_memory,
    device_memory_cost,
    mixes,
    noise,
    overload,
    slo_possible,
)
from benchmarks.mix_worlds import mix
from benchmarks.options import Options
from scheduler._native.simulation import DecisionLoad
from scheduler.simulation.engine import FATES, EngineSettings
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from scheduler.simulation.workloads import WORKLOADS

pytestmark = pytest.mark.native

SHORT = Options(rounds=1, short=True)


def test_overload_gives_every_figure() -> None:
    figures = {figure.figure: figure for figure in overload.run(SHORT)}
    assert list(figures) == [
        "noise_part_of_goodput",
        "overload_part_of_goodput",
        "overload_top_class_in_time",
        "added_wait_median",
        "false_refusals",
        "wrong_give_ups",
        "simulated_requests",
    ]
    assert all(figure.verified for figure in figures.values())
    # What the two rest on, by workload.
    for name in ("false_refusals", "wrong_give_ups"):
        told = figures[name].note.split("; ")
        assert [each[0] for each in told] == ["A", "C", "F"]
        assert all(" sampled " in each for each in told)


def test_wrong_give_ups_are_a_part_of_all_requests() -> None:
    denied = overload.Denied(overload.EXPIRED, total=20, offered=1000, wrongly=[True, False])
    assert denied.wrong_part == 0.01
    assert str(denied) == "2.00%, of 2 sampled 1 wrongly"
    assert overload.Denied(overload.EXPIRED).wrong_part == 0


def test_noise_is_told_by_workload_and_seed() -> None:
    (line,) = noise.lines(["C"], [1, 2], requests=2_000, noise=0.1, jobs=1)
    found = json.loads(line)
    assert found["figure"] == "noise_C_part_of_goodput"
    assert len(found["by_seed"]) == 2
    assert 0.7 < found["value"] <= 1.01


def test_what_is_possible_is_less_with_an_overhead_and_never_above_the_bound() -> None:
    without, with_one = (
        slo_possible.possible(overhead_ms, [1], requests=4_000)["per_s"] for overhead_ms in (0, 1)
    )
    assert isinstance(without, dict)
    assert isinstance(with_one, dict)
    assert list(without) == ["static_default", "just_enough", "infersched", "bound"]
    assert all(with_one[name] < found for name, found in without.items())
    assert without["static_default"] < without["infersched"] < without["bound"] == 2826


def test_device_memory_gives_every_simulated_figure() -> None:
    figures = device_memory.in_simulation(SHORT)
    assert [figure.figure for figure in figures] == [
        "device_memory_client_errors",
        "device_memory_part_of_best_cap",
        "device_memory_ratio_to_safe_cap",
        "device_memory_prediction_error",
    ]
    assert figures[0].reaches(figures[0].must)
    assert figures[3].reaches(figures[3].must)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind")
def test_the_ledger_costs_instructions() -> None:
    (figure,) = device_memory_cost.run(SHORT)
    assert figure.figure == "device_memory_ledger_cost"
    assert figure.verified


def test_without_valgrind_the_cost_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert device_memory_cost.run(SHORT) == []
    assert "there is no valgrind" in capsys.readouterr().err


def test_decisions_gives_every_figure() -> None:
    figures = decisions.run(SHORT)
    assert [figure.figure for figure in figures] == [
        "decisions_slowest",
        "decisions_queue_ratio",
        "decisions_models_ratio",
    ]
    assert all(figure.verified for figure in figures)


def test_more_models_than_the_counters_page_has_are_served() -> None:
    load = DecisionLoad(models=10_000, queue_length=10_000)
    load.fill()
    assert load.run(20_000)


def test_truths_hold_of_models_beyond_the_counters_page() -> None:
    quiet, busy = Arrivals(rate_per_s=0), Arrivals("recorded", times_ms=(1.0, 1.0, 2.0, 60.0))
    models = [Model(Latency(1, 1), 25, arrivals) for arrivals in [quiet] * 4099 + [busy]]
    scenario = Scenario(models, executors=1, warm_up_ms=0, requests=4)
    outcome = simulate(scenario, engine(EngineSettings(check_truths=True)))
    assert (outcome.models[-1].offered, outcome.models[-1].in_time) == (4, 4)


def test_fates_follow_the_arrivals_and_a_run_can_be_cut() -> None:
    scenario = WORKLOADS["A"].scenario(3000, requests=1000)
    whole = simulate(scenario, engine(EngineSettings(keep_fates=True))).engine
    cut = simulate(scenario, engine(EngineSettings(keep_fates=True, stop_ns=2_100_000_000))).engine
    assert whole is not None
    assert cut is not None
    assert len(whole.fates) == len(whole.arrivals_ns) > 6000
    assert list(whole.arrivals_ns) == sorted(whole.arrivals_ns)
    assert whole.arrivals_ns[: len(cut.arrivals_ns)] == cut.arrivals_ns
    assert max(cut.arrivals_ns) <= 2_100_000_000
    assert {FATES[fate] for fate in whole.fates} >= {"in_time"}


@pytest.mark.parametrize(("letter", "rate"), [("A", 5500), ("G", 4150), ("B", 970)])
def test_what_is_refused_could_not_have_been_answered(letter: str, rate: float) -> None:
    size = overload.Size(requests=20_000, seeds=(1,), samples=40)
    refused = overload.denied_wrongly(overload.REFUSED, WORKLOADS[letter], rate, size)
    assert len(refused.wrongly) == 40, "there is something to look at"
    assert sum(refused.wrongly) == 0


def test_a_request_is_kept_in_the_queue_to_find_out_whether_giving_it_up_was_right() -> None:
    scenario = WORKLOADS["A"].scenario(5500, requests=20_000)
    base = simulate(scenario, engine(EngineSettings(keep_fates=True))).engine
    assert base is not None
    given_up = [n for n, fate in enumerate(base.fates) if fate == overload.EXPIRED]
    fates = set()
    for ordinal in given_up[-8:]:
        kept = simulate(scenario, engine(EngineSettings(keep_fates=True, kept=ordinal))).engine
        assert kept is not None
        fates.add(FATES[kept.fates[ordinal]])
    assert "in_time" in fates


def test_mixes_are_compared_with_every_reference() -> None:
    rows = [mixes.look_at(seed, 200, mixes.REFERENCES, overload=True) for seed in (13, 8)]
    for row in rows:
        assert set(row.references) == set(mixes.REFERENCES)
        assert 0 < row.ours <= row.mix.capacity_per_s
        assert json.loads(row.to_json())["mix"] == row.mix.seed
    figures = {found["figure"]: found for found in mixes.quantiles(rows)}
    assert {"mixes_of_just_enough", "mixes_of_best_reference", "mixes_in_time_at_5"} < set(figures)
    assert all(found["workloads"] == len(rows) for found in figures.values())
    assert f"{rows[0].mix.seed:5}" in mixes.table(rows)


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_mix_is_one_and_can_be_run(seed: int) -> None:
    one = mix(seed)
    assert one == mix(seed)
    scenario = replace(one.scenario(one.capacity_per_s, 50), warm_up_ms=0)
    assert simulate(scenario, engine()).offered == 50
