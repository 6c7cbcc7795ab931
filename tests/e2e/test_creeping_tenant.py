"""Needs of device memory are learned on a real Triton beside a tenant that never rests."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

    with ServedScheduler(arguments, environment=nvml) as scheduler, moving(figures, 0.03):
        view = DataPlaneView(scheduler)
        try:
            wait_until(lambda: own_measured_at_ns(view) > 0, "what the servers use", WAIT_S)
            for rows in (1, 2, 4, 8):
                infer(scheduler.address, "arena", rows)
                ended_ns = time.monotonic_ns()
                wait_until(
                    lambda at=ended_ns: own_measured_at_ns(view) > at, "what they use now", WAIT_S
                )
            need = view.need()
        finally:
            view.close()
    assert need is not None
    predicted = need.base_bytes + need.bytes_per_row * ROWS_MAX
    assert predicted == pytest.approx(BASE + PER_ROW * ROWS_MAX, rel=0.03)


def own_measured_at_ns(view: DataPlaneView) -> int:
    """Of the last figures of the servers' processes, whose first ones are the weights."""
    devices = view.snapshot().devices
    return max((device.memory.own_measured_at_ns for device in devices), default=0)
