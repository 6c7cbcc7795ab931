"""Models on demand end to end: real clients, `infersched serve`, a Triton in explicit mode."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.control.residency.external import PAUSE_MIN_S
from tests import models
from tests.control_plane import wait_until
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, output, rows

MIB, GIB = 2**20, 2**30
WAIT_S = 120.0
EXECUTION_S = 0.02


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the models note of themselves."""
    return tmp_path_factory.mktemp("notes") / "all"


@pytest.fixture(scope="module")
def _triton(
    needs_triton: None, notes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("on-demand")
    for name in ("a", "b"):
        models.witness(repository, notes, name, per_execution_s=EXECUTION_S)
    with EmbeddedTriton(repository, model_control_mode="explicit") as server:
        yield server


@pytest.fixture
def triton(_triton: EmbeddedTriton, notes: Path) -> Iterator[EmbeddedTriton]:
    """With nothing loaded, and nothing noted."""
    unload_all(_triton, ("a", "b"))
    notes.unlink(missing_ok=True)
    yield _triton
    for kind in ("hold", "fail", "stay"):
        for path in notes.parent.glob(f"*.{kind}"):
            path.unlink()


@pytest.fixture
def served(triton: EmbeddedTriton, tmp_path: Path) -> Iterator[ServedScheduler]:
    """A scheduler whose budget holds one of the two models."""
    config = tmp_path / "infersched.yaml"
    config.write_text(
        "residency: {mode: on_demand, budget: 1GiB, min_residency: 100ms, unload_timeout: 2s}\n"
        "defaults: {weights: 1GiB}\n"
    )
    arguments = ["--backend", triton.grpc_address, "--config", str(config)]
    with ServedScheduler(arguments) as scheduler:
        yield scheduler


def unload_all(server: EmbeddedTriton, names: Sequence[str]) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name in names:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
            stub.RepositoryModelUnload(request, timeout=WAIT_S)

        def states() -> set[str]:
            index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=WAIT_S)
            return {model.state for model in index.models}

        wait_until(lambda: states() <= {"", "UNAVAILABLE"}, "all are gone", WAIT_S)


def events(notes: Path) -> list[tuple[str, str]]:
    """(model, event), as they happened."""
    if not notes.exists():
        return []
    return [(line.split()[0], line.split()[1]) for line in notes.read_text().splitlines()]


def told(scheduler: ServedScheduler, *words: str) -> Any:
    command = [sys.executable, "-m", "scheduler.cli", *words, "--output", "json"]
    done = subprocess.run(
        [*command, "--control", scheduler.control_address],
        capture_output=True,
        check=False,
        timeout=WAIT_S,
    )
    return json.loads(done.stdout)


def residency(scheduler: ServedScheduler) -> dict[str, dict[str, Any]]:
    return {model["name"]: model["residency"] for model in told(scheduler, "models", "list")}


def scraped(scheduler: ServedScheduler, name: str) -> float:
    with urllib.request.urlopen(scheduler.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(li.split()[-1]) for li in lines if li.startswith(f"infersched_{name}{{"))


def test_the_first_request_loads_its_model(served: ServedScheduler, notes: Path) -> None:
    assert {name: r["state"] for name, r in residency(served).items()} == {
        "a": "not_loaded",
        "b": "not_loaded",
    }
    with InferenceServerClient(served.address) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("a")
    with connected(served.address) as stub:
        reply = stub.ModelInfer(infer_request(rows(3), model="a"), timeout=WAIT_S)
    np.testing.assert_array_equal(output(reply), rows(3))
    assert ("b", "load") not in events(notes)
    wait_until(lambda: residency(served)["a"]["idle_ns"] >= 0, "its use is seen")
    shown = residency(served)
    assert (shown["a"]["state"], shown["a"]["weight_bytes"]) == ("loaded", GIB)
    assert shown["b"]["state"] == "not_loaded"
    places = told(served, "status")["residency"]
    assert [(p["resident_bytes"], p["budget_bytes"]) for p in places] == [(GIB, GIB)]
    wait_until(lambda: scraped(served, "model_loads_total") == 1, "it is counted")


