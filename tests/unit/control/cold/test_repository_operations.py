"""Loads and unloads of a pool of which a backend is away, or which Triton does not list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.pool import BackendPool, join_catalogs
from scheduler.backends.probe import Answer, CallError, ProbeResult, RpcError, TritonCalls
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config import Settings
from scheduler.config.schema import Discovery
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.loads import Loads
from scheduler.control.cold.repository import Repository, steps_ended_with
from scheduler.control.turns import Turns
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.triton_answers import ScriptedCalls, pool_of

HERE, AWAY = "127.0.0.1:1", "127.0.0.1:2"


def ensemble(*steps: str) -> str:
    its = " ".join(f"step {{ model_name: '{step}' }}" for step in steps)
    return f"ensemble_scheduling {{ {its} }}"


def files_of(name: str, code: bytes = b"x") -> service_pb2.RepositoryModelLoadRequest:
    """A load that brings them."""
    request = service_pb2.RepositoryModelLoadRequest(model_name=name)
    request.parameters["file:1/model.py"].bytes_param = code
    return request


class Triton(ScriptedCalls):
    """An unload ends what `ends` says beside."""

    def __init__(self, models: dict[str, str], ends: tuple[str, ...] = ()) -> None:
        super().__init__(**{n: f'name: "{n}" max_batch_size: 8 {its}' for n, its in models.items()})
        self.ends = ends
        self.address = ""
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.refuses: set[str] = set()  # to unload these
        self.on_refusal: Callable[[], None] = lambda: None
        self.before_load: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.before_unload: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        if method == "RepositoryIndex":
            try:
                return await self.index()
            except CallError as error:
                raise RpcError(self.address, grpc.StatusCode.UNAVAILABLE, str(error)) from error
        name = request.model_name
        if method == "RepositoryModelLoad":
            before, self.before_load = self.before_load, None
            if before is not None:
                await before()
            self.loaded.append(name)
            self.states[name, "1"] = "READY"
            return service_pb2.RepositoryModelLoadResponse()
        if name in self.refuses:
            self.on_refusal()
            raise RpcError("", grpc.StatusCode.INTERNAL, "no")
        if name:
            before, self.before_unload = self.before_unload, None
            if before is not None:
                await before()
            self.unloaded.append(name)
            for ended in (name, *self.ends):
                self.states[ended, "1"] = "UNAVAILABLE"
        return service_pb2.RepositoryModelUnloadResponse()


class DataPlane:
    valid = False

    async def settled(self, timeout_s: float = 0.0) -> None:
        pass

    async def snapshot(self) -> pb.Snapshot:
        return pb.Snapshot()


class World:
    def __init__(self, folder: Path, **tritons: ScriptedCalls | TritonCalls) -> None:
        self.pool = BackendPool(lambda: None)
        self.rejoined: list[Callable[[str], Coroutine[Any, Any, None]]] = []
        self.loads = Loads(folder)
        for address, triton in zip((HERE, AWAY), tritons.values(), strict=False):
            calls: Any = triton
            self.pool.watches[address] = BackendWatch(
                address, Discovery(), self._changed, calls=calls
            )
        self.plane: Any = SimpleNamespace(
            pool=self.pool,
            settings=Settings(),
            turns=Turns(),
            loads=self.loads,
            on_rejoin=self.rejoined,
            steering=DataPlane(),
            counters=DataPlane(),
            desired=SimpleNamespace(refusing=set(), model_index={}),
            residency=SimpleNamespace(held_back=set(), loads=lambda name, address: False),
            refresh_state=lambda: None,
            confirmed=DataPlane().settled,
        )
        self.repository = Repository(self.plane)

    def _changed(self) -> None:
        self.pool.catalog = join_catalogs(self.pool.watches, self.pool.catalog)

    async def read(self) -> None:
        for watch in self.pool.watches.values():
            watch.take_probe(ProbeResult(Answer.READY))
            await watch.refresh()

    async def load_with_files(self, name: str) -> None:
        await self.repository.load(files_of(name))

    def lose(self, address: str) -> None:
        self.pool.watches[address].take_probe(ProbeResult(Answer.UNREACHABLE))

    async def back(self, address: str) -> None:
        self.pool.watches[address].take_probe(ProbeResult(Answer.READY))
        await self.rejoin(address)

    async def rejoin(self, address: str) -> None:
        (rejoined,) = self.rejoined
        await rejoined(address)

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        request.parameters["unload_dependents"].bool_param = dependents
        await self.repository.unload(request)


def test_a_backend_that_was_away_is_told_of_the_steps_that_went(tmp_path: Path) -> None:
    models = {"first": ensemble("shared", "own"), "shared": "", "own": "", "by_itself": ""}
    here, away = Triton(models, ends=("own",)), Triton(models)

    async def scenario() -> None:
        world = World(tmp_path, here=here, away=away)
        await world.read()
        world.lose(AWAY)
        await world.unload("first", dependents=True)
        assert world.loads.by_name.keys() == {"first", "own"}
        await world.back(AWAY)

    asyncio.run(scenario())
    assert away.unloaded == ["first", "own"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_backend_that_was_out_of_reach_loads_what_it_missed(
    tmp_path: Path, restarted: bool
) -> None:
    """It has the model, of the time before: that looks no different."""
    here, away = Triton({"own": "", "other": ""}), Triton({"own": "", "other": ""})

    async def scenario() -> None:
        world = World(tmp_path, here=here, away=away)
        await world.read()
        await world.load_with_files("other")
        world.lose(AWAY)
        await world.load_with_files("own")
        # A plain load takes files that changed in the repository.
        plain = service_pb2.RepositoryModelLoadRequest(model_name="other")
        await world.repository.load(plain)
        assert (here.loaded, away.loaded) == (["other", "own", "other"], ["other"])
        if restarted:
            world = World(tmp_path, here=here, away=away)
            await world.read()
        await world.back(AWAY)
        assert away.loaded == ["other", "other", "own"]
        await world.rejoin(AWAY)
        assert away.loaded == ["other", "other", "own"], "that is made up for"

    asyncio.run(scenario())


def test_a_backend_that_comes_back_during_a_load_is_told_of_it(tmp_path: Path) -> None:
    """When it came back nothing was known yet of what it missed."""
    here, away = Triton({"own": ""}), Triton({"own": ""})

    async def scenario() -> None:
        world = World(tmp_path, here=here, away=away)
        await world.read()
        world.lose(AWAY)

        async def back() -> None:
            await world.back(AWAY)

        here.before_load = back
        await world.load_with_files("own")
        await world.repository.finished()
        assert away.loaded == ["own"]

    asyncio.run(scenario())


def test_a_backend_that_comes_back_during_an_unload_is_told_of_it(tmp_path: Path) -> None:
    """Also where the one that was asked goes down before it is done."""
    here, away = Triton({"own": ""}), Triton({"own": ""})
    here.address = HERE

    async def scenario() -> None:
        world = World(tmp_path, here=here, away=away)
        await world.read()
        world.lose(AWAY)

        async def back() -> None:
            await world.back(AWAY)
            here.answer = ProbeResult(Answer.UNREACHABLE)
            world.pool.watches[HERE].take_probe(here.answer)

        here.before_unload = back
        with pytest.raises(ColdError):
            await world.unload("own")
        await world.repository.finished()
        assert (here.unloaded, away.unloaded) == (["own"], ["own"])

    asyncio.run(scenario())


def test_a_backend_that_was_cut_off_in_a_load_is_told_of_it(tmp_path: Path) -> None:
    """It is back before the others have loaded."""
    here, cut = Triton({"own": ""}), Triton({"own": ""})

    async def scenario() -> None:
        world = World(tmp_path, here=here, cut=cut)
        await world.read()

        async def fail() -> None:
            raise RpcError(AWAY, grpc.StatusCode.UNAVAILABLE, "connection reset")

        cut.before_load = fail
        with pytest.raises(ColdError, match="connection reset"):
            await world.load_with_files("own")
        await world.repository.finished()
        assert cut.loaded == ["own"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("steps_there", "is_wanted"), [(("own",), True), ((), False)])
def test_a_step_that_a_backend_has_still_is_sent_to_it_again(
    tmp_path: Path, steps_there: tuple[str, ...], is_wanted: bool
) -> None:
    """It failed to unload the ensemble: it goes on with the step's files as long as it has it."""
    models = {"first": ensemble("own"), "own": ""}
    here, failing = Triton(models, ends=("own",)), Triton(models)
    for triton in (here, failing):
        triton.unlisted.add("own")
    failing.refuses.add("first")

    async def scenario() -> None:
        world = World(tmp_path, here=here, failing=failing)
        await world.read()
        await world.load_with_files("own")
        if not steps_there:
            del failing.states["own", "1"]
        with pytest.raises(ColdError):
            await world.unload("first", dependents=True)
        assert (world.loads.by_name["own"].load is not None) == is_wanted

    asyncio.run(scenario())


