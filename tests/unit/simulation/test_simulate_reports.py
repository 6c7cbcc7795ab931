"""`infersched simulate`: what its reports say of classes, tenants, and of what is in no figure."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scheduler.cli.main import main
from scheduler.simulation.plot import Chart, svg
from scheduler.simulation.scenario import engine
from scheduler.simulation.scenario import simulate as run
from scheduler.simulation.world import from_file

pytestmark = pytest.mark.native

COUNTS = ("offered", "in_time", "cancelled", "unanswered")

# One executor serves at most 128 rows in 133 ms.
BULK = """
warm_up: 0ms
tenants: {gold: 3}
models:
  - name: ranker
    latency: {alpha: 1ms, beta: 5ms}
    slo: 60ms
    arrivals: {rate: RATE}
    priority_levels: 2
    levels: [{}, {best_effort: true}]
    queue_requests_max: 1000000
    classes:
      - {name: top, share: 1, tenant: gold}
      - {name: bulk, share: 20, priority: 2}
  - {name: quick, latency: {alpha: 1ms}, slo: 20ms, arrivals: {rate: 20}}
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    for name in [name for name in os.environ if name.startswith("INFERSCHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def simulate(runner: CliRunner, text: str, *arguments: str) -> Result:
    Path("w.yaml").write_text(text)
    result = runner.invoke(main, ["simulate", "w.yaml", "--load", "1", *arguments])
    assert result.exit_code == 0, result.output
    return result


def point_of(runner: CliRunner, text: str, *arguments: str) -> Any:
    (point,) = json.loads(simulate(runner, text, "--json", *arguments).stdout)["points"]
    return point


def test_a_run_of_any_length_says_the_same_of_what_has_no_deadline(runner: CliRunner) -> None:
    """More than can be served: the longer the run, the more of it waits."""
    text = BULK.replace("RATE", "2000")
    for requests in ("2000", "20000"):
        point = point_of(runner, text, "--requests", requests)
        top, bulk = point["models"][0]["classes"]
        assert bulk["unanswered"] > 0.2 * bulk["offered"]
        assert bulk["late"] == top["unanswered"] == 0
        assert bulk["attainment"] == 1
        assert bulk["offered"] == bulk["in_time"] + bulk["unanswered"]
        assert point["models"][0]["offered"] == top["offered"] + bulk["offered"]
        answered = sum(model["in_time"] for model in point["models"]) / int(requests)
        assert point["in_time_per_s"] == pytest.approx(2020 * answered, abs=0.1)
        assert point["requests"] == int(requests)
    told = simulate(runner, text, "--requests", "2000").stderr
    assert "requests without a deadline waited when it ended, in no attainment" in told


def test_the_end_of_a_run_is_no_outage_for_what_has_no_deadline(runner: CliRunner) -> None:
    result = simulate(runner, BULK.replace("RATE", "2000"), "--requests", "2000", "--json")
    steps = json.loads(result.stdout)["over_time"]["policies"]["infersched"]
    assert steps
    late = steps[len(steps) // 2 :]
    offered = sum(step["offered"] for step in late)
    assert sum(step["in_time"] for step in late) > 0.8 * offered > 0


def test_what_clients_cancelled_is_in_no_attainment_over_time_either(runner: CliRunner) -> None:
    """What they left early, and what still waits in the end, is in neither figure."""
    text = BULK.replace("RATE", "1500") + (
        "faults: [{kind: cancels, start: 500ms}, {kind: cancels, start: 1s, factor: 0.5}]\n"
    )
    found = json.loads(simulate(runner, text, "--requests", "2000", "--json").stdout)
    kinds = [kind for model in found["points"][0]["models"] for kind in model["classes"]]
    counted = {key: sum(kind[key] for kind in kinds) for key in kinds[0] if key in COUNTS}
    assert counted["cancelled"] > 10
    assert counted["unanswered"] > 10
    steps = found["over_time"]["policies"]["infersched"]
    judged = counted["offered"] - counted["cancelled"] - counted["unanswered"]
    assert sum(step["offered"] for step in steps) == judged
    assert sum(step["in_time"] for step in steps) == counted["in_time"]
    assert all(step["in_time"] <= step["offered"] for step in steps)


@pytest.mark.parametrize("ends", ["", ", {kind: cancels, start: 2s}"], ids=["served", "cancelled"])
def test_what_ends_after_the_run_changes_nothing_over_time(tmp_path: Path, ends: str) -> None:
    """All still waits when the run ends; the truths see to it that all is answered later."""
    path = tmp_path / "w.yaml"
    path.write_text(
        "warm_up: 100ms\nmodels: [{name: a, latency: {beta: 5ms}, slo: 60ms, "
        "arrivals: {rate: 500}, levels: [{best_effort: true}]}]\n"
        f"faults: [{{kind: hang, start: 0s, end: 3s}}{ends}]"
    )
    world = from_file(path)
    scenario = replace(world.at(1.0), requests=100, interval_ms=10)
    outcome = run(scenario, engine(replace(world.settings, check_truths=True)))
    assert outcome.intervals
    assert set(outcome.intervals) == {(0, 0)}


def test_classes_and_tenants_have_lines_of_their_own(runner: CliRunner, tmp_path: Path) -> None:
    text = BULK.replace("RATE", "100")
    result = simulate(runner, text, "--requests", "500", "--seeds", "2", "--plot", "p.html")
    lines = [line.split("  ")[0].strip() for line in result.stdout.splitlines()]
    assert lines == [
        *("POLICY", "infersched", "- ranker: top", "- ranker: bulk"),
        *("- tenant gold", "- tenant (others)"),
    ]
    page = (tmp_path / "p.html").read_text()
    assert all(f"<td>{line}</td>" in page for line in lines[1:])
    columns = [line.split()[-3:-1] for line in result.stdout.splitlines()[2:]]
    assert all(0.9 <= float(columns[i][1]) <= 1 for i in range(4)), columns


def test_a_backlog_without_a_deadline_is_no_goodput(runner: CliRunner) -> None:
    """One executor at half its speed serves 128 rows in 266 ms, 481/s, and no more."""
    text = (
        "warm_up: 0ms\nmodels: [{name: a, latency: {alpha: 1ms, beta: 5ms}, slo: 60ms, "
        "arrivals: {rate: 2000}, levels: [{best_effort: true}]}]\n"
        "faults: [{kind: slow, start: 0s, end: 1000s, factor: 2}]"
    )
    result = simulate(runner, text, "--requests", "5000", "--goodput", "--json")
    (goodput,) = json.loads(result.stdout)["goodput"]
    assert 240 < goodput["goodput_per_s"] < 490


def test_what_was_offered_to_classes_is_what_came(runner: CliRunner) -> None:
    text = BULK.replace("RATE", "2000").replace("share: 20", "share: 1")
    result = simulate(runner, text, "--requests", "2000", "--seeds", "3")
    classes = [line for line in result.stdout.splitlines() if line.startswith("- ranker")]
    offered = [float(line.split()[-4]) for line in classes]
    assert len(offered) == 2
    assert sum(offered) == pytest.approx(2000, rel=0.005)


def test_a_run_that_nothing_was_judged_in_has_no_attainment(runner: CliRunner) -> None:
    text = (
        "warm_up: 0ms\nmodels: [{name: a, latency: {alpha: 1ms, beta: 5ms}, slo: 60ms, "
        "arrivals: {rate: 2000}, levels: [{best_effort: true}], "
        "classes: [{name: x, tenant: t}, {name: y}]}]\ntenants: {t: 1}\n"
        "faults: [{kind: hang, start: 0s, end: 1000s}]"
    )
    result = simulate(runner, text, "--requests", "200")
    for line in result.stdout.splitlines()[1:]:
        assert line.split("infersched")[-1].count(" - ") + line.endswith(" -") >= 2, line
        assert "1.0000" not in line
    point = point_of(runner, text, "--requests", "200")
    assert point["in_time_per_s"] == 0
    assert point["attainment"] is point["worst_model_attainment"] is None
    assert [kind["attainment"] for kind in point["models"][0]["classes"]] == [None, None]


def test_a_class_is_held_to_its_own_deadline_and_to_that_of_its_level(runner: CliRunner) -> None:
    """Too much load: the sooner the objective, the sooner is what is answered."""
    text = BULK.replace("RATE", "1200").replace("share: 20, priority: 2", "share: 20, SLO")
    held = {
        "60ms": text.replace(", SLO", ""),
        "30ms": text.replace("SLO", "slo: 30ms"),
        "60ms of the level": text.replace("SLO", "priority: 2"),
        "200ms": text.replace("SLO", "priority: 2").replace("{best_effort: true}", "{slo: 200ms}"),
    }
    held["60ms of the level"] = held["60ms of the level"].replace("{best_effort: true}", "{}")
    p99 = {
        slo: point_of(runner, written, "--requests", "3000")["latency_ms"]["p99"]
        for slo, written in held.items()
    }
    assert p99["30ms"] < p99["60ms"] < p99["200ms"]
    assert p99["60ms of the level"] < p99["200ms"]


def test_what_never_came_in_a_run_is_told(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(str(i / 100) for i in range(300)))
    text = (
        "warm_up: 0ms\nmodels: [{name: a, latency: {alpha: 1ms}, slo: 9ms, "
        "arrivals: {kind: trace, file: t.csv}}]\n"
        "faults: [{kind: cancels, start: 1s}, {kind: cancels, start: 20s}]"
    )
    told = simulate(runner, text, "--requests", "1000").stderr
    assert "only 300 requests came to be counted" in told
    told = json.loads(simulate(runner, text, "--json").stdout)
    assert (told["requests"], told["points"][0]["requests"]) == (50_000, 300)
    late = text.replace("kind: trace, file: t.csv", "rate: 100")
    told = simulate(runner, late, "--requests", "500").stderr
    assert "before 1 of the faults began" in told
    assert "note" not in simulate(runner, late, "--requests", "3000").stderr


@pytest.mark.parametrize(
    "both", [["--seed", "1", "--seeds", "2"], ["--rate", "100", "--load", "1"]], ids=" ".join
)
def test_options_that_exclude_each_other_are_refused(runner: CliRunner, both: list[str]) -> None:
    result = runner.invoke(main, ["simulate", "A", "--requests", "100", *both])
    assert (result.exit_code, "exclude each other" in result.output) == (2, True)


def test_one_load_is_a_dot() -> None:
    drawn = svg([Chart("t", "x", "y", {"one": [(100.0, 50.0)], "two": [(1.0, 2.0), (3.0, 4.0)]})])
    assert drawn.count("<circle") == 1
    assert drawn.count("<polyline") == 1
