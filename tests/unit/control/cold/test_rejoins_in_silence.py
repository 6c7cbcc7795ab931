"""Wishes of clients at a backend that came back and does not tell at once what it serves."""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path

import pytest

from scheduler.backends.probe import Answer, CallError, ProbeResult
from tests.unit.control.cold.test_repository_operations import HERE, Triton, World, files_of


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.control.cold.repository.RETRY_PERIOD_S", 0.0)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is up after the first question."""
    monkeypatch.setattr("scheduler.control.cold.repository.READ_TIMEOUT_S", 0.0)


def unlisted(*names: str) -> Triton:
    triton = Triton(dict.fromkeys(names, ""))
    triton.unlisted.update(names)
    return triton


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    records = [vars(record) for record in caplog.records if record.levelno == logging.WARNING]
    return [(record["message"], str(record)) for record in records]


@pytest.mark.parametrize("silences", [0, 3])
def test_a_load_with_files_is_repeated_only_where_its_model_is_missing(
    tmp_path: Path, silences: int
) -> None:
    triton = unlisted("sent")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        await world.load_with_files("sent")
        triton.silences = silences
        await world.rejoin(HERE)
        assert triton.loaded == ["sent"], "it has it"
        del triton.states["sent", "1"]
        triton.silences = silences
        await world.rejoin(HERE)
        assert triton.loaded == ["sent"] * 2
        assert world.pool.versions("sent")

    asyncio.run(scenario())


@pytest.mark.parametrize("silences", [0, 3])
def test_an_unload_that_a_backend_missed_is_made_up_for(tmp_path: Path, silences: int) -> None:
    triton = unlisted("sent")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        world.loads.unloaded("sent")
        triton.silences = silences
        await world.rejoin(HERE)
        assert not world.pool.versions("sent")
        await world.rejoin(HERE)

    asyncio.run(scenario())
    assert triton.unloaded == ["sent"]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("wish", ["load", "unload"])
def test_a_backend_that_never_tells_is_left_as_it_is_and_that_is_said(
    tmp_path: Path, wish: str, caplog: pytest.LogCaptureFixture
) -> None:
    triton = unlisted("sent")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        await world.load_with_files("sent")
        if wish == "unload":
            world.loads.unloaded("sent")
        triton.tells_served = False
        await world.rejoin(HERE)

    asyncio.run(scenario())
    assert (triton.loaded, triton.unloaded) == (["sent"], [])
    ((message, fields),) = warnings(caplog)
    assert message.startswith("cannot be told of a model again")
    assert "does not tell" in fields
    assert HERE in fields


def test_an_index_that_is_not_read_is_read_again(tmp_path: Path) -> None:
    triton = Triton({"model": ""})
    read, failures = triton.index, [CallError("no answer")] * 3

    async def index():  # type: ignore[no-untyped-def]
        if failures:
            raise failures.pop()
        return await read()

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        world.loads.unloaded("model")
        triton.index = index  # type: ignore[method-assign]
        await world.rejoin(HERE)

    asyncio.run(scenario())
    assert triton.unloaded == ["model"]


def test_no_model_waits_for_the_silence_about_another(tmp_path: Path) -> None:
    triton = unlisted("a", "b")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        world.loads.unloaded("a")
        world.loads.unloaded("b")
        triton.silences = 1
        await world.rejoin(HERE)

    asyncio.run(scenario())
    assert triton.unloaded == ["b", "a"]


def test_what_a_client_wants_meanwhile_counts(tmp_path: Path) -> None:
    triton = unlisted("sent")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        world.loads.unloaded("sent")
        triton.tells_served = False
        triton.asked_for.clear()
        rejoining = asyncio.create_task(world.rejoin(HERE))
        while not triton.asked_for:
            await asyncio.sleep(0)
        world.loads.loaded(files_of("sent"), None)
        triton.tells_served = True
        await rejoining

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert (triton.loaded, triton.unloaded) == ([], [])


def test_one_that_went_away_again_is_asked_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it comes back it is asked anew."""
    monkeypatch.setattr("scheduler.control.cold.repository.READ_TIMEOUT_S", math.inf)
    triton = unlisted("sent")

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        triton.tells_served = False
        world.loads.unloaded("sent")
        triton.asked_for.clear()
        rejoining = asyncio.create_task(world.rejoin(HERE))
        while not triton.asked_for:
            await asyncio.sleep(0)
        world.pool.watches[HERE].take_probe(ProbeResult(Answer.UNREACHABLE))
        await rejoining

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert triton.unloaded == []
