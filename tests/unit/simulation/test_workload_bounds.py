"""Numbers of a workload file: what is taken can be simulated, all else is named with its key."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.config.errors import ConfigError
from scheduler.simulation.engine import EngineSettings, Fault
from scheduler.simulation.scenario import engine, simulate
from scheduler.simulation.world import World, from_file

pytestmark = pytest.mark.native

REQUESTS = 60
NUMBERS: tuple[object, ...] = (
    0, -1, 0.5, 1, 2, 3, 1e-300, 1e-7, 0.9999999, 1e6, 1e9, 1e300, 2**31, 2**32, 2**63 - 1, 2**64,
    99999999999999999999, float("inf"), float("nan"),
)  # fmt: skip
TIMES: tuple[object, ...] = (
    0, "1ns", "5ms", "900ms", "2000000h", "2562047h", "9223372036854775807ns", "-5ms",
    "999999999ms", "277h",
)  # fmt: skip
# Keys of a file that has everything, with what may stand there.
MODEL = ("models", 0)
CLASS, LEVEL, ARRIVALS = (*MODEL, "classes", 0), (*MODEL, "levels", 0), (*MODEL, "arrivals")
KEYS: dict[tuple[str | int, ...], tuple[object, ...]] = {
    ("executors",): NUMBERS,
    ("speeds", 0): NUMBERS,
    ("noise",): NUMBERS,
    ("drift_per_s",): NUMBERS,
    ("wire",): TIMES,
    ("tenants", "gold"): NUMBERS,
    (*MODEL, "latency", "alpha"): TIMES,
    (*MODEL, "latency", "beta"): TIMES,
    (*MODEL, "slo"): TIMES,
    (*MODEL, "max_batch_size"): NUMBERS,
    (*MODEL, "instances"): NUMBERS,
    (*MODEL, "attainment"): NUMBERS,
    (*MODEL, "value"): NUMBERS,
    (*MODEL, "priority_levels"): NUMBERS,
    (*MODEL, "aging"): TIMES,
    (*MODEL, "queue_requests_max"): NUMBERS,
    (*MODEL, "executors"): ([0], [1], [0, 0], [-1], [2**64]),
    (*LEVEL, "slo"): TIMES,
    (*LEVEL, "attainment"): NUMBERS,
    (*CLASS, "share"): NUMBERS,
    (*CLASS, "priority"): NUMBERS,
    ("models", 0, "classes", 1, "slo"): (*TIMES, "none"),  # of a best_effort level
    (*CLASS, "rows"): NUMBERS,
    (*CLASS, "signatures"): NUMBERS,
    (*ARRIVALS, "rate"): NUMBERS,
    (*ARRIVALS, "shape"): NUMBERS,
    ("models", 1, "arrivals", "on"): TIMES,
    ("models", 1, "arrivals", "off"): TIMES,
    ("models", 2, "arrivals", "rates", 0): NUMBERS,
    ("models", 2, "arrivals", "step"): TIMES,
    **{
        ("faults", at, key): values
        for at in range(5)
        for key, values in {
            "start": TIMES, "end": TIMES, "factor": NUMBERS, "code": NUMBERS,
            "executor": NUMBERS, "shift": TIMES,
        }.items()
    },
}  # fmt: skip


def whole() -> dict[str, Any]:
    latency = {"alpha": "1ms", "beta": "5ms"}
    return {
        "executors": 2,
        "warm_up": "50ms",
        "speeds": [1, 1],
        "tenants": {"gold": 2},
        "models": [
            {
                "name": "first", "latency": dict(latency), "slo": "60ms", "priority_levels": 2,
                "arrivals": {"kind": "gamma", "rate": 100, "shape": 0.5},
                "levels": [{}, {"best_effort": True}],
                "classes": [{"tenant": "gold"}, {"priority": 2}],
            },
            {
                "name": "second", "latency": dict(latency), "slo": "60ms",
                "arrivals": {"kind": "on_off", "rate": 50, "on": "100ms", "off": "50ms"},
            },
            {
                "name": "third", "latency": dict(latency), "slo": "60ms",
                "arrivals": {"kind": "series", "rates": [50, 20], "step": "500ms"},
            },
        ],
        "faults": [
            {"kind": kind, "start": "100ms", "end": "200ms"}
            for kind in ("slow", "down", "failing", "clock_jump", "hang")
        ],
    }  # fmt: skip


def world_of(path: Path, values: dict[tuple[str | int, ...], object]) -> World:
    """Of the whole file with these values in place of its own. Raises ConfigError."""
    content: Any = whole()
    for key, value in values.items():
        place = content
        for step in key[:-1]:
            place = place[step]
        place[key[-1]] = value
    path.write_text(yaml.safe_dump(content))
    return from_file(path)


def runs(path: Path, values: dict[tuple[str | int, ...], object]) -> bool:
    """Whether the file is taken; it is simulated then."""
    try:
        world = world_of(path, values)
    except ConfigError as error:
        told = [problem.message for problem in error.problems]
        assert "" not in told
        return False
    scenario = replace(world.at(1.0), requests=REQUESTS)
    outcome = simulate(scenario, engine(world.settings))
    for model in outcome.models:
        assert model.offered == model.in_time + model.late + model.dropped
    return True


def jumps(*steps: tuple[int, int]) -> list[dict[str, str]]:
    """Of so many seconds each, at so many."""
    return [{"kind": "clock_jump", "start": f"{at}s", "shift": f"{s}s"} for at, s in steps]


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([(1, -999)], None),
        ([(1, -1000)], None),  # a second has gone by
        ([(1, -1001)], "faults[0]: clock_jump takes the clock to 0 s"),
        ([(1, -10_000)], "faults[0]: clock_jump takes the clock to -8999 s"),
        ([(1, 10_000)], None),
        ([(1, 900), (2, -900), (3, 900), (4, -900)], None),
        ([(2, -900), (1, 900), (3, -900)], None),
        ([(3, 900), (2, -900), (1, -900)], "faults[1]: clock_jump takes the clock to -798 s"),
    ],
)
def test_no_jump_takes_the_clock_below_where_a_monotonic_one_can_be(
    tmp_path: Path, steps: list[tuple[int, int]], wrong: str | None
) -> None:
    path = tmp_path / "w.yaml"
    faults = tuple(Fault("clock_jump", 1e3 * at, shift_ms=1e3 * shift) for at, shift in steps)
    scenario = replace(world_of(path, {}).at(1.0), requests=1000)
    if wrong is None:
        world_of(path, {("faults",): jumps(*steps)})
        counted = simulate(scenario, engine(EngineSettings(faults=faults))).engine
        assert counted is not None
        assert counted.faults_begun == len(faults)
        return
    with pytest.raises(ConfigError) as raised:
        world_of(path, {("faults",): jumps(*steps)})
    (problem,) = raised.value.problems
    assert wrong in problem.message
    assert "give a shift above" in problem.message
    with pytest.raises(ValueError, match="jumps leave the clock"):
        simulate(scenario, engine(EngineSettings(faults=faults)))


@pytest.mark.parametrize("shift_s", [999_999, -999_999])
def test_many_jumps_do_not_take_the_clock_where_it_cannot_be(tmp_path: Path, shift_s: int) -> None:
    """Each is allowed alone; of those ahead 9,001 are too many."""
    steps = [(1, shift_s)] * 9001
    with pytest.raises(ConfigError) as raised:
        world_of(tmp_path / "w.yaml", {("faults",): jumps(*steps)})
    (problem,) = raised.value.problems
    wrong = (
        "faults[9000]: clock_jump takes the clock to 9.00099e+09 s, and it is never above 9e+09 s"
    )
    assert ("faults[0]: clock_jump takes the clock to -998998 s" in problem.message) == (
        shift_s < 0
    )
    assert (wrong in problem.message) == (shift_s > 0)
    assert "; give a shift " in problem.message


@pytest.mark.parametrize(
    ("at_s", "shift_s", "wrong"),
    [
        (1, 8_999_998_998, None),
        (1, 8_999_999_000, "which begins at 1000 s, above 0 and at most at 9e9 s"),
        (1, 9_200_000_000, "jumps leave the clock"),
        (9_200_000_000, 9_200_000_000, "jumps leave the clock"),
        (9_200_000_000, -9_200_000_000, None),  # the run ends before
        (1, -9_200_000_000, "jumps leave the clock"),
        (1, 9_200_000_001, "shift_ms of a clock_jump is 9.2e+12, and a time is from"),
        (1, float("inf"), "shift_ms of a clock_jump is inf, and a time is from"),
        (float("nan"), 1, "from_ms of a clock_jump is nan, and a time is from"),
    ],
)
def test_a_jump_is_told_where_the_clock_could_not_be(
    tmp_path: Path, at_s: float, shift_s: float, wrong: str | None
) -> None:
    scenario = replace(world_of(tmp_path / "w.yaml", {}).at(1.0), requests=1000)

    def run() -> None:
        fault = Fault("clock_jump", 1e3 * at_s, shift_ms=1e3 * shift_s)
        simulate(scenario, engine(EngineSettings(faults=(fault,), check_truths=True)))

    refused = pytest.raises(ValueError, match=re.escape(wrong)) if wrong else nullcontext()
    with refused:
        run()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (("faults", 3, "shift"), "1000001s"),
        (("faults", 3, "shift"), "-1000001s"),
        (("faults", 3, "shift"), "1000000000s"),
        (("faults", 3, "shift"), "99999999999999999999s"),
        (("faults", 3, "start"), "1000001s"),
        (("wire",), "2000000h"),
    ],
)
def test_a_time_that_is_too_long_is_refused_with_the_bound(
    tmp_path: Path, key: tuple[str | int, ...], value: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        world_of(tmp_path / "w.yaml", {key: value})
    (problem,) = raised.value.problems
    assert problem.path == key
    assert "1000000s" in problem.message.replace(value, "", 1)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({("slo",): "3ms"}, ["models.0.slo"]),
        ({("levels", 1): {"slo": "3ms"}}, ["models.0.levels.1.slo"]),
        (
            {("levels", 1): {"slo": "3ms"}, ("classes", 1, "slo"): "none"},
            ["models.0.levels.1.slo"],
        ),
        ({("classes", 1, "slo"): "3ms"}, ["models.0.classes.1.slo"]),
        ({("classes", 1, "slo"): "3ms", ("classes", 1, "rows"): 9}, ["models.0.classes.1.slo"]),
        ({("classes", 0, "rows"): 60}, ["models.0.classes.0.rows"]),
    ],
)
def test_one_objective_that_cannot_be_met_is_one_problem(
    tmp_path: Path, values: dict[tuple[str | int, ...], object], keys: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        world_of(tmp_path / "w.yaml", {(*MODEL, *key): value for key, value in values.items()})
    assert [".".join(map(str, problem.path)) for problem in raised.value.problems] == keys
    assert all("; give " in problem.message for problem in raised.value.problems)


def test_the_file_has_every_key_and_is_taken(tmp_path: Path) -> None:
    assert runs(tmp_path / "w.yaml", {})


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(map(str, key)))
def test_a_number_is_refused_or_can_be_simulated(
    tmp_path: Path, key: tuple[str | int, ...]
) -> None:
    taken = [value for value in KEYS[key] if runs(tmp_path / "w.yaml", {key: value})]
    assert 0 < len(taken) < len(KEYS[key]), taken