def test_a_backend_that_dies_in_an_unload_is_told_of_the_steps_that_went(tmp_path: Path) -> None:
    models = {"first": ensemble("own"), "own": ""}
    here, dying = Triton(models, ends=("own",)), Triton(models)
    dying.refuses.add("first")

    async def scenario() -> None:
        world = World(tmp_path, here=here, dying=dying)
        await world.read()
        watch = world.pool.watches[AWAY]

        def die() -> None:
            dying.answer = ProbeResult(Answer.UNREACHABLE)
            while watch.status is not BackendStatus.DOWN:
                watch.take_probe(dying.answer)

        dying.on_refusal = die
        with pytest.raises(ColdError):
            await world.unload("first", dependents=True)
        dying.refuses.clear()
        dying.answer = ProbeResult(Answer.READY)
        watch.take_probe(dying.answer)
        await watch.refresh()
        await world.rejoin(AWAY)

    asyncio.run(scenario())
    assert dying.unloaded == ["first", "own"]


def test_names_are_read_up_to_a_nul(tmp_path: Path) -> None:
    triton = Triton({"model": ""})

    async def scenario() -> None:
        world = World(tmp_path, here=triton)
        await world.read()
        await world.unload("model\0x")
        assert world.loads.by_name.keys() == {"model"}
        assert not world.pool.versions("model")
        request = service_pb2.RepositoryModelLoadRequest(model_name="model\0y")
        await world.repository.load(request)
        assert world.loads.by_name.keys() == {"model"}
        assert world.pool.versions("model")

    asyncio.run(scenario())
    assert (triton.unloaded, triton.loaded) == (["model"], ["model"])


