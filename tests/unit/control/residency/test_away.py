"""Models that are wanted while their backend is away, or for long: by a clock that only plays."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.probe import Answer, ProbeResult
from scheduler.control.residency.on_demand import OUT_OF_REACH
from scheduler.control.residency.wants import FORGOTTEN_S
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import GIB, GROUP, ONE, World

Run = Callable[[Coroutine[Any, Any, None]], None]
AWAY = ProbeResult(Answer.UNREACHABLE, "connection refused")
THERE = ProbeResult(Answer.READY)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda work: run_virtually(work, monkeypatch)


def world_of_one_place(folder: Path, min_residency: str = "0ms") -> World:
    residency = {"budget": GIB, "min_residency": min_residency}
    names = dict.fromkeys("ab", GROUP)
    return World(
        folder, (ONE, names), figures=False, residency=residency, defaults={"weights": GIB}
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of_one_place(tmp_path)


def test_models_of_a_backend_that_is_back_are_out_of_reach_until_it_has_told_of_them(
    world: World, run: Run
) -> None:
    async def scenario() -> None:
        await world.start()
        watch, triton = world.pool.watches[ONE], world.tritons[ONE]
        assert [m.name for m in world.residency.steered().loadable] == ["a", "b"]
        world.hold_readings = True
        watch.take_probe(AWAY)
        await world.until(lambda: ONE not in world.loader.backends.explicit, "that is seen")
        asked = triton.asked
        watch.take_probe(THERE)
        await world.until(lambda: ONE in world.loader.backends.explicit, "it was asked")
        assert triton.asked > asked
        assert not watch.catalog_read
        assert {world.error(name) for name in "ab"} == {OUT_OF_REACH}, "not: unknown"
        world.hold_readings = False
        await world.until(lambda: not world.error("a"), "it has told")
        assert world.told("a") is not None

    run(scenario())


def test_what_is_wanted_while_its_backend_is_away_is_loaded_when_that_is_back(
    world: World, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await world.start()
        watch = world.pool.watches[ONE]
        world.loader.want("a")
        watch.take_probe(AWAY)  # before the loader has looked
        await asyncio.sleep(5)
        assert not world.tritons[ONE].loads
        watch.take_probe(THERE)
        await world.until(lambda: world.loaded("a"), "nobody has to ask again")

    with caplog.at_level(logging.INFO, logger="scheduler"):
        run(scenario())
    said = [record.message for record in caplog.records if "model a" in record.message]
    assert sum("is wanted, and no backend" in text for text in said) == 1, "once"


def test_a_call_that_waits_for_a_load_is_answered_when_its_backend_goes(
    tmp_path: Path, run: Run
) -> None:
    world = world_of_one_place(tmp_path, min_residency="1h")

    async def scenario() -> None:
        await world.start()
        await world.load("b")
        waiting = asyncio.create_task(world.residency.wait_loaded("a", 3600.0))
        await asyncio.sleep(1)
        assert not waiting.done()
        world.pool.watches[ONE].take_probe(AWAY)
        await asyncio.wait({waiting}, timeout=60)
        assert OUT_OF_REACH in str(waiting.exception())

    run(scenario())


def test_what_nobody_waits_for_when_its_backend_is_back_late_is_not_loaded(
    world: World, run: Run
) -> None:
    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        world.pool.watches[ONE].take_probe(AWAY)
        await asyncio.sleep(100)
        assert not world.loader.wants
        world.pool.watches[ONE].take_probe(THERE)
        await asyncio.sleep(10)
        assert not world.tritons[ONE].loads

    run(scenario())


def test_that_requests_wait_for_long_is_told(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_of_one_place(tmp_path, min_residency="1h")

    async def scenario() -> None:
        await world.start()
        await world.load("b")
        world.loader.want("a")
        world.data_plane.waiting["a"] = 3
        await asyncio.sleep(150)
        assert ("a", "") in world.loader.wants

    run(scenario())
    said = [record for record in caplog.records if "requests wait for model a" in record.message]
    assert [record.fields["waited_s"] // 10 for record in said] == [6, 12]


def test_one_that_is_gone_as_it_is_looked_who_waits_is_no_fault(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_of_one_place(tmp_path, min_residency="1h")

    async def scenario() -> None:
        await world.start()
        await world.load("b")
        world.loader.want("a")
        await asyncio.sleep(FORGOTTEN_S + 1e-3)
        world.tritons[ONE].states.pop(("a", "1"))
        await world.pool.watches[ONE].refresh()
        await world.until(lambda: not world.loader.wants, "nobody has it to load")

    run(scenario())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_one_that_no_backend_has_any_more_is_told_and_not_wanted(
    world: World, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await world.start()
        world.tritons[ONE].states.pop(("a", "1"))
        await world.pool.watches[ONE].refresh()
        world.loader.want("a")
        await world.until(lambda: not world.loader.wants, "nothing will come of it")

    with caplog.at_level(logging.INFO, logger="scheduler"):
        run(scenario())
    assert any("model a is not loaded though it was wanted" in r.message for r in caplog.records)
