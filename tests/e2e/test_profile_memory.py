"""`infersched profile --memory` on a real Triton whose models take memory as allocators do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.config.profile import Profile, load_profile
from tests import models
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder

MIB, GIB = 2**20, 2**30
TOTAL, WEIGHTS, BASE, PER_ROW = 16 * GIB, 512 * MIB, 829 * MIB, 64 * MIB
COMMAND_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    path = tmp_path_factory.mktemp("nvml") / "figures"
    return Figures.create(path, [gpu("GPU-aaaa", TOTAL), gpu("GPU-bbbb", TOTAL)])


@pytest.fixture(scope="module")
def triton(
    needs_triton: None, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("arenas")
    needs = models.Arena(figures.path, 0, BASE, PER_ROW, weights_bytes=WEIGHTS)
    models.arena(repository, needs, "arena")
    models.arena(repository, needs, "pair", instances=2, per_execution_s=0.05)
    with EmbeddedTriton(repository, model_control_mode="explicit") as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(figures: Figures, triton: EmbeddedTriton) -> Iterator[None]:
    yield
    figures.devices[0].other_bytes = figures.devices[0].told_free_bytes = 0
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        for model in ("arena", "pair"):
            client.unload_model(model)


def profile(
    triton: EmbeddedTriton,
    figures: Figures,
    saved: Path,
    *arguments: str,
    nvml: bool = True,
    old: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`old` is NVML that tells of no processes."""
    environment = {**os.environ, FILE_VARIABLE: str(figures.path)}
    if nvml:
        environment["LD_LIBRARY_PATH"] = str(library_folder(old))
    command = [sys.executable, "-m", "scheduler.cli", "profile", "--server", triton.grpc_address]
    return subprocess.run(
        [*command, "--memory", "--repeats", "3", "--save", str(saved), *arguments],
        env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip


def load(triton: EmbeddedTriton, model: str) -> None:
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        client.load_model(model)


def check_need(measured: Profile) -> Any:
    need = measured.memory
    assert need is not None
    assert need.base_bytes == pytest.approx(BASE, rel=0.03)
    assert need.bytes_per_row == pytest.approx(PER_ROW, rel=0.03)
    return need


def test_base_and_bytes_a_row_are_found(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    load(triton, "arena")
    saved, plot = tmp_path / "p.json", tmp_path / "p.svg"
    done = profile(
        triton, figures, saved, "arena", "--device", "0", "--plot", str(plot), "--output", "json"
    )
    assert done.returncode == 0, done.stderr
    measured = load_profile(saved)
    assert json.loads(done.stdout) == measured.model_dump(mode="json")
    need = check_need(measured)
    assert (need.device, need.source, need.stopped) == ("GPU-aaaa", "nvml", "")
    assert [size.rows for size in need.sizes] == [size.rows for size in measured.sizes]
    assert need.sizes[-1].rows == 64
    assert not any(size.moved for size in need.sizes)
    assert (tmp_path / "p-memory.svg").read_text().startswith("<svg")


def test_two_instances_have_an_allocator_each(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    load(triton, "pair")
    saved = tmp_path / "p.json"
    arguments = ("pair", "--device", "GPU-aaaa", "--sizes", "1,2,4,8,16")
    done = profile(triton, figures, saved, *arguments)
    assert done.returncode == 0, done.stderr
    assert check_need(load_profile(saved)).instances == 2
    assert "of each of 2 instances; on GPU-aaaa by nvml" in done.stdout


@pytest.mark.slow
def test_a_sweep_ends_before_the_device_is_full_and_at_the_first_batch_that_fails(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    device, saved = figures.devices[0], tmp_path / "p.json"
    load(triton, "arena")
    # Room for 16 rows and the headroom, not for 24.
    device.other_bytes = TOTAL - WEIGHTS - BASE - 20 * PER_ROW - TOTAL // 20
    done = profile(triton, figures, saved, "arena", "--device", "0", "--reload")
    assert done.returncode == 0, done.stderr
    measured = load_profile(saved)
    need = check_need(measured)
    assert [size.rows for size in need.sizes][-1] == measured.sizes[-1].rows == 16
    assert need.stopped.startswith("before 24 rows, which may take 512MiB: ")
    assert "Stopped before 24 rows" in done.stdout
    # NVML that tells of more than there is, which is 20 rows and the headroom.
    device.told_free_bytes = TOTAL // 2
    done = profile(triton, figures, saved, "arena", "--device", "0", "--reload")
    assert done.returncode == 0, done.stderr
    measured = load_profile(saved)
    need = check_need(measured)
    assert measured.sizes[-1].rows == need.sizes[-1].rows == 32
    assert need.stopped.startswith("at 48 rows, which ran out of memory: ")


@contextmanager
def moving(figures: Figures, pause_s: float) -> Iterator[None]:
    """Another tenant takes 230 MiB, and again, and frees all."""
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(pause_s):
            with figures.locked():
                device = figures.devices[0]
                device.other_bytes = (device.other_bytes + 230 * MIB) % (2 * GIB)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_others_do_not_matter_where_the_servers_processes_are_seen(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    load(triton, "arena")
    saved = tmp_path / "p.json"
    with moving(figures, 0.03):
        done = profile(triton, figures, saved, "arena", "--device", "0", "--sizes", "1,2,4,8,16")
    assert done.returncode == 0, done.stderr
    assert not any(size.moved for size in check_need(load_profile(saved)).sizes)


def test_a_device_that_others_use_all_the_time_is_said(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    load(triton, "arena")
    saved = tmp_path / "p.json"
    with moving(figures, 0.03):
        arguments = ("arena", "--device", "0", "--sizes", "1,2")
        done = profile(triton, figures, saved, *arguments, old=True)
    assert done.returncode == 1
    assert "other tenants of the device moved memory" in done.stderr
    assert "--reload" in done.stderr
    assert not saved.exists()


def test_a_model_that_has_run_is_not_measured(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    load(triton, "arena")
    arguments = ("arena", "--device", "0", "--sizes", "1,4")
    assert profile(triton, figures, tmp_path / "p.json", *arguments).returncode == 0
    again = profile(triton, figures, tmp_path / "q.json", *arguments)
    assert again.returncode == 1
    assert "has run batches of up to 4 rows since it was loaded" in again.stderr
    assert not (tmp_path / "q.json").exists()


@pytest.mark.parametrize(
    ("arguments", "nvml", "status", "message"),
    [
        ((), True, 1, "has no instances on a GPU by its instance_group. Name the device by"),
        (("--device", "7"), True, 1, "GPU 7, which NVML does not tell of"),
        (("--device", "GPU-zzzz"), True, 1, "no device GPU-zzzz; there are: GPU-aaaa, GPU-bbbb"),
        ((), False, 1, "no device memory is known by nvml: "),
        (("--metrics", "127.0.0.1:1"), True, 1, "no device memory is known by metrics of"),
        (("--metrics", "nowhere"), True, 1, "nowhere"),
    ],
)
def test_what_is_not_known_of_devices_is_said(
    triton: EmbeddedTriton,
    figures: Figures,
    tmp_path: Path,
    arguments: tuple[str, ...],
    nvml: bool,
    status: int,
    message: str,
) -> None:
    load(triton, "arena")
    saved = tmp_path / "p.json"
    done = profile(triton, figures, saved, "arena", *arguments, nvml=nvml)
    assert done.returncode == status, done.stderr
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not saved.exists()