@pytest.mark.slow
def test_two_that_do_not_fit_together_take_turns_and_no_request_is_lost(
    served: ServedScheduler, notes: Path
) -> None:
    answered: list[int] = []

    def ask(number: int) -> None:
        with connected(served.address) as stub:
            for turn in range(3):
                for name in "ab" if number % 2 else "ba":
                    values = rows(number * 100 + turn, 1 + number % 3)
                    request = infer_request(values, model=name)
                    reply = stub.ModelInfer(request, timeout=WAIT_S)
                    np.testing.assert_array_equal(output(reply), values)
                    answered.append(number)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(ask, number) for number in range(6)]:
            done.result()
    assert len(answered) == 6 * 6
    check_turns(events(notes))
    wait_until(lambda: scraped(served, "model_unloads_total") >= 1, "unloads are counted")


def check_turns(seen: list[tuple[str, str]]) -> None:
    """Never two are loaded at once, none runs that is not, none is unloaded while it runs."""
    loaded, running, loads = set[str](), set[str](), 0
    for name, event in seen:
        if event == "load":
            assert not loaded, f"{name} is loaded beside {loaded}: {seen}"
            loaded.add(name)
            loads += 1
        elif event == "begin":
            assert name in loaded
            running.add(name)
        elif event == "end":
            running.discard(name)
        elif event == "unload":
            assert name not in running, f"{name} was unloaded while it ran: {seen}"
            loaded.discard(name)
    assert loads >= 3, "they took turns"


@pytest.mark.slow
def test_a_request_that_cannot_wait_is_told_how_long_the_load_takes(
    served: ServedScheduler, notes: Path
) -> None:
    hold = notes.with_name(f"{notes.name}.a.hold")
    hold.touch()
    with connected(served.address) as stub:
        first = stub.ModelInfer.future(infer_request(rows(1), model="a"), timeout=WAIT_S)
        wait_until(lambda: ("a", "loading") in events(notes), "it is being loaded", WAIT_S)
        began_s = time.monotonic()
        wait_until(lambda: time.monotonic() - began_s > 4, "the load takes four seconds")
        hold.unlink()
        first.result(WAIT_S)
        stub.ModelInfer(infer_request(rows(1), model="b"), timeout=WAIT_S)
        wait_until(lambda: residency(served)["a"]["load_ns"] > 4e9, "its time is known")
        # Much less than the load, and much more than the refusal takes.
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(infer_request(rows(1), model="a"), timeout=2)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "is predicted to be ready" in refused.value.details()
        # Who tries again finds it.
        wait_until(lambda: residency(served)["a"]["state"] == "loaded", "it is loaded", WAIT_S)
        stub.ModelInfer(infer_request(rows(1), model="a"), timeout=WAIT_S)


