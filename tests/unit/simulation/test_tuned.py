"""A tuned static batcher beside the engine: the best of a grid, by name, with the setting told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scheduler.cli.main import main
from scheduler.simulation.compare import goodput_of, static_grid
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import StaticSettings, simulate, static
from scheduler.simulation.tuned import KINDS_MAX, Tuned, tuned
from scheduler.simulation.workloads import WORKLOADS
from scheduler.simulation.world import World, from_file, named

pytestmark = pytest.mark.native

REQUESTS = 3000
TWO = """
executors: 4
warm_up: 100ms
models:
  - {name: quick, latency: {alpha: 0.5ms, beta: 4ms}, slo: 20ms, arrivals: {rate: 800}}
  - name: slow
    latency: {alpha: 3ms, beta: 12ms}
    slo: 120ms
    max_batch_size: 6
    arrivals: {rate: 100}
"""


def world_of(path: Path, text: str) -> World:
    path.write_text(text)
    return from_file(path)


def goodput(world: World, *settings: StaticSettings) -> float:
    def at(rate: float) -> Any:
        return replace(world.at(rate / world.per_s), seed=1, requests=REQUESTS)

    top = world.capacity_per_s
    return search(at, static(*settings), from_per_s=top, to_per_s=top / 1000).per_s


@pytest.mark.parametrize(
    ("letter", "name"), [("A", "static_timeout"), ("C", "static_tuned"), ("G", "static_tuned")]
)
def test_it_is_that_of_the_benchmark(letter: str, name: str) -> None:
    world = named(letter)
    found = tuned(world, name, seed=1, requests=REQUESTS)
    assert len(set(found.settings)) == 1
    known = goodput_of(WORKLOADS[letter], name, seed=1, requests=REQUESTS).per_s
    assert goodput(world, *found.settings) == pytest.approx(known, rel=0.01)
    assert goodput(world, *found.settings) > goodput(world, StaticSettings())


def test_models_that_differ_have_settings_of_their_own(tmp_path: Path) -> None:
    world = world_of(tmp_path / "w.yaml", TWO)
    found = tuned(world, "static_timeout", seed=1, requests=REQUESTS)
    models = world.at(1.0).models
    for setting, model in zip(found.settings, models, strict=True):
        assert setting in static_grid(model, timeouts=True)
        assert setting.rows_max <= model.rows_max
    best = goodput(world, *found.settings)
    # The one that was tuned last has the best there is beside the other.
    others = [(found.settings[0], setting) for setting in static_grid(models[1], timeouts=True)]
    assert max(goodput(world, *other) for other in others) == best
    assert best > goodput(world, StaticSettings())


def test_no_batch_is_larger_than_its_model_takes(tmp_path: Path) -> None:
    text = TWO.replace("max_batch_size: 6", "max_batch_size: 1")
    found = tuned(world_of(tmp_path / "w.yaml", text), "static_tuned", seed=1, requests=500)
    assert found.settings[1].rows_max == 1


def test_where_no_rate_holds_it_is_what_has_the_most_in_time(tmp_path: Path) -> None:
    """Requests in twos, a millisecond apart, where only a lone one can be in time."""
    (tmp_path / "t.csv").write_text("\n".join(f"{i}\n{i}.001" for i in range(200)))
    text = (
        "warm_up: 0ms\nmodels: [{name: a, latency: {alpha: 1ms, beta: 5ms}, slo: 6ms, "
        "arrivals: {kind: trace, file: t.csv}}]"
    )
    world = world_of(tmp_path / "w.yaml", text)
    found = tuned(world, "static_tuned", seed=1, requests=400)
    outcome = simulate(replace(world.at(1.0), requests=400), found.policy)
    assert outcome.in_time_share == pytest.approx(0.5, abs=0.01)


def test_of_many_kinds_only_some_are_tuned_by_themselves(tmp_path: Path) -> None:
    model = "  - {{name: m{0}, latency: {{beta: {0}ms}}, slo: 200ms, arrivals: {{rate: 5}}}}\n"
    kinds = KINDS_MAX + 2
    text = "warm_up: 0ms\nmodels:\n" + "".join(model.format(n) for n in range(1, kinds + 1))
    found = tuned(world_of(tmp_path / "w.yaml", text), "static_tuned", seed=1, requests=200)
    assert len(found.settings) == kinds


def test_settings_are_told_with_the_models_that_have_them() -> None:
    one, two = StaticSettings(8, delay_ms=2.0), StaticSettings(4, queue_timeout_ms=12.5)
    assert Tuned(("a", "b"), (one, one)).lines == ["up to 8 rows, max_queue_delay 2 ms"]
    assert Tuned(("a", "b", "c"), (one, two, one)).lines == [
        "a and 1 more: up to 8 rows, max_queue_delay 2 ms",
        "b: up to 4 rows, max_queue_delay 0 ms, queue timeout 12.5 ms",
    ]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", "--requests", "1000", *arguments])


def test_the_command_names_the_setting(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    arguments = ("A", "--policy", "static_tuned", "--policy", "infersched", "--load", "0.5,1")
    result = run(*arguments, "--goodput", "--plot", str(page))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["static_tuned"] * 2 + ["infersched"] * 2
    (told,) = [line for line in lines if line.startswith("static_tuned is ")]
    (record,) = json.loads(run(*arguments, "--json").stdout)["tuned"]["static_tuned"]
    assert set(record) == {"name", "max_batch_size", "max_queue_delay_ms", "queue_timeout_ms"}
    assert f"up to {record['max_batch_size']} rows" in told
    assert told.split(" is ")[1] in page.read_text()
    assert any(line.startswith("goodput of static_tuned: ") for line in lines)


def test_nothing_is_tuned_that_is_not_asked_for() -> None:
    found = json.loads(run("A", "--policy", "static_default", "--load", "0.1", "--json").stdout)
    assert found["tuned"] == {}


def test_keys_that_only_the_engine_knows_are_refused_with_it(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(TWO + "faults: [{kind: cancels, start: 1s}]\n")
    result = run(str(path), "--policy", "static_timeout")
    assert (result.exit_code, "faults" in result.output) == (2, True)
