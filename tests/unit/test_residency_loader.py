"""Loads and unloads that fail, and what others have of it: by a clock that only plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.unit.residency_world import (
    GIB,
    GROUP,
    HEADROOM,
    ONE,
    SEQUENCE,
    TWO,
    World,
    failure,
)
from tests.unit.virtual_time import run_virtually

Run = Callable[[Coroutine[Any, Any, None]], None]
BUDGET = {"budget": 2 * GIB}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda work: run_virtually(work, monkeypatch)


def test_what_is_wanted_is_loaded_and_makes_others_leave(tmp_path: Path, run: Run) -> None:
    names = dict.fromkeys("abc", GROUP)
    world = World(
        tmp_path, (ONE, names), residency=BUDGET, defaults={"weights": GIB}, figures=False
    )

    async def scenario() -> None:
        await world.start()
        for name in "abc":
            await world.load(name)
        assert world.tritons[ONE].loaded == {"b", "c"}

    run(scenario())


def test_a_fault_of_ours_in_a_load_is_told_and_followed_by_a_pause(
    tmp_path: Path, run: Run
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}))
    triton = world.tritons[ONE]
    triton.faults["a"] = ValueError("not foreseen")

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: world.error("a"), "it is told")
        assert "internal error" in world.error("a")
        await world.wanted_for(10, "a")
        assert 2 <= len(triton.loads) <= 5
        triton.faults.clear()
        await world.wanted_for(20, "a")
        assert triton.loaded == {"a"}

    run(scenario())


def test_a_backend_whose_answer_is_not_understood_is_asked_now_and_then(
    tmp_path: Path, run: Run
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}))
    triton = world.tritons[ONE]
    triton.faults[""] = ValueError("not foreseen")

    async def scenario() -> None:
        await world.start()
        await asyncio.sleep(10)
        assert 10 <= triton.asked <= 21
        triton.faults.clear()
        await world.wanted_for(5, "a")
        assert triton.loaded == {"a"}

    run(scenario())
