"""A Triton takes the unload of a model and does not end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.probe import Answer, ProbeResult
from scheduler.config import Settings
from scheduler.control.residency.unloads import STAYS_S, STUCK
from scheduler.control.steered import NOTHING_STEERED
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import GIB, GROUP, ONE, TWO, World

Run = Callable[[Coroutine[Any, Any, None]], None]
TIMEOUT_S = 10
RESIDENCY = {"budget": GIB, "unload_timeout": f"{TIMEOUT_S}s"}
STUCK_PROBLEM = f"model a is stuck: backend {ONE} has not ended unloading it"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda work: run_virtually(work, monkeypatch)


def made(folder: Path, **more: Any) -> World:
    """One of the two fits."""
    return World(folder, (ONE, {"a": GROUP, "b": GROUP}), residency=RESIDENCY, **more)


def state(world: World, name: str) -> str:
    return next(shown.state for shown in world.residency.shown() if shown.name == name)


async def stuck(world: World, silent: bool) -> None:
    """`a` is to make room for `b`, and does not leave."""
    triton = world.tritons[ONE]
    await world.start()
    await world.load("a")
    triton.stuck = {"a"}
    await asyncio.sleep(10)
    world.loader.want("b")
    await world.until(lambda: state(world, "a") == "leaving", "it leaves")
    if silent:
        await world.until(lambda: triton.unloads, "it has taken it")
        triton.silent = True
    assert world.error("a") == "", "requests wait for it"
    await world.until(lambda: state(world, "a") == "stuck_unloading", "it is stuck", 3 * TIMEOUT_S)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("gone", [False, True])
def test_requests_for_it_are_refused_until_the_triton_has_told(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture, silent: bool, gone: bool
) -> None:
    world = made(tmp_path)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await stuck(world, silent)
        assert world.error("a") == STUCK
        assert "a" in world.residency.steered().refusing, "nothing is sent there"
        assert STUCK_PROBLEM in world.residency.problems
        await world.wanted_for(2 * TIMEOUT_S, "a", "b")
        assert state(world, "a") == "stuck_unloading"
        assert "b" not in triton.loads, "its memory is taken"
        assert triton.unloads == ["a"], "it was asked once"
        assert caplog.text.count("is stuck: its Triton") == 1

        triton.silent, triton.stuck = False, set()
        triton.states["a", "1"] = "UNAVAILABLE" if gone else "READY"
        await world.until(lambda: state(world, "a") != "stuck_unloading", "it is known")
        stays_s = world.loader.residents.protected_until_s.get(("a", ONE), 0) - time.monotonic()
        assert stays_s <= (0 if gone else STAYS_S), "however long it was stuck"
        assert STUCK_PROBLEM not in world.residency.problems
        if gone:
            await world.wanted_for(70, "b")  # longer than any pause after a failure
            assert world.loaded("b"), "there is room"
            counted = world.loader.counted["a", ONE]
            assert (counted.unloads, counted.unload_failures) == (1, 1)
        else:
            assert state(world, "a") == "loaded"
            assert "a" not in world.residency.steered().refusing, "it serves on"

    run(scenario())


def test_it_is_forgotten_when_the_backend_goes(tmp_path: Path, run: Run) -> None:
    world = made(tmp_path)

    async def scenario() -> None:
        await stuck(world, silent=False)
        world.pool.watches[ONE].take_probe(ProbeResult(Answer.UNREACHABLE))
        await world.until(lambda: not world.loader.unloads.stuck, "it is not waited for")
        assert not world.loader.residents.immovable

    run(scenario())


def test_it_is_loaded_on_another_backend(tmp_path: Path, run: Run) -> None:
    models = {"a": GROUP, "b": GROUP}
    world = World(tmp_path, (ONE, models), (TWO, models), residency=RESIDENCY)

    async def scenario() -> None:
        await world.start()
        await world.load("a")
        held = next(a for a, triton in world.tritons.items() if triton.loaded)
        await world.load("b")
        other = TWO if held == ONE else ONE
        world.tritons[held].stuck = {"a"}
        await asyncio.sleep(10)
        victim = next(r for r in world.loader.residents.all() if r.name == "a")
        leaving = asyncio.create_task(world.loader.unloads.unload(victim, "makes room"))
        await world.until(lambda: world.loader.unloads.stuck, "it is stuck", 3 * TIMEOUT_S)
        assert world.error("a") == ""
        world.loader.want("a")
        await world.until(lambda: "a" in world.tritons[other].loaded, "it is loaded there")
        assert leaving.exception() is not None

    run(scenario())


def test_one_that_is_stuck_when_residency_is_switched_off_is_told_on(
    tmp_path: Path, run: Run
) -> None:
    world = made(tmp_path)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await stuck(world, silent=False)
        world.plane.settings = Settings()
        world.residency.look()
        await asyncio.sleep(1)
        assert world.residency.steered().refusing == {"a"}
        assert world.error("a") == STUCK, "nobody waits for it"
        assert world.residency.problems == [STUCK_PROBLEM]
        triton.stuck = set()
        triton.states["a", "1"] = "READY"
        await world.until(lambda: not world.loader.unloads.stuck, "it is known")
        assert world.residency.steered() == NOTHING_STEERED
        assert world.residency.problems == []

    run(scenario())


def test_who_comes_while_it_is_being_unloaded_is_not_refused(tmp_path: Path, run: Run) -> None:
    models = dict.fromkeys("abc", GROUP)
    world = World(tmp_path, (ONE, models), residency=RESIDENCY, defaults={"weights": GIB})
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        await world.load("a")
        triton.stuck = {"a"}
        world.loader.want("b")
        await world.until(lambda: world.pool.watches[ONE].unloading, "it is seen", 3 * TIMEOUT_S)
        await world.wanted_for(2, "c")
        assert world.error("c") == "", "it has room soon"
        triton.states["a", "1"] = "UNAVAILABLE"
        await world.until(lambda: "c" in triton.loaded, "it has its turn")
        assert triton.loads == ["a", "b", "c"]

    run(scenario())
