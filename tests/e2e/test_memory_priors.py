"""What is known of device memory before the first request: by a profile, the configuration, and an
earlier life of the scheduler."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from benchmarks.device_memory_real import DataPlaneView
from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.config.profile import load_profile
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.control_plane import wait_until
from tests.e2e.test_profile_memory import profile
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, output, rows

MIB, GIB = 2**20, 2**30
TOTAL, WEIGHTS, BASE, PER_ROW = 16 * GIB, 512 * MIB, 829 * MIB, 64 * MIB
WAIT_S = 60.0
# Of free memory, as it is by default.
HEADROOM = TOTAL // 20


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    path = tmp_path_factory.mktemp("nvml") / "figures"
    return Figures.create(path, [gpu("GPU-aaaa", TOTAL)])


@pytest.fixture(scope="module")
def triton(
    needs_triton: None, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("arenas")
    needs = models.Arena(figures.path, 0, BASE, PER_ROW, weights_bytes=WEIGHTS)
    models.arena(repository, needs, "arena", per_execution_s=0.2)
    with EmbeddedTriton(repository, model_control_mode="explicit") as server:
        yield server


@pytest.fixture(autouse=True)
def loaded(triton: EmbeddedTriton, figures: Figures) -> Iterator[None]:
    """With an empty arena."""
    figures.devices[0].other_bytes = 0
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        client.load_model("arena")
        yield
        client.unload_model("arena")
    wait_until(lambda: not client_memory(figures), "the arena's end", WAIT_S)


def client_memory(figures: Figures) -> int:
    with figures.locked():
        figures.forget_dead(0)
        device = figures.devices[0]
        return int(device.used_bytes - device.other_bytes)


@contextmanager
def scheduler(
    triton: EmbeddedTriton, figures: Figures, folder: Path, **model: object
) -> Iterator[tuple[ServedScheduler, DataPlaneView]]:
    config = folder / "infersched.json"
    config.write_text(
        json.dumps(
            {
                "server": {"state_directory": str(folder / "state")},
                "backends": [{"address": triton.grpc_address, "metrics": "off"}],
                "models": {"arena": {"gpus": [0], "staged_batches": 0, **model}},
            }
        )
    )
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    with ServedScheduler(["--config", str(config)], environment=nvml) as served:
        view = DataPlaneView(served)
        try:
            yield served, view
        finally:
            view.close()


def need(view: DataPlaneView) -> pb.MemorySnapshot:
    return view.need() or pb.MemorySnapshot()


def ask(address: str, count: int) -> None:
    values = rows(0, count)
    tensor = triton_grpc.InferInput("INPUT0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with triton_grpc.InferenceServerClient(address) as client:
        answer = client.infer("arena", [tensor], client_timeout=WAIT_S)
    assert np.array_equal(answer.as_numpy("OUTPUT0"), values)


def teach(address: str, view: DataPlaneView) -> int:
    """Ever larger batches until six were seen to take memory; returns the rows of the last."""
    count = 0
    while need(view).samples < 6:
        count += 1
        assert count < 40, "readings that show batches"
        ask(address, count)
        ended_ns = time.monotonic_ns()
        wait_until(lambda at=ended_ns: measured_at_ns(view) > at, "a reading of it", WAIT_S)
    return count


def measured_at_ns(view: DataPlaneView) -> int:
    return max(device.memory.measured_at_ns for device in view.snapshot().devices)


def batches(triton: EmbeddedTriton) -> dict[int, int]:
    """Executions by rows."""
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        (model,) = client.get_inference_statistics("arena").model_stats
    return {entry.batch_size: entry.compute_infer.count for entry in model.batch_stats}


def leave_room(figures: Figures, count: float) -> None:
    """Beside the headroom, for a first batch of so many rows."""
    with figures.locked():
        device = figures.devices[0]
        device.other_bytes = TOTAL - WEIGHTS - HEADROOM - BASE - round(count * PER_ROW)


@pytest.mark.slow
def test_with_a_profile_the_first_large_batch_is_right(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    saved = tmp_path / "arena.json"
    done = profile(triton, figures, saved, "arena", "--device", "0", "--sizes", "1,2,4,8,16,32")
    assert done.returncode == 0, done.stderr
    measured = load_profile(saved).memory
    assert measured is not None
    assert measured.bytes_per_row == pytest.approx(PER_ROW, rel=0.03)
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        client.unload_model("arena")
        wait_until(lambda: not client_memory(figures), "the arena's end", WAIT_S)
        client.load_model("arena")
    leave_room(figures, 20.5)
    with scheduler(triton, figures, tmp_path, profile=str(saved)) as (served, view):
        wait_until(lambda: need(view).rows_limit == 20, "the limit by the profile", WAIT_S)
        with connected(served.address) as stub:
            requests = [infer_request(rows(n), model="arena") for n in range(61)]
            calls = [stub.ModelInfer.future(request, timeout=WAIT_S) for request in requests]
            for n, call in enumerate(calls):
                assert np.array_equal(output(call.result()), rows(n))
        assert need(view).out_of_memory == 0
    sizes = batches(triton)
    assert max(sizes) == 20
    # Not by steps of a row or a tenth.
    assert sum(sizes.values()) <= 10


def test_a_fixed_need_holds_whatever_batches_take(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    leave_room(figures, 40.5)
    told = {"base": "829MiB", "per_row": "128MiB"}
    with scheduler(triton, figures, tmp_path, memory=told) as (served, view):
        wait_until(lambda: need(view).rows_limit == 20, "the limit by the figures", WAIT_S)
        teach(served.address, view)
        learned = need(view)
        assert (learned.base_bytes, learned.bytes_per_row) == (829 * MIB, 128 * MIB)


def test_what_was_learned_is_known_after_a_restart(
    triton: EmbeddedTriton, figures: Figures, tmp_path: Path
) -> None:
    with scheduler(triton, figures, tmp_path) as (served, view):
        wait_until(lambda: need(view).rows_limit > 0, "the device", WAIT_S)
        taught = teach(served.address, view)
        assert need(view).confirmed
    # No more is free than the arena has taken: what it keeps is not needed again.
    leave_room(figures, taught + 0.5)
    with scheduler(triton, figures, tmp_path) as (served, view):
        wait_until(lambda: need(view).rows_high == taught, "what the arena keeps", WAIT_S)
        known = need(view)
        assert known.bytes_per_row == pytest.approx(PER_ROW, rel=0.03)
        assert known.base_bytes == pytest.approx(BASE, rel=0.03)
        assert known.rows_limit == taught
        ask(served.address, 1)
    with triton_grpc.InferenceServerClient(triton.grpc_address) as client:
        client.unload_model("arena")
        wait_until(lambda: not client_memory(figures), "the arena's end", WAIT_S)
        client.load_model("arena")
    with scheduler(triton, figures, tmp_path) as (served, view):
        wait_until(lambda: need(view).known, "what was learned", WAIT_S)
        wait_until(lambda: need(view).rows_limit == taught, "room for as many rows", WAIT_S)
        assert need(view).rows_high == 0