def test_why_a_load_failed_is_told_and_the_next_one_may_succeed(
    served: ServedScheduler, notes: Path
) -> None:
    fail = notes.with_name(f"{notes.name}.a.fail")
    fail.write_text("the layer 'conv' is missing")
    with connected(served.address) as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(infer_request(rows(1), model="a"), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the layer 'conv' is missing" in refused.value.details()
        assert "the layer 'conv' is missing" in residency(served)["a"]["error"]
        fail.unlink()

        def answered() -> bool:
            try:
                stub.ModelInfer(infer_request(rows(1), model="a"), timeout=WAIT_S)
            except grpc.RpcError:
                return False
            return True

        wait_until(answered, "it is tried again", WAIT_S)


def test_a_load_outlives_the_control_plane(served: ServedScheduler, notes: Path) -> None:
    hold = notes.with_name(f"{notes.name}.a.hold")
    hold.touch()
    with connected(served.address) as stub:
        call = stub.ModelInfer.future(infer_request(rows(2), model="a"), timeout=WAIT_S)
        wait_until(lambda: ("a", "loading") in events(notes), "it is being loaded", WAIT_S)
        killed = served.child("scheduler.control")
        killed.kill()
        wait_until(lambda: residency_or_none(served), "another one is there", WAIT_S)
        hold.unlink()
        np.testing.assert_array_equal(output(call.result()), rows(2))
    assert events(notes).count(("a", "load")) == 1


def residency_or_none(scheduler: ServedScheduler) -> Any:
    try:
        return residency(scheduler)
    except (ValueError, KeyError, subprocess.SubprocessError):
        return None


def test_a_model_that_its_triton_does_not_end_is_refused_until_it_has_gone(
    served: ServedScheduler, notes: Path
) -> None:
    stay = notes.with_name(f"{notes.name}.a.stay")
    with connected(served.address) as stub:
        stub.ModelInfer(infer_request(rows(1), model="a"), timeout=WAIT_S)
        stay.touch()
        # Both name no deadline: only what the scheduler finds out ends their wait.
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(infer_request(rows(1), model="b"), timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(infer_request(rows(1), model="a"), timeout=WAIT_S)
        assert "its Triton has not ended unloading it" in refused.value.details()
        assert residency(served)["a"]["state"] == "stuck_unloading"
        assert any("model a is stuck" in text for text in told(served, "status")["problems"])
        wait_until(lambda: scraped(served, "model_unload_failures_total") == 1, "it is counted")
        stay.unlink()
        wait_until(lambda: residency(served)["a"]["state"] == "not_loaded", "it has gone", WAIT_S)

        def answered() -> bool:
            try:
                stub.ModelInfer(infer_request(rows(1), model="b"), timeout=WAIT_S)
            except grpc.RpcError:
                return False
            return True

        wait_until(answered, "there is room", WAIT_S)


def test_two_schedulers_before_one_triton_take_turns_and_say_so(
    served: ServedScheduler, triton: EmbeddedTriton, notes: Path, tmp_path: Path
) -> None:
    arguments = ["--backend", triton.grpc_address, "--config", str(tmp_path / "infersched.yaml")]
    with ServedScheduler(arguments) as other:
        answered = {"a": 0, "b": 0}
        stop = threading.Event()

        def ask(scheduler: ServedScheduler, model: str) -> None:
            with connected(scheduler.address) as stub:
                while not stop.is_set():
                    try:
                        stub.ModelInfer(infer_request(rows(1), model=model), timeout=WAIT_S)
                        answered[model] += 1
                    except grpc.RpcError:
                        stop.wait(0.05)

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(ask, served, "a"), threads.submit(ask, other, "b")]
            try:
                wait_until(lambda: events(notes).count(("a", "load")) >= 3, "turns", WAIT_S)
            finally:
                stop.set()
            for done in asking:
                done.result()
        assert min(answered.values()) > 0
        for scheduler in (served, other):
            problems = told(scheduler, "status")["problems"]
            assert any("somebody else loads and unloads models" in text for text in problems)
            assert scraped(scheduler, "external_model_changes_total") >= 1
            assert scheduler.log_path.read_text().count("and not by this scheduler") == 1
    seen = [(name, at_s) for name, event, at_s in timed(notes) if event == "load"]
    spans = [later - at for (_, at), (_, later) in pairwise(seen)]
    assert max(spans) > PAUSE_MIN_S * 0.9, f"turns become rarer: {seen}"


def timed(notes: Path) -> list[tuple[str, str, float]]:
    """(model, event, seconds), as they happened."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [(name, event, int(at_ns) / 1e9) for name, event, at_ns in lines]


@pytest.mark.slow
def test_weights_are_measured_and_a_full_device_makes_the_oldest_leave(
    needs_triton: None, tmp_path: Path
) -> None:
    figures = Figures.create(tmp_path / "figures", [gpu("GPU-aaaa", 4 * GIB)])
    for name in ("a", "b", "c"):
        weights = GIB if name == "c" else 2 * GIB
        needs = models.Arena(figures.path, weights_bytes=weights, base_bytes=0, bytes_per_row=MIB)
        models.arena(tmp_path / "models", needs, name)
    config = tmp_path / "infersched.yaml"
    config.write_text("residency: {mode: on_demand, min_residency: 0}\ndefaults: {gpus: [0]}\n")
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    most = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], figures.devices[0].used_bytes)

    with EmbeddedTriton(tmp_path / "models", model_control_mode="explicit") as server:
        arguments = ["--backend", server.grpc_address, "--config", str(config)]
        with (
            ServedScheduler(arguments, environment=nvml) as scheduler,
            connected(scheduler.address) as stub,
        ):
            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                for name in ("a", "c", "b", "a"):
                    reply = stub.ModelInfer(infer_request(rows(1), model=name), timeout=WAIT_S)
                    np.testing.assert_array_equal(output(reply), rows(1))
            finally:
                stop.set()
                watcher.join()
            shown = residency(scheduler)
            measured = {n: r["weight_bytes"] / GIB for n, r in shown.items()}
            assert measured == pytest.approx({"a": 2, "b": 2, "c": 1}, rel=0.01)
            states = {name: r["state"] for name, r in shown.items()}
            assert states == {"a": "loaded", "b": "not_loaded", "c": "loaded"}
    assert most[0] <= 4 * GIB - 256 * MIB
