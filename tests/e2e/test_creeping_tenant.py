"""Needs of device memory are learned on a real Triton beside a tenant that never rests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from benchmarks.device_memory_real import DataPlaneView
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.control_plane import wait_until
from tests.e2e.test_devices import infer
from tests.e2e.test_profile_memory import moving
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.serving import ServedScheduler

MIB, GIB = 2**20, 2**30
TOTAL, WEIGHTS, BASE, PER_ROW = 16 * GIB, 512 * MIB, 256 * MIB, 64 * MIB
ROWS_MAX = 64
WAIT_S = 60.0


@pytest.fixture
def figures(tmp_path: Path) -> Figures:
    return Figures.create(tmp_path / "figures", [gpu("GPU-aaaa", TOTAL)])


@pytest.fixture
def triton(needs_triton: None, figures: Figures, tmp_path: Path) -> Iterator[EmbeddedTriton]:
    needs = models.Arena(figures.path, 0, BASE, PER_ROW, weights_bytes=WEIGHTS)
    models.arena(tmp_path / "models", needs, "arena", max_batch_size=ROWS_MAX, per_execution_s=0.02)
    with EmbeddedTriton(tmp_path / "models") as server:
        yield server


def test_what_the_servers_processes_use_teaches_the_need(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text("defaults: {gpus: [0]}\n")
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    arguments = ["--backend", triton.grpc_address, "--config", str(config)]

    def client(requests: int) -> None:
        for _ in range(requests):
            infer(scheduler.address, "arena", 1)

    with (
        ServedScheduler(arguments, environment=nvml) as scheduler,
        moving(figures, 0.03),
        futures.ThreadPoolExecutor(48) as pool,
    ):
        view = DataPlaneView(scheduler)
        try:
            wait_until(lambda: (n := view.need()) and n.rows_limit > 0, "the device", WAIT_S)
            wait_until(lambda: own_is_told(view), "what the servers use", WAIT_S)

            def confirmed() -> bool:
                for done in [pool.submit(client, 5) for _ in range(48)]:
                    done.result()
                need = view.need()
                return need is not None and need.confirmed

            wait_until(confirmed, "the need", WAIT_S)
            need = view.need()
        finally:
            view.close()
    assert need is not None
    predicted = need.base_bytes + need.bytes_per_row * ROWS_MAX
    assert predicted == pytest.approx(BASE + PER_ROW * ROWS_MAX, rel=0.03)


def own_is_told(view: DataPlaneView) -> bool:
    """The first figures are the servers' weights."""
    return any(device.memory.own_measured_at_ns for device in view.snapshot().devices)
