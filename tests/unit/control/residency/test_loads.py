"""What a load is learned to take, and what is told of it, while others act or a Triton is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.probe import Answer, ProbeResult
from scheduler.control.residency.weighing import Scale
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.residency.world import GIB, GROUP, ONE, TWO, World

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda work: run_virtually(work, monkeypatch)


def weight(world: World, name: str, address: str = ONE) -> int:
    return world.loader.learned.weight(name, address, f"gpu {address}")[0]


@pytest.mark.parametrize("ends", [False, True])
def test_what_a_client_loads_meanwhile_is_not_weighed_with_it(
    tmp_path: Path, run: Run, ends: bool
) -> None:
    world = World(tmp_path, (ONE, dict.fromkeys("abc", GROUP)), total=8 * GIB)
    triton = world.tritons[ONE]

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: triton.loads, "it has begun")
        async with world.plane.turns.of(["b"]):
            triton.states["b", "1"] = "READY"
            if not ends:
                await world.until(lambda: world.loader.residents.served("a"), "it is loaded")
        await world.until(lambda: world.loader.residents.served("a"), "it is loaded")
        assert weight(world, "a") == 0
        await world.load("c")
        await world.until(lambda: world.loader.residents.served("c"), "it is loaded")
        assert weight(world, "c") == GIB, "nobody else did anything"

    run(scenario())


def test_loads_side_by_side_on_two_devices_are_weighed(tmp_path: Path, run: Run) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}), (TWO, {"b": GROUP}), total=8 * GIB)

    async def scenario() -> None:
        await world.start()
        await world.wanted_for(10, "a", "b")
        assert (weight(world, "a"), weight(world, "b", TWO)) == (GIB, GIB)

    run(scenario())


def test_a_triton_that_answers_late_after_a_load_has_loaded_it(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}))
    triton = world.tritons[ONE]
    late = [Answer.LATE, Answer.TIMEOUT, Answer.LATE]

    async def ready(timeout_s: float) -> ProbeResult:
        return ProbeResult(late.pop() if triton.loads and late else Answer.READY)

    monkeypatch.setattr(triton, "ready", ready)

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(
            lambda: world.error("a") or world.loader.residents.served("a"), "it has ended"
        )
        assert not world.error("a")
        await asyncio.sleep(5)
        assert (triton.loads, late) == (["a"], [])

    run(scenario())


def test_clients_read_the_address_of_no_backend(tmp_path: Path, run: Run) -> None:
    world = World(
        tmp_path,
        (ONE, {"a": GROUP}),
        residency={"budget": GIB},
        defaults={"weights": 2 * GIB},
        figures=False,
    )

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: world.error("a"), "it is refused")
        assert "2GiB" in world.error("a").replace(" ", "")
        assert ONE not in world.error("a")

    run(scenario())


def test_a_backend_that_leaves_the_configuration_during_a_load(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, (ONE, {"a": GROUP}))

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: world.tritons[ONE].loads, "it has begun")
        del world.pool.watches[ONE]
        await world.until(lambda: not world.loader.loading, "it has ended")
        assert "a fault of ours" not in caplog.text

    run(scenario())


def test_batches_are_not_weighed_with_the_model_that_they_are_for(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog has it before figures of it are there."""

    async def looked(self: Scale, places: object, bound_s: float) -> bool:
        await asyncio.sleep(3)
        return True

    monkeypatch.setattr(Scale, "looked", looked)
    world = World(tmp_path, (ONE, {"a": GROUP}))

    async def scenario() -> None:
        await world.start()
        world.loader.want("a")
        await world.until(lambda: world.loader.residents.served("a"), "the catalog has it")
        assert "a" in world.loader.loading
        assert "a" in world.residency.steered().refusing
        assert world.error("a") == "", "its requests wait"
        await world.until(lambda: not world.loader.loading, "it is weighed")
        assert weight(world, "a") == GIB
        assert "a" not in world.residency.steered().refusing

    run(scenario())


def test_requests_wait_for_nothing_that_follows_the_weighing(tmp_path: Path, run: Run) -> None:
    """Its Triton is slow to say what it takes."""
    world = World(tmp_path, (ONE, dict.fromkeys("ab", GROUP)), total=8 * GIB)
    triton, asked = world.tritons[ONE], asyncio.Event()
    told: list[bool] = []

    def refresh() -> None:
        world._refresh()
        told.append("a" in world.residency.steered().refusing)

    async def scenario() -> None:
        await world.start()
        world.plane.refresh_state = refresh
        real = triton.rpc

        async def rpc(method: str, request: Any, timeout_s: float) -> Any:
            if method == "ModelStatistics":
                asked.set()
                await asyncio.sleep(timeout_s)
            answer = await real(method, request, timeout_s)
            if method == "RepositoryModelLoad":
                await world.pool.watches[ONE].refresh()  # the one in its turn sees it
                refresh()
            return answer

        triton.rpc = rpc  # type: ignore[method-assign]
        world.loader.want("a")
        await world.until(lambda: triton.loads, "it has begun")
        async with world.plane.turns.of(["b"]):
            pass  # so what it takes cannot be told by the figures
        await asyncio.wait_for(asked.wait(), 60)
        assert world.loader.loading, "it has not ended"
        assert True in told, "it is weighed without requests"
        assert not told[-1]

    run(scenario())
