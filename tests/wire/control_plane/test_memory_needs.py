"""Device memory before a real Triton: where a model is, what it needs, and who is shown that."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.cli.main import main
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.wire.control_plane.words import START_TIMEOUT_S, all_ready

pytestmark = pytest.mark.e2e
GIB, MIB = 2**30, 2**20


def test_a_model_of_a_device_is_told_and_shown_with_its_need(
    data_plane: FakeDataPlane, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text(
        f"backends: [{{address: '{triton.grpc_address}', devices: [left, right]}}]\n"
        "models: {identity: {gpus: [1]}}\n"
        "device_memory: {nvml: off, devices: {left: {total: 8GiB}, right: {total: 4GiB}}}\n"
    )

    def shown(*command: str) -> str:
        arguments = [*command, "--control", control.control_address]
        return CliRunner().invoke(main, arguments).output

    with ControlPlane(data_plane, config_file=config) as control:
        apply = data_plane.wait_apply(
            lambda apply: all_ready(apply) and len(data_plane.readings) > 0,
            "every model ready, and readings",
            START_TIMEOUT_S,
        )
        told = {d.index: d for readings in data_plane.readings for d in readings.devices}
        identity = next(model for model in apply.models if model.name == "identity")
        (number,) = identity.placements[0].device_indices
        assert (told[number].known, told[number].free_bytes) == (True, 4 * GIB)
        others = [m for m in apply.models if m.name != "identity"]
        assert not any(p.device_indices for m in others for p in m.placements)

        data_plane.snapshot = pb.Snapshot()
        data_plane.snapshot.models.add(index=identity.index).memory.add(
            device_index=number, known=True, base_bytes=829 * MIB, bytes_per_row=64 * MIB,
            samples=5, error=0.025, rows_high=8, rows_limit=31, rows_cap=40,
            added_bytes=1472 * MIB, out_of_memory=2,
        )  # fmt: skip
        wait_until(
            lambda: "64.00 b + 829.00 MiB" in shown("models", "describe", "identity"),
            "it is read",
            START_TIMEOUT_S,
        )
        described = shown("models", "describe", "identity")
        for words in ("right", "2.5% of 5", "8 rows", "31 rows, limited by device memory", "40"):
            assert words in described
        (model,) = json.loads(shown("models", "describe", "identity", "--output", "json"))
        assert model["memory"][0]["need"]["added_bytes"] == 1472 * MIB
        devices = {d["key"]: d for d in json.loads(shown("devices", "--json"))["devices"]}
        assert devices["right"]["models"] == ["identity 1"]
        assert devices["left"]["models"] == []
        with urllib.request.urlopen(control.metrics_url + "/metrics", timeout=30) as answer:
            metrics = answer.read().decode()
        labels = '{device="right",model="identity",version="1"}'
        assert f"infersched_device_memory_rows_limit{labels} 31.0" in metrics
        assert f"infersched_device_memory_predicted_bytes{labels}" in metrics


def test_a_control_plane_that_was_killed_leaves_placements_on_their_devices(
    data_plane: FakeDataPlane,
    triton: EmbeddedTriton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = Figures.create(tmp_path / "figures", [gpu("GPU-a", 16 * GIB), gpu("GPU-b", GIB)])
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder()))
    monkeypatch.setenv(FILE_VARIABLE, str(figures.path))
    config = tmp_path / "infersched.yaml"
    config.write_text(f"backends: ['{triton.grpc_address}']\nmodels: {{identity: {{gpus: [1]}}}}\n")

    def devices(apply: pb.Apply) -> list[list[int]]:
        named = (model for model in apply.models if model.name == "identity")
        return [list(p.device_indices) for model in named for p in model.placements]

    with ControlPlane(data_plane, config_file=config) as control:
        first = data_plane.wait_apply(all_ready, "every model ready", START_TIMEOUT_S)
        ((number,),) = devices(first)
        figures.slow_down(50)  # the backend has long been looked at by the first figures
        for _ in range(2):
            control.kill()
            data_plane.applies.clear()
            control.start()
            data_plane.wait_apply(all_ready, "every model ready again", START_TIMEOUT_S)
            said = [devices(apply) for apply in data_plane.applies]
            assert [found for found in said if found != [[number]]] == []
