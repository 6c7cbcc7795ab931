"""Loads and unloads that fail, and what others have of it: by a clock that only plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import (
    GIB,
    GROUP,
    ONE,
    SEQUENCE,
    TWO,
    World,
    device_of,
    failure,
)

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


def test_what_makes_room_is_not_expected_back_before_that_may_leave(
    tmp_path: Path, run: Run
) -> None:
    residency = {"budget": GIB, "min_residency": "30s"}
    names = dict.fromkeys("ab", GROUP)
    world = World(
        tmp_path, (ONE, names), residency=residency, defaults={"weights": GIB}, figures=False
    )
    told_ns: list[int] = []

    async def scenario() -> None:
        await world.start()
        for name in "ab":
            await world.load(name)
        await asyncio.sleep(31)
        world.use("b", in_flight=1)  # it is drained first
        world.loader.want("a")
        for turn in range(500):
            await asyncio.sleep(0.01)
            if turn == 200:
                world.use("b")
            told = world.told("b")
            if told is not None:
                told_ns.append(told.load_ns)
        assert world.loaded("a")

    run(scenario())
    assert len(told_ns) > 400, "from the moment on in which it leaves"
    assert min(told_ns) > 25 * 10**9


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


def test_a_pinned_model_that_one_backend_cannot_load_is_loaded_on_the_others(
    tmp_path: Path, run: Run
) -> None:
    here = {"a": GROUP}
    world = World(tmp_path, (ONE, here), (TWO, here), models={"a": {"residency": "pinned"}})
    world.tritons[ONE].faults["a"] = failure("no such layer")

    async def scenario() -> None:
        await world.start()
        await world.until(lambda: world.tritons[TWO].loaded == {"a"}, "the other has it")
        world.tritons[ONE].faults.clear()
        await world.until(lambda: world.tritons[ONE].loaded == {"a"}, "it was tried again")

    run(scenario())


def test_a_wanted_model_that_one_backend_cannot_load_is_loaded_on_another(
    tmp_path: Path, run: Run
) -> None:
    here = {"a": GROUP}
    world = World(tmp_path, (ONE, here), (TWO, here))
    world.tritons[ONE].faults["a"] = failure("no such layer")

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        errors = set()
        while not world.loaded("a"):
            errors.add(world.error("a"))
            await asyncio.sleep(0.01)
            assert len(world.tritons[ONE].loads) < 3
        assert errors == {""}, "its requests go on waiting"

    run(scenario())


def test_a_model_fails_when_the_last_backend_has_failed_and_each_has_its_own_pause(
    tmp_path: Path, run: Run
) -> None:
    here = {"a": GROUP}
    world = World(tmp_path, (ONE, here), (TWO, here))
    for address in (ONE, TWO):
        world.tritons[address].faults["a"] = failure(f"no layer at {address}")

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: world.error("a"), "it is told")
        assert world.error("a") == f"no layer at {TWO}"
        assert [len(triton.loads) for triton in world.tritons.values()] == [1, 1]
        await world.wanted_for(30, "a")
        for triton in world.tritons.values():
            assert 3 <= len(triton.loads) <= 6
        world.tritons[ONE].faults.clear()
        await world.wanted_for(61, "a")
        assert world.tritons[ONE].loaded == {"a"}
        assert world.error("a") == ""

    run(scenario())


def test_a_backend_without_room_for_a_pinned_model_does_not_keep_it_from_another(
    tmp_path: Path, run: Run
) -> None:
    here = {"a": GROUP}
    budgets = {"budgets": {device_of(ONE): GIB}}
    pinned = {"a": {"residency": "pinned", "weights": 3 * GIB // 2}}
    world = World(tmp_path, (ONE, here), (TWO, here), residency=budgets, models=pinned)

    async def scenario() -> None:
        await world.start()
        await world.until(lambda: world.tritons[TWO].loaded == {"a"}, "the other has it")
        assert not world.tritons[ONE].loads

    run(scenario())


SIZES = {"seq": 2 * GIB, "big": 3 * GIB, "small": GIB}
WEIGHTS = {name: {"weights": size} for name, size in SIZES.items()}
NAMES = {"seq": SEQUENCE, "big": GROUP, "small": GROUP}


def world_of_a_sequence(folder: Path) -> World:
    budget = {"budget": 4 * GIB}
    return World(
        folder, (ONE, NAMES), sizes=SIZES, total=4 * GIB, figures=False, residency=budget,
        models=WEIGHTS,
    )  # fmt: skip


async def use_for(world: World, name: str, seconds: float) -> None:
    for _ in range(int(seconds / 0.25)):
        world.use(name)
        await asyncio.sleep(0.25)


def test_one_that_waits_for_a_model_in_use_does_not_keep_others_waiting(
    tmp_path: Path, run: Run
) -> None:
    world = world_of_a_sequence(tmp_path)

    async def scenario() -> None:
        await world.start()
        await world.load("seq")
        world.data_plane.waiting["big"] = 1
        world.loader.want("big")
        await use_for(world, "seq", 2)
        world.loader.want("small")
        await use_for(world, "seq", 5)
        assert world.tritons[ONE].loaded == {"seq", "small"}
        await use_for(world, "seq", 150)
        assert world.tritons[ONE].loads == ["seq", "small"]
        await world.until(lambda: world.loaded("big"), "nothing is in its way now")

    run(scenario())


def test_one_that_nobody_waits_for_any_more_is_not_loaded(tmp_path: Path, run: Run) -> None:
    world = world_of_a_sequence(tmp_path)

    async def scenario() -> None:
        await world.start()
        await world.load("seq")
        world.loader.want("big")
        await use_for(world, "seq", 30)
        assert ("big", "") in world.loader.wants
        await use_for(world, "seq", 40)
        assert not world.loader.wants
        await asyncio.sleep(10)
        assert world.tritons[ONE].loaded == {"seq"}

    run(scenario())


def test_one_that_may_be_loaded_soon_is_not_overtaken(tmp_path: Path, run: Run) -> None:
    here = dict.fromkeys(("old", "big", "small"), GROUP)
    sizes = {"old": 2 * GIB, "big": 4 * GIB, "small": GIB}
    weights = {name: {"weights": size} for name, size in sizes.items()}
    stays = {"budget": 4 * GIB, "min_residency": "3s"}
    world = World(
        tmp_path, (ONE, here), sizes=sizes, total=4 * GIB, figures=False, residency=stays,
        models=weights,
    )  # fmt: skip

    async def scenario() -> None:
        await world.start()
        await world.load("old")
        world.loader.want("big")
        await asyncio.sleep(1)
        await world.wanted_for(10, "big", "small")
        assert world.tritons[ONE].loads[:2] == ["old", "big"]

    run(scenario())


@pytest.mark.parametrize("figures", [True, False])
def test_a_model_that_is_too_large_does_not_make_others_leave_again_and_again(
    tmp_path: Path, run: Run, figures: bool
) -> None:
    others = ("a", "b", "c")
    world = World(
        tmp_path, (ONE, dict.fromkeys((*others, "huge"), GROUP)), sizes={"huge": 20 * GIB},
        total=4 * GIB, figures=figures,
    )  # fmt: skip
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        for name in others:
            await world.load(name)
        await world.wanted_for(600, "huge", *others)
        rounds = len(triton.unloads) // 3
        assert sorted(triton.unloads) == sorted(others * rounds)
        assert triton.loaded == {"a", "b", "c"}
        # Since then it is known that it does not fit; without figures for twice as long every time.
        assert rounds == 1 if figures else 2 <= rounds <= 4
        assert triton.loads.count("huge") == 4 * rounds
        failed = world.loader.failures.by_name["huge"]
        why = "it needs 4097MiB of gpu1" if figures else "there is no memory left for it"
        assert why in failed.error
        assert failed.need_bytes > 4 * GIB if figures else not failed.need_bytes
        triton.total = 32 * GIB
        if figures:
            await world.wanted_for(100, "huge")
            assert triton.loaded == {"a", "b", "c", "huge"}

    run(scenario())


def test_a_model_that_found_no_memory_because_of_others_is_loaded_when_they_are_gone(
    tmp_path: Path, run: Run
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}), sizes={"a": 3 * GIB}, total=4 * GIB)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        triton.taken = 2 * GIB  # another process
        await world.wanted_for(300, "a")
        assert len(triton.loads) == 1, "that there is less than it needs is known"
        triton.taken = 0
        await world.wanted_for(100, "a")
        assert triton.loaded == {"a"}

    run(scenario())


def test_one_whose_work_never_ends_is_shut_out_more_and_more_rarely(
    tmp_path: Path, run: Run
) -> None:
    stays = {"budget": GIB, "drain_timeout": "10s"}
    world = World(
        tmp_path, (ONE, dict.fromkeys("ab", GROUP)), figures=False, residency=stays,
        defaults={"weights": GIB},
    )  # fmt: skip

    async def scenario() -> None:
        await world.start()
        await world.load("a")
        world.use("a", in_flight=1)
        shut_out_s = 0.0
        for _ in range(4000):
            world.loader.want("b")
            shut_out_s += 0.5 if world.loader.leaving else 0
            await asyncio.sleep(0.5)
        assert 30 <= shut_out_s <= 60, "tries of 10 s, further and further apart"
        world.use("a")
        await world.wanted_for(3700, "b")
        assert world.tritons[ONE].loaded == {"b"}

    run(scenario())


def test_others_leave_rather_than_one_whose_work_did_not_end(tmp_path: Path, run: Run) -> None:
    stays = {"budget": 2 * GIB, "drain_timeout": "10s"}
    world = World(
        tmp_path, (ONE, dict.fromkeys("abc", GROUP)), figures=False, residency=stays,
        defaults={"weights": GIB},
    )  # fmt: skip

    async def scenario() -> None:
        await world.start()
        for name in "ab":
            await world.load(name)
        for name in "ab":
            world.use(name, in_flight=1)
            await asyncio.sleep(1)
        world.loader.want("c")
        await world.until(lambda: world.error("c"), "a does not end")
        world.use("b")
        await world.wanted_for(5, "c")
        assert world.tritons[ONE].loaded == {"a", "c"}

    run(scenario())