@pytest.mark.parametrize(
    ("models", "ended"),
    [
        ({"a": ""}, set()),
        ({"a": ("b", "c")}, {"b", "c"}),
        ({"a": ("b", "c"), "d": ("c",)}, {"b"}),
        ({"a": ("b", "c"), "b": ("c",)}, {"b", "c"}),
        ({"a": ("b",), "b": ("c",), "c": ("d",)}, {"b", "c", "d"}),
        ({"a": ("b", "e"), "b": ("c",), "d": ("b", "c")}, {"e"}),
        ({"b": ("a",), "a": ("c",)}, {"c"}),
    ],
)
def test_the_steps_that_end_with_an_ensemble(
    models: dict[str, tuple[str, ...]], ended: set[str]
) -> None:
    texts = dict.fromkeys("bcde", "") | {
        n: ensemble(*its) if its else "" for n, its in models.items()
    }
    assert steps_ended_with("a", pool_of(({"address": HERE}, texts)).catalog) == ended


def test_an_ensemble_that_is_not_ready_keeps_no_steps() -> None:
    texts = {"a": ensemble("c"), "b": ensemble("c"), "c": ""}
    pool = pool_of(({"address": HERE}, texts))
    pool.watches[HERE].ready_models.discard(("b", "1"))
    assert steps_ended_with("a", join_catalogs(pool.watches, {})) == {"c"}
