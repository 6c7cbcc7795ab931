"""Models on demand: a real Triton in explicit mode; the test plays the data plane."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.control.residency.learned_loads import FILE_NAME
from scheduler.v1 import control_pb2, control_pb2_grpc
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import (
    START_TIMEOUT_S,
    TIMEOUT_S,
    Cold,
    failure,
    model_ready,
    server_ready,
)
from tests.wire.proxy import Proxy

pytestmark = pytest.mark.e2e

MODELS = ("a", "b", "c")
# Of each model, by the configuration; the budget holds two of them.
WEIGHTS = {"residency.mode": "on_demand", "residency.budget": "2GiB", "defaults.weights": "1GiB"}
QUICK = {"residency.min_residency": "0ms"}


class World:
    """A Triton with nothing loaded, and what its models note."""

    def __init__(self, triton: EmbeddedTriton, notes: Path, data_plane: FakeDataPlane) -> None:
        self.triton, self.notes, self.data_plane = triton, notes, data_plane
        self._wanted_at = 0  # in the Applies: the last time

    def control(self, **settings: object) -> ControlPlane:
        flags = {key.replace("__", "."): value for key, value in settings.items()}
        return ControlPlane(
            self.data_plane, [self.triton.grpc_address], settings={**WEIGHTS, **QUICK, **flags}
        )

    def want(self, name: str) -> None:
        """As requests do that wait for it."""
        waiting = self.data_plane.snapshot.loading
        if name not in {model.name for model in waiting}:
            waiting.add(name=name, requests=1)
        self._wanted_at = len(self.data_plane.applies)
        wanted = pb.ModelWanted(name=name, waiting=1)
        self.data_plane.send_event(pb.Event(model_wanted=wanted))

    def until_refused(self, name: str) -> pb.LoadableModel:
        """Since it was last wanted: it may be wanted again a second later."""
        apply = self.data_plane.wait_apply_since(
            self._wanted_at, lambda apply: error(apply, name), f"{name} is refused", START_TIMEOUT_S
        )
        return loadable(apply)[name]

    def want_until_served(self, name: str) -> None:
        """Requests that are refused come again, until they are answered."""
        self.want(name)

        def is_served() -> bool:
            applies = self.data_plane.applies
            refused = any(error(apply, name) for apply in applies[self._wanted_at :])
            if refused and not error(applies[-1], name):
                self.want(name)
            return served(applies[-1]) == {name}

        wait_until(is_served, f"{name} is served", START_TIMEOUT_S)

    def until(self, condition: Callable[[pb.Apply], object], what: str) -> pb.Apply:
        return self.data_plane.wait_apply(condition, what, START_TIMEOUT_S)

    def until_served(self, *names: str) -> pb.Apply:
        return self.until(lambda apply: served(apply) == set(names), f"{names} are served")

    def hold(self, name: str) -> Path:
        """Its loads wait until the file is gone."""
        path = self.notes.with_name(f"{self.notes.name}.{name}.hold")
        path.touch()
        return path

    def fail(self, name: str, text: str) -> Path:
        path = self.notes.with_name(f"{self.notes.name}.{name}.fail")
        path.write_text(text)
        return path

    def events(self) -> list[tuple[str, str]]:
        if not self.notes.exists():
            return []
        lines = self.notes.read_text().splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]


def served(apply: pb.Apply) -> set[str]:
    return {
        model.name
        for model in apply.models
        if not model.batching.refusing and any(p.ready for p in model.placements)
    }


def loadable(apply: pb.Apply) -> dict[str, pb.LoadableModel]:
    return {model.name: model for model in apply.loadable}


def error(apply: pb.Apply, name: str) -> str:
    """Why it cannot be loaded."""
    return "".join(model.error for model in apply.loadable if model.name == name)


def states(stub: Cold) -> set[str]:
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=TIMEOUT_S)
    return {model.state for model in index.models}


@pytest.fixture(scope="module")
def explicit(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[EmbeddedTriton, Path]]:
    repository, notes = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("notes") / "all"
    for name in MODELS:
        models.witness(repository, notes, name)
    with EmbeddedTriton(repository, model_control_mode="explicit") as triton:
        yield triton, notes


@pytest.fixture
def world(explicit: tuple[EmbeddedTriton, Path], data_plane: FakeDataPlane) -> Iterator[World]:
    triton, notes = explicit
    with grpc.insecure_channel(triton.grpc_address) as channel:
        stub = Cold(channel)
        for name in MODELS:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
            stub.RepositoryModelUnload(request, timeout=START_TIMEOUT_S)
        wait_until(lambda: states(stub) <= {"", "UNAVAILABLE"}, "all are gone", START_TIMEOUT_S)
    notes.unlink(missing_ok=True)
    yield World(triton, notes, data_plane)
    for path in notes.parent.glob("*.hold"):
        path.unlink()
    for path in notes.parent.glob("*.fail"):
        path.unlink()


def test_models_of_a_backend_that_is_away_are_not_unknown(
    world: World, data_plane: FakeDataPlane
) -> None:
    with (
        Proxy(world.triton.grpc_address) as wire,
        ControlPlane(data_plane, [wire.address], settings={**WEIGHTS, **QUICK}) as control,
    ):

        def told(error: str) -> Callable[[pb.Apply], bool]:
            wanted = dict.fromkeys(MODELS, error)
            return lambda apply: wanted == {m.name: m.error for m in apply.loadable}

        world.until(told(""), "all can be loaded")
        wire.cut()
        away = "no backend that can load it is reachable"
        world.until(told(away), "none can be loaded")
        stub = Cold(control.cold_channel)
        asked = service_pb2.ModelConfigRequest(name="a")
        code, text = failure(lambda: stub.ModelConfig(asked, timeout=TIMEOUT_S))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert text == f"model 'a' cannot be loaded: {away}"
        wire.restore()
        world.until(told(""), "all can be loaded again")
        world.want("a")
        world.until_served("a")


def test_a_wanted_model_is_loaded_and_those_that_are_not_are_named(world: World) -> None:
    with world.control() as control:
        apply = world.until(lambda apply: set(loadable(apply)) == set(MODELS), "all are loadable")
        assert not apply.models
        wait_until(lambda: server_ready(Cold(control.cold_channel)), "nothing is missing")
        hold = world.hold("a")
        world.want("a")
        wait_until(lambda: ("a", "loading") in world.events(), "it is being loaded", 60)
        assert "a" in loadable(world.data_plane.applies[-1]), "its requests wait still"
        assert not model_ready(Cold(control.cold_channel), "a"), "what is true"
        hold.unlink()
        apply = world.until_served("a")
        assert set(loadable(apply)) == {"b", "c"}
        assert server_ready(Cold(control.cold_channel))


@pytest.mark.slow
def test_the_next_loads_are_predicted(world: World) -> None:
    with world.control(residency__budget="1GiB"):
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        assert loadable(world.data_plane.applies[-1])["a"].load_ns == 0, "nothing is known"
        world.want("a")
        world.until_served("a")
        world.want("b")
        apply = world.until_served("b")
        assert loadable(apply)["a"].load_ns > 0
        hold = world.hold("a")
        world.want("a")
        apply = world.until(lambda apply: loadable(apply)["a"].ready_at_ns, "a moment")
        world.want("c")
        world.want("b")
        hold.unlink()
        # Who came first goes first.
        # Each stays for as long as its load took, which is long on a busy machine.
        wait_until(lambda: [n for n, e in world.events() if e == "load"] == [*"abacb"], "all", 120)


def test_the_wait_for_one_that_may_not_leave_yet_is_predicted(world: World) -> None:
    with world.control(residency__budget="1GiB"):
        for name in ("a", "b"):
            world.until(lambda apply, name=name: name in loadable(apply), "it is loadable")
            world.want(name)
            world.until_served(name)
        kept = world.data_plane.runtime_directory / FILE_NAME
        wait_until(lambda: kept.exists() and '"b"' in kept.read_text(), "its time is kept")
    world.data_plane.applies.clear()
    # Times are kept; b has been there for longer than this one is.
    with world.control(residency__budget="1GiB", residency__min_residency="1h"):
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        world.want("a")
        world.until_served("a")
        world.until(lambda apply: "b" in loadable(apply), "it has left")
        # From the moment on in which it makes room.
        told_ns = [loadable(a)["b"].load_ns for a in world.data_plane.applies if "b" in loadable(a)]
        assert min(told_ns) > 1800 * 1_000_000_000


def test_the_least_recently_used_makes_room_once_it_is_idle(world: World) -> None:
    with world.control():
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        for name in ("a", "b"):
            world.want(name)
            world.until(lambda apply, name=name: name in served(apply), "it is loaded")
        index = {m.name: m.index for m in world.data_plane.applies[-1].models}
        queue = world.data_plane.snapshot.models.add(index=index["a"], queued_requests=2)
        world.want("c")
        apply = world.until(lambda apply: served(apply) == {"b"}, "a takes nothing new")
        refusing = {m.name: m.batching.refusing for m in apply.models}
        assert refusing == {"a": True, "b": False}
        assert "a" in loadable(apply), "its new requests wait for the next load"
        queue.queued_requests, queue.inflight_batches = 0, 1
        assert ("a", "unload") not in world.events(), "it has work"
        queue.inflight_batches = 0
        world.until_served("b", "c")
        events = [event for event in world.events() if event[1] in ("load", "unload")]
        assert events == [("a", "load"), ("b", "load"), ("a", "unload"), ("c", "load")]


def test_one_whose_work_does_not_end_stays_and_that_is_told(world: World) -> None:
    with world.control(residency__budget="1GiB", residency__drain_timeout="300ms"):
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        world.want("a")
        apply = world.until_served("a")
        queue = world.data_plane.snapshot.models.add(index=apply.models[0].index, queued_requests=1)
        world.want("b")
        assert "cannot leave now" in world.until_refused("b").error
        world.until_served("a")
        queue.queued_requests = 0
        world.until(lambda apply: not error(apply, "b"), "it may be tried again")
        world.want_until_served("b")


def test_a_failed_load_is_told_and_tried_again_later(world: World) -> None:
    with world.control() as control:
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        fail = world.fail("a", "no such layer")
        world.want("a")
        assert "no such layer" in world.until_refused("a").error

        def is_a_problem() -> bool:
            world.want("a")  # it fails again, and is not tried for longer each time
            status = operator(control).GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
            return any("model a cannot be loaded" in problem for problem in status.problems)

        wait_until(is_a_problem, "operators are told", START_TIMEOUT_S)
        fail.unlink()
        world.until(lambda apply: not error(apply, "a"), "the pause is over")
        world.want("a")
        world.until_served("a")


def test_a_load_that_finds_no_memory_makes_others_leave(world: World) -> None:
    with world.control(residency__budget="none"):
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        for name in ("a", "b"):
            world.want(name)
            world.until(lambda apply, name=name: name in served(apply), "it is loaded")
        fail = world.fail("c", "CUDA out of memory. Tried to allocate 20.00 GiB.")
        world.want("c")
        wait_until(lambda: ("a", "unload") in world.events(), "the oldest leaves", 60)
        fail.unlink()
        world.until(lambda apply: "c" in served(apply), "it is loaded")


def test_a_load_that_finds_no_memory_though_nobody_has_any_is_told(world: World) -> None:
    with world.control(residency__budget="none", defaults__weights="0"):
        world.until(lambda apply: "c" in loadable(apply), "it is loadable")
        fail = world.fail("c", "CUDA out of memory. Tried to allocate 20.00 GiB.")
        world.want("c")
        found = world.until_refused("c")
        assert "no memory left" in found.error
        assert "Tried to allocate 20.00 GiB" in found.error
        assert (found.need_bytes, found.free_bytes) == (0, 0), "what it needs is not known"
        fail.unlink()


def test_one_that_fits_nowhere_is_refused_with_the_figures(world: World) -> None:
    with world.control(models={"c": {"weights": "2GiB"}, "b": {"residency": "pinned"}}):
        world.until_served("b")
        world.want("c")
        found = world.until_refused("c")
        assert (found.need_bytes, found.free_bytes) == (2 * 2**30, 2**30)
        assert ("b", "unload") not in world.events()


def test_pinned_models_are_loaded_at_once_and_readiness_waits_for_them(world: World) -> None:
    hold = world.hold("b")
    with world.control(models={"b": {"residency": "pinned"}}) as control:
        wait_until(lambda: ("b", "loading") in world.events(), "it is being loaded", 60)
        assert not server_ready(Cold(control.cold_channel))
        hold.unlink()
        world.until_served("b")
        wait_until(lambda: server_ready(Cold(control.cold_channel)), "it is there", 60)


def test_metadata_and_configuration_wait_for_the_load(world: World) -> None:
    with world.control() as control, ThreadPoolExecutor() as threads:
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        hold = world.hold("a")
        with InferenceServerClient(f"unix:{control.cold_path}") as client:
            asked = threads.submit(client.get_model_metadata, "a", client_timeout=START_TIMEOUT_S)
            wait_until(lambda: ("a", "loading") in world.events(), "it is being loaded", 60)
            assert not asked.done()
            hold.unlink()
            assert asked.result(START_TIMEOUT_S).inputs[0].name == "INPUT0"
            config = client.get_model_config("b", client_timeout=START_TIMEOUT_S).config
            assert config.max_batch_size == 64
        fail = world.fail("c", "no such layer")
        stub = Cold(control.cold_channel)
        request = service_pb2.ModelConfigRequest(name="c")
        code, text = failure(lambda: stub.ModelConfig(request, timeout=START_TIMEOUT_S))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "model 'c' cannot be loaded" in text
        assert "no such layer" in text
        fail.unlink()


def test_what_a_client_has_unloaded_stays_unloaded(world: World) -> None:
    with world.control() as control, contextlib.ExitStack() as stack:
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        client = stack.enter_context(InferenceServerClient(f"unix:{control.cold_path}"))
        client.load_model("a", client_timeout=START_TIMEOUT_S)
        client.unload_model("a", client_timeout=START_TIMEOUT_S)
        world.until(lambda apply: set(loadable(apply)) == {"b", "c"}, "it is not loadable")
        stub, request = Cold(control.cold_channel), service_pb2.ModelMetadataRequest(name="a")
        code, text = failure(lambda: stub.ModelMetadata(request, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "has no available versions" in text
        client.load_model("a", client_timeout=START_TIMEOUT_S)
        world.until_served("a")
        for name in ("b", "c"):
            world.want(name)
            world.until(lambda apply, name=name: name in served(apply), "it is loaded")
        assert "a" in loadable(world.data_plane.applies[-1]), "it made room, and may come again"


def test_a_control_plane_that_dies_during_a_load_is_followed_by_one_that_ends_it(
    world: World,
) -> None:
    with world.control() as control:
        world.until(lambda apply: "a" in loadable(apply), "it is loadable")
        hold = world.hold("a")
        world.want("a")
        wait_until(lambda: ("a", "loading") in world.events(), "it is being loaded", 60)
        control.kill()
        before = world.data_plane.connections
        control.start()
        wait_until(lambda: world.data_plane.connections > before, "it is back", 60)
        world.want("a")  # a data plane tells again whom requests wait for
        world.until(lambda apply: "a" in loadable(apply), "it knows of it")
        hold.unlink()
        world.until_served("a")
        assert world.events().count(("a", "load")) == 1


def test_an_ensemble_comes_and_leaves_with_its_steps(
    needs_triton: None, tmp_path: Path, data_plane: FakeDataPlane
) -> None:
    for name in MODELS:
        models.witness(tmp_path / "models", tmp_path / "notes", name)
    models.ensemble(tmp_path / "models", "pair", steps=("a", "b"))
    with EmbeddedTriton(tmp_path / "models", model_control_mode="explicit") as triton:
        world = World(triton, tmp_path / "notes", data_plane)
        with world.control():
            world.until(lambda apply: "pair" in loadable(apply), "it is loadable")
            world.want("pair")
            world.until_served("pair", "a", "b")
            world.want("c")
            world.until_served("c")
            world.until(lambda apply: set(loadable(apply)) == {"pair", "a", "b"}, "they left")
            assert {("a", "unload"), ("b", "unload")} <= set(world.events())
            world.want("pair")
            world.until_served("pair", "a", "b")


def test_a_backend_that_loads_by_itself_is_left_alone(
    needs_triton: None, tmp_path: Path, data_plane: FakeDataPlane
) -> None:
    models.witness(tmp_path / "models", tmp_path / "notes", "a")
    with EmbeddedTriton(tmp_path / "models") as triton:
        world = World(triton, tmp_path / "notes", data_plane)
        with world.control() as control:
            apply = world.until_served("a")
            assert not apply.loadable
            status = operator(control).GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
            assert any("does not act on backend" in problem for problem in status.problems)


def operator(control: ControlPlane) -> control_pb2_grpc.ControlStub:
    return control_pb2_grpc.ControlStub(ControlPlane.channel(control.control_address))
