"""Devices as operators see them: NVML, Control service, command line, metrics, reload."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from scheduler.cli.main import main
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.nvml import figures as nvml
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder

GIB = 2**30
START_TIMEOUT_S = 60.0
BACKEND = "127.0.0.1:1"  # nobody listens there


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figures:
    """The control plane's NVML; what the test writes is told."""
    made = Figures.create(
        tmp_path / "figures", [gpu("GPU-aaaa", 16 * GIB), gpu("GPU-bbbb", 8 * GIB)]
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder()))
    monkeypatch.setenv(FILE_VARIABLE, str(made.path))
    return made


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "infersched.yaml"
    path.write_text(f"backends: [{BACKEND!r}]\n")
    return path


@pytest.fixture
def data_plane() -> Iterator[FakeDataPlane]:
    with FakeDataPlane() as fake:
        yield fake


@pytest.fixture
def control(
    figures: Figures, config_file: Path, data_plane: FakeDataPlane
) -> Iterator[ControlPlane]:
    with ControlPlane(data_plane, config_file=config_file) as process:
        yield process


def devices(control: ControlPlane) -> dict[str, dict[str, object]]:
    """What the command tells, by device."""
    arguments = ["devices", "--json", "--control", control.control_address]
    result = CliRunner().invoke(main, arguments)
    if result.exit_code != 0:
        assert "no scheduler answers" in result.output
        return {}
    return {device["key"]: device for device in json.loads(result.output)["devices"]}


def scraped(control: ControlPlane, sample: str) -> float:
    with urllib.request.urlopen(f"{control.metrics_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(
        next(line for line in lines if line.startswith(f"infersched_{sample} ")).split()[-1]
    )


def test_what_another_tenant_takes_is_seen(control: ControlPlane, figures: Figures) -> None:
    wait_until(lambda: len(devices(control)) == 2, "the devices", START_TIMEOUT_S)
    figures.set_process(0, 4711, 6 * GIB)
    figures.devices[0].slowdowns = nvml.HEAT
    seen = wait_until(
        lambda: (found := devices(control)["GPU-aaaa"])["processes"] and found,
        "the process",
        START_TIMEOUT_S,
    )
    assert (seen["free_bytes"], seen["used_bytes"]) == (10 * GIB, 6 * GIB)
    assert seen["processes"] == [{"pid": 4711, "used_bytes": 6 * GIB}]
    assert seen["headroom_bytes"] >= 16 * GIB // 20
    assert seen["known"]
    wait_until(lambda: devices(control)["GPU-aaaa"]["slowed_by_heat"], "the heat")
    assert scraped(control, 'device_memory_free_bytes{device="GPU-aaaa"}') == 10 * GIB
    assert scraped(control, 'device_memory_source_up{source="nvml"}') == 1
    assert scraped(control, "nvml_calls_total") > 0


def test_the_table(control: ControlPlane) -> None:
    wait_until(lambda: len(devices(control)) == 2, "the devices", START_TIMEOUT_S)
    arguments = ["devices", "--once", "--control", control.control_address]
    output = CliRunner().invoke(main, arguments).output
    assert output.splitlines()[0].split() == [
        *("DEVICE", "MEMORY", "USED", "FREE", "HEADROOM", "RESERVED", "AGE"),
        *("PROCESSES", "SOURCE", "MODELS", "STATE"),
    ]
    assert "GPU-aaaa" in output
    assert "16.00 GiB" in output
    status = CliRunner().invoke(main, ["status", "--control", control.control_address]).output
    assert "2 of 2 devices" in status


def test_a_lost_gpu_and_a_lost_driver(control: ControlPlane, figures: Figures) -> None:
    wait_until(lambda: len(devices(control)) == 2, "the devices", START_TIMEOUT_S)
    figures.devices[1].error = nvml.GPU_IS_LOST
    lost = wait_until(
        lambda: not (found := devices(control)["GPU-bbbb"])["known"] and found, "the loss"
    )
    assert "lost" in str(lost["problem"])
    assert devices(control)["GPU-aaaa"]["known"]
    status = CliRunner().invoke(main, ["status", "--control", control.control_address]).output
    assert "device GPU-bbbb" in status
    figures.fail(nvml.LIBRARY_DRIVER_MISMATCH)
    wait_until(
        lambda: not devices(control)["GPU-aaaa"]["known"], "the driver's end", START_TIMEOUT_S
    )
    wait_until(
        lambda: scraped(control, 'device_memory_known{device="GPU-aaaa"}') == 0, "the metric"
    )
    assert scraped(control, 'device_memory_source_errors_total{source="nvml"}') > 0
    figures.fail(0)
    wait_until(lambda: devices(control)["GPU-aaaa"]["known"], "its return", START_TIMEOUT_S)


def test_a_reload_changes_headroom_and_sources(control: ControlPlane, config_file: Path) -> None:
    wait_until(lambda: len(devices(control)) == 2, "the devices", START_TIMEOUT_S)
    assert control.process is not None
    config_file.write_text(
        f"backends: [{BACKEND!r}]\n"
        "device_memory: {devices: {GPU-aaaa: {headroom_min: 3GiB}, left: {total: 4GiB}}}\n"
    )
    control.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(devices(control)) == 3, "the fixed device")
    assert devices(control)["left"]["source"] == "the configuration"
    wait_until(
        lambda: devices(control)["GPU-aaaa"]["headroom_bytes"] >= 3 * GIB, "the new headroom"
    )
    config_file.write_text(f"backends: [{BACKEND!r}]\ndevice_memory: {{nvml: off}}\n")
    control.process.send_signal(signal.SIGHUP)
    wait_until(lambda: devices(control) == {}, "no devices")


def test_the_data_plane_is_told(
    control: ControlPlane, data_plane: FakeDataPlane, figures: Figures
) -> None:
    def told() -> dict[int, pb.DeviceMemory]:
        return {d.index: d for readings in list(data_plane.readings) for d in readings.devices}

    wait_until(lambda: len(told()) == 2, "the readings", START_TIMEOUT_S)
    (large,) = (d for d in told().values() if d.total_bytes == 16 * GIB)
    assert large.known
    assert large.free_bytes == 16 * GIB
    assert large.headroom_bytes >= 16 * GIB // 20
    assert 0 < large.measured_at_ns <= time.monotonic_ns()
    taken_at_ns = time.monotonic_ns()
    figures.devices[0].other_bytes = 6 * GIB
    wait_until(lambda: told()[large.index].free_bytes == 10 * GIB, "what was taken")
    assert told()[large.index].measured_at_ns > taken_at_ns
    data_plane.vanish()
    data_plane.readings.clear()
    data_plane.listen()
    wait_until(lambda: len(told()) == 2, "the readings anew", START_TIMEOUT_S)
    figures.devices[0].error = nvml.GPU_IS_LOST
    wait_until(lambda: not told()[large.index].known, "the loss")
