"""The engine in random worlds, every truth checked after every event, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scheduler.simulation.engine import BrokenTruth
from tests.property import engine_swarm

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 400


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_every_truth_holds_in_random_worlds(first: int) -> None:
    command = [sys.executable, "-m", "tests.property.engine_swarm"]
    done = subprocess.run(
        [*command, str(first), "--to", str(first + 100)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.split()[-1:]
    told = f"{done.stderr}\nagain by: {engine_swarm.replay(int(last[0]))}" if last else done.stderr
    assert (done.returncode, last) == (0, [str(first + 99)]), told


# Worlds beyond those above in which a truth was broken once.
@pytest.mark.parametrize("seed", [431, 1274, 2489, 2847, 53042, 910261])
def test_every_truth_holds_where_one_was_broken(seed: int) -> None:
    engine_swarm.run(seed)


# Worlds with more work than clients wait for in the end.
@pytest.mark.parametrize("seed", [11323, 14071, 17634, 23114])
def test_every_truth_holds_where_clients_give_up(seed: int) -> None:
    engine_swarm.run(seed)


# Much fails and is sent again, or there is work for minutes: more than anybody waits for.
@pytest.mark.parametrize("seed", [55000407, 77000330])
def test_a_world_ends_soon(seed: int) -> None:
    counted = engine_swarm.run(seed).engine
    assert counted is not None
    assert counted.steps < 50_000


def test_the_worlds_reach_every_fate_and_failure() -> None:
    fates: Counter[str] = Counter()
    for seed in range(100):
        counted = engine_swarm.run(seed).engine
        assert counted is not None
        fates["failed_batches"] += counted.failed_batches
        fates["cancels"] += counted.cancels
        for kind in (kind for model in counted.classes for kind in model):
            fates.update(vars(kind))
    reached = {name for name, count in fates.items() if count > 10}
    assert reached == {
        *("offered", "in_time", "late", "refused", "expired", "failed", "cancelled"),
        "unanswered",
        *("failed_batches", "cancels"),
    }


def test_the_same_seed_is_the_same_world() -> None:
    assert engine_swarm.run(7) == engine_swarm.run(7)
    assert engine_swarm.random_world(7) != engine_swarm.random_world(8)


def test_a_broken_truth_is_told_with_the_command_that_shows_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(seed: int) -> None:
        if seed == 5:
            raise BrokenTruth("all is well")

    monkeypatch.setattr(engine_swarm, "run", run)
    assert engine_swarm.main(["3", "--to", "9"]) == 1
    told = capsys.readouterr().err
    assert "all is well" in told
    assert told.strip().endswith("python -m tests.property.engine_swarm 5")
