"""Device memory end to end: a model that takes it as an allocator does, and NVML that shows it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.device_memory_real import DataPlaneView
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.control_plane import wait_until
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.serving import ServedScheduler, ServeError

MIB, GIB = 2**20, 2**30
WEIGHTS = 512 * MIB
START_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    path = tmp_path_factory.mktemp("nvml") / "figures"
    return Figures.create(path, [gpu("GPU-aaaa", 4 * GIB)])


@pytest.fixture(scope="module")
def arena_triton(
    needs_triton: None, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    """An arena with PyTorch's words and one with ONNX Runtime's, on one GPU."""
    repository = tmp_path_factory.mktemp("arenas")
    needs = models.Arena(figures.path, weights_bytes=WEIGHTS)
    models.arena(repository, needs, "torch")
    keeping = models.Arena(figures.path, framework="onnxruntime", base_bytes=0)
    models.arena(repository, keeping, "onnx")
    with EmbeddedTriton(repository) as server:
        yield server


def infer(address: str, model: str, rows: int) -> None:
    values = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    tensor = triton_grpc.InferInput("INPUT0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with triton_grpc.InferenceServerClient(address) as client:
        answer = client.infer(model, [tensor], client_timeout=60.0)
    assert np.array_equal(answer.as_numpy("OUTPUT0"), values)


def test_an_arena_keeps_its_largest_need_and_fails_as_its_framework(
    arena_triton: EmbeddedTriton, figures: Figures
) -> None:
    device, address = figures.devices[0], arena_triton.grpc_address
    assert device.used_bytes == WEIGHTS
    infer(address, "torch", 4)
    assert device.used_bytes == WEIGHTS + (256 + 4 * 64) * MIB
    infer(address, "torch", 2)
    assert device.used_bytes == WEIGHTS + (256 + 4 * 64) * MIB
    infer(address, "onnx", 8)
    assert device.used_bytes == WEIGHTS + (256 + 4 * 64) * MIB + 8 * 64 * MIB
    device.other_bytes = GIB
    with pytest.raises(InferenceServerException, match=r"CUDA out of memory\. Tried to allocate"):
        infer(address, "torch", 40)
    assert device.used_bytes == WEIGHTS + GIB + 512 * MIB  # it gave back what it had cached
    with pytest.raises(InferenceServerException, match=r"BFCArena.*Failed to allocate memory"):
        infer(address, "onnx", 60)
    assert device.used_bytes == WEIGHTS + GIB + 512 * MIB
    infer(address, "torch", 4)
    device.other_bytes = 0


def devices(scheduler: ServedScheduler) -> dict[str, Any]:
    command = [sys.executable, "-m", "scheduler.cli", "devices", "--json"]
    done = subprocess.run(
        [*command, "--control", scheduler.control_address],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return {device["key"]: device for device in json.loads(done.stdout)["devices"]}


def test_infersched_shows_what_models_take(
    arena_triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text("defaults: {gpus: [0]}\n")
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    arguments = ["--backend", arena_triton.grpc_address, "--config", str(config)]
    with ServedScheduler(arguments, environment=nvml) as scheduler:
        shown = wait_until(lambda: devices(scheduler).get("GPU-aaaa"), "it", START_TIMEOUT_S)
        wait_until(lambda: len(devices(scheduler)["GPU-aaaa"]["models"]) == 2, "the models")
        before = figures.devices[0].used_bytes
        infer(scheduler.address, "onnx", 16)
        grown = figures.devices[0].used_bytes
        assert grown > before
        wait_until(
            lambda: devices(scheduler)["GPU-aaaa"]["used_bytes"] == grown, "what it has taken"
        )
        assert shown["source"] == "nvml"
        assert sorted(devices(scheduler)["GPU-aaaa"]["models"]) == ["onnx 1", "torch 1"]


def test_two_schedulers_on_a_device_share_what_is_free(
    arena_triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    together = f"device_memory: {{schedulers_directory: {tmp_path / 'seen'}}}\n"
    config.write_text("defaults: {gpus: [0]}\n" + together)
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    arguments = ["--backend", arena_triton.grpc_address, "--config", str(config)]

    def usable(scheduler: ServedScheduler) -> float:
        """The part of what is free less the headroom that its batches may take."""
        shown = devices(scheduler).get("GPU-aaaa")
        (told,) = [d.memory for d in DataPlaneView(scheduler).snapshot().devices]
        if shown is None or not told.known:
            return 0.0
        free = shown["free_bytes"] - shown["headroom_bytes"]
        return (told.free_bytes - told.headroom_bytes) / free

    with ServedScheduler(arguments, environment=nvml) as first:
        wait_until(lambda: usable(first) == 1, "the whole of it", START_TIMEOUT_S)
        with ServedScheduler(arguments, environment=nvml) as second:
            for scheduler in (first, second):
                wait_until(lambda s=scheduler: usable(s) == 0.5, "a half each", START_TIMEOUT_S)
                assert devices(scheduler)["GPU-aaaa"]["schedulers"] == 2
            infer(second.address, "torch", 2)
        wait_until(lambda: usable(first) == 1, "the whole of it again", START_TIMEOUT_S)


def test_figures_of_a_control_plane_that_hangs_lose_their_worth(tmp_path: Path) -> None:
    alone = Figures.create(tmp_path / "figures", [gpu("GPU-bbbb", 16 * GIB)])
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(alone.path)}
    arguments = ["--backend", "127.0.0.1:1"]
    with ServedScheduler(arguments, environment=nvml, wait_ready=False) as scheduler:

        def headroom() -> int:
            try:
                found = [d.memory for d in DataPlaneView(scheduler).snapshot().devices]
            except (ServeError, OSError):  # it starts
                return 0
            return next((memory.headroom_bytes for memory in found if memory.known), 0)

        fresh = wait_until(headroom, "figures", START_TIMEOUT_S)
        control = scheduler.child("scheduler.control")
        control.suspend()
        wait_until(lambda: headroom() > 1.5 * fresh, "a wider headroom", START_TIMEOUT_S)
        control.resume()
        wait_until(lambda: headroom() == fresh, "the figures of now", START_TIMEOUT_S)


def scraped(scheduler: ServedScheduler, name: str) -> float:
    """The sum of a metric."""
    with urllib.request.urlopen(scheduler.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(li.split()[-1]) for li in lines if li.startswith(f"infersched_{name}{{"))


class Tenant:
    """Takes and frees what the models leave, all of it now and then."""

    def __init__(self, figures: Figures, seed: int) -> None:
        self._figures, self._random = figures, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Tenant:
        self._take(0.6)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._figures.devices[0].other_bytes = 0

    def _take(self, part: float) -> None:
        with self._figures.locked():
            device = self._figures.devices[0]
            device.other_bytes = int((device.free_bytes + device.other_bytes) * part)

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0.2, 0.6)):
            self._take(self._random.choice([1.0, 0.95, 0.8, 0.5]))


@pytest.mark.parametrize("model", ["torch", "onnx"])
def test_no_client_sees_that_memory_ran_out_beside_another_tenant(
    arena_triton: EmbeddedTriton, figures: Figures, tmp_path: Path, model: str
) -> None:
    seed = int(os.environ.get("INFERSCHED_TEST_SEED", "5"))
    print(f"seed {seed}")
    config = tmp_path / "infersched.yaml"
    config.write_text("defaults: {gpus: [0]}\n")
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    arguments = ["--backend", arena_triton.grpc_address, "--config", str(config)]

    def client(requests: int) -> None:
        for _ in range(requests):
            infer(scheduler.address, model, 1)

    with (
        ServedScheduler(arguments, environment=nvml) as scheduler,
        Tenant(figures, seed),
        futures.ThreadPoolExecutor(48) as pool,
    ):
        wait_until(lambda: devices(scheduler).get("GPU-aaaa"), "it", START_TIMEOUT_S)
        for done in [pool.submit(client, 30) for _ in range(48)]:
            done.result()
        assert scraped(scheduler, "batches_total") < 48 * 30  # they were merged
        assert scraped(scheduler, "memory_limited_batches_total") > 0
