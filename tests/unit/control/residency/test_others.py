"""Models that are being loaded, or come and go, without us: another life of the control plane,
another scheduler, an operator."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from scheduler.control.residency.external import PAUSE_MAX_S, PAUSE_MIN_S
from scheduler.control.residency.unloads import STUCK
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import GIB, GROUP, HEADROOM, ONE, World, failure

Run = Callable[[Coroutine[Any, Any, None]], None]
LOAD_TIMEOUT_S = 30


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda work: run_virtually(work, monkeypatch)


def two_of_three(folder: Path, **residency: Any) -> World:
    """Of its three models of a GiB two fit."""
    models = dict.fromkeys("abc", GROUP)
    settings = {"defaults": {"weights": GIB}, "residency": residency}
    return World(folder, (ONE, models), total=2 * GIB + HEADROOM, **settings)


def state(world: World, name: str) -> str:
    return next(shown.state for shown in world.residency.shown() if shown.name == name)


@pytest.mark.parametrize("budget", [0, 2 * GIB])
def test_a_load_of_an_earlier_life_counts_until_the_triton_tells(
    tmp_path: Path, run: Run, budget: int
) -> None:
    world = two_of_three(tmp_path, budget=budget, load_timeout=f"{LOAD_TIMEOUT_S}s")
    triton = world.tritons[ONE]
    triton.states["a", "1"] = "LOADING"  # and has taken nothing yet

    async def scenario() -> None:
        await world.start()
        assert state(world, "a") == "loading"
        await world.wanted_for(10, "b")
        assert triton.loads == [], "one at a time on a device"
        # However long it takes.
        await world.wanted_for(LOAD_TIMEOUT_S, "b")
        assert triton.loads == ["b"]
        await world.wanted_for(10, "c")
        assert triton.loaded <= {"b", "c"}
        assert len(triton.loaded) == 1, "there is room for one beside it"
        triton.states["a", "1"] = "READY"
        assert triton.free >= HEADROOM
        await world.until(lambda: state(world, "a") == "loaded", "it is known")
        assert world.loader.external.count(ONE) == 0, "it may have been ours"

    run(scenario())


def test_one_that_is_being_loaded_already_makes_nobody_leave(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]
    triton.states.update({("a", "1"): "LOADING", ("b", "1"): "READY"})

    async def scenario() -> None:
        await world.start()
        await world.wanted_for(10, "a")
        assert (triton.loads, triton.unloads) == ([], [])
        triton.states["a", "1"] = "READY"
        await world.until(lambda: world.loader.residents.served("a"), "it is served")
        assert (triton.loads, triton.unloads) == ([], [])

    run(scenario())


def test_a_load_that_outlasts_its_time_counts_on(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path, load_timeout=f"{LOAD_TIMEOUT_S}s")
    triton = world.tritons[ONE]
    took = asyncio.Event()

    async def scenario() -> None:
        await world.start()
        loaded = triton.rpc

        async def rpc(method: str, request: Any, timeout_s: float) -> Any:
            if method == "RepositoryModelLoad" and request.model_name == "a":
                triton.loads.append("a")
                triton.states["a", "1"] = "LOADING"
                await took.wait()
            return await loaded(method, request, timeout_s)

        triton.rpc = rpc  # type: ignore[method-assign]
        world.loader.want("a")
        await world.until(lambda: "has not ended after" in world.error("a"), "it fails", 90)
        await world.wanted_for(10, "b")
        await world.wanted_for(10, "c")
        assert len(triton.loaded) == 1, "there is room for one beside it"
        triton.states["a", "1"] = "READY"
        await world.until(lambda: state(world, "a") == "loaded", "it is known")
        assert triton.free >= HEADROOM
        assert world.loader.external.count(ONE) == 0, "it was ours"

    run(scenario())


def test_what_somebody_else_loads_is_told_once_and_stays_for_a_while(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    world = two_of_three(tmp_path, min_residency="30s")
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        await world.load("a")
        triton.states["b", "1"] = "READY"
        await world.until(lambda: state(world, "b") == "loaded", "it is seen")
        await world.wanted_for(20, "c")
        assert triton.unloads == []
        await world.until(lambda: "c" in triton.loaded, "it makes room")
        triton.states["a", "1"] = triton.states["b", "1"] = "UNAVAILABLE"
        await asyncio.sleep(5)
        assert caplog.text.count("and not by this scheduler") == 1
        assert world.loader.external.count(ONE) >= 2
        (problem,) = world.residency.problems
        assert "somebody else loads and unloads models" in problem
        await asyncio.sleep(601)
        assert world.residency.problems == []

    run(scenario())


def test_operations_of_ours_and_of_our_clients_are_nobody_elses(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        await world.wanted_for(5, *"abc")
        assert triton.unloads, "they took turns"
        async with world.plane.turns.of(["a"]):
            triton.states["a", "1"] = "READY"
            await world.pool.watches[ONE].refresh()
        async with world.plane.turns.of(["a"]):
            triton.states["a", "1"] = "UNAVAILABLE"
            await world.pool.watches[ONE].refresh()
        assert world.loader.external.count(ONE) == 0
        assert world.residency.problems == []

    run(scenario())


def test_two_schedulers_take_turns_more_and_more_rarely(tmp_path: Path, run: Run) -> None:
    """The other one loads `b` in the place of `a` as soon as it may."""
    world = two_of_three(tmp_path, budget=GIB)
    triton = world.tritons[ONE]
    spans: list[float] = []

    async def scenario() -> None:
        await world.start()
        loop = asyncio.get_running_loop()
        world.data_plane.waiting["a"] = 1
        for _ in range(10):
            world.loader.want("a")
            began_s = loop.time()
            await world.until(lambda: "a" in triton.loaded, "it has its turn", 2 * PAUSE_MAX_S)
            spans.append(loop.time() - began_s)
            await asyncio.sleep(2)
            triton.states["a", "1"] = "UNAVAILABLE"
            await world.pool.watches[ONE].refresh()
            triton.states["b", "1"] = "READY"
            await world.pool.watches[ONE].refresh()
        assert spans[1] >= PAUSE_MIN_S / 2
        assert all(later >= earlier * 0.9 for earlier, later in itertools.pairwise(spans))
        assert PAUSE_MAX_S * 0.9 <= spans[-1] <= PAUSE_MAX_S * 1.2

    run(scenario())


def test_a_load_beside_one_of_somebody_else_is_not_weighed(tmp_path: Path, run: Run) -> None:
    world = World(tmp_path, (ONE, dict.fromkeys("ab", GROUP)), total=8 * GIB)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: triton.loads, "it has begun")
        triton.states["b", "1"] = "READY"
        await world.until(lambda: world.loader.residents.served("a"), "it is loaded")
        await asyncio.sleep(10)
        assert world.loader.learned.weight("a", ONE, "gpu1")[0] == 0

    run(scenario())


def test_a_load_that_failed_is_not_taken_for_one_that_goes_on(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]
    triton.faults["a"] = failure("the layer 'conv' is missing")

    async def scenario() -> None:
        await world.start()
        loaded = triton.rpc

        async def rpc(method: str, request: Any, timeout_s: float) -> Any:
            if method == "RepositoryModelLoad":
                triton.states["a", "1"] = "LOADING"
                await world.pool.watches[ONE].refresh()
                triton.states["a", "1"] = "UNAVAILABLE"
            return await loaded(method, request, timeout_s)

        triton.rpc = rpc  # type: ignore[method-assign]
        world.loader.want("a")
        await world.until(lambda: world.error("a"), "it fails")
        (shown,) = (found for found in world.residency.shown() if found.name == "a")
        assert (shown.state, shown.error) == ("failed", "the layer 'conv' is missing")

    run(scenario())


def test_a_load_beside_one_of_somebody_else_that_is_waited_for_is_not_weighed(
    tmp_path: Path, run: Run
) -> None:
    world = World(tmp_path, (ONE, dict.fromkeys("ab", GROUP)), total=8 * GIB)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: triton.loads, "it has begun")
        triton.states["b", "1"] = "LOADING"
        await world.pool.watches[ONE].refresh()
        world.loader.want("b")
        await world.until(lambda: "b" in world.loader.loading, "it is waited for")
        assert state(world, "b") == "loading"
        there = world.loader.residents.all()
        assert [r.name for r in there if r.coming] == ["b"], "its memory counts as taken"
        triton.states["b", "1"] = "READY"
        await world.until(lambda: world.loader.residents.served("a"), "it is loaded")
        await world.until(lambda: not world.loader.loading, "all is over")
        assert triton.loads == ["a"]
        assert world.loader.learned.weight("a", ONE, "gpu1")[0] == 0
        assert world.loader.external.count(ONE) == 1

    run(scenario())


def test_what_is_waited_for_in_vain_is_loaded_when_there_is_room(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]
    triton.states.update({("a", "1"): "LOADING", ("b", "1"): "READY", ("c", "1"): "READY"})
    triton.total += GIB

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: "a" in world.loader.loading, "it is waited for")
        triton.taken = GIB
        triton.states["a", "1"] = "UNAVAILABLE"
        await world.until(lambda: "a" in triton.loaded, "it is loaded")
        assert (triton.loads, len(triton.unloads)) == (["a"], 1), "somebody has left"

    run(scenario())


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_being_unloaded_holds_up_nobody_else(tmp_path: Path, run: Run, ends: bool) -> None:
    """By a control plane before this one: it is not described."""
    world = two_of_three(tmp_path, unload_timeout="20s")
    triton = world.tritons[ONE]
    triton.states["a", "1"] = "UNLOADING"

    async def scenario() -> None:
        await world.start()
        await world.wanted_for(2, "a")
        await world.wanted_for(2, "a", "b")
        assert (triton.loads, world.error("a")) == (["b"], "")
        if ends:
            triton.states["a", "1"] = "UNAVAILABLE"
        await world.wanted_for(20, "a")
        assert triton.loads == (["b", "a"] if ends else ["b"])
        assert world.error("a") == ("" if ends else STUCK)
        if not ends:
            triton.states["a", "1"] = "UNAVAILABLE"
            await world.wanted_for(70, "a")  # longer than any pause after a failure
            assert "a" in triton.loaded

    run(scenario())


def test_an_unload_that_was_not_seen_yet_is_not_waited_for(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        triton.states["a", "1"] = "UNLOADING"
        world.loader.want("a")
        await world.until(lambda: world.pool.watches[ONE].unloading, "it is seen")
        await world.until(lambda: not world.loader.loading, "the device is free for others")
        triton.states["a", "1"] = "UNAVAILABLE"
        await world.wanted_for(5, "a")
        assert "a" in triton.loaded

    run(scenario())


def test_what_is_being_loaded_is_not_told_as_loaded(tmp_path: Path, run: Run) -> None:
    world = two_of_three(tmp_path)
    triton = world.tritons[ONE]
    triton.states.update({("a", "1"): "LOADING", ("b", "1"): "READY"})

    async def scenario() -> None:
        await world.start()
        await world.until(lambda: any(world.residency.scope.states.values()), "they are told")
        told = {name: count for name, count in world.residency.scope.states.items() if count}
        assert told == {"loading": 1, "loaded": 1, "not_loaded": 1}
        assert world.residency.scope.resident_bytes == {"gpu1": GIB}
        assert world.residency.weights_by_place() == {"gpu1": (GIB, 0)}

    run(scenario())
