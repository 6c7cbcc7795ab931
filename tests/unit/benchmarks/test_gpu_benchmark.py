"""What the benchmark on a GPU rests on where there is none: preflight, tenant, verdict, picture."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import gpu_memory
from benchmarks.gpu_memory import need_error
from benchmarks.gpu_preflight import (
    GENERATED,
    MODULES,
    missing_modules,
    missing_packages,
    missing_torch,
    nvml_devices,
    preflight,
)
from benchmarks.gpu_tenant import FiguresTenant, Playing, schedule
from benchmarks.gpu_timeline import Timeline, stairs, svg
from benchmarks.options import Options
from benchmarks.results import ROOT
from tests.control_plane import wait_until
from tests.nvml.figures import Figures, gpu

GIB = 2**30


def test_without_a_device_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_memory.there, "nvml_devices", lambda: "no driver")
    assert gpu_memory.run(Options()) == []
    assert capsys.readouterr().err == "skipped: gpu_memory needs a GPU: no driver\n"


def test_what_is_missing_on_a_machine_with_a_device_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_memory.there, "nvml_devices", lambda: 1)
    monkeypatch.setattr(gpu_memory.there, "missing_triton", lambda: "carry it")
    monkeypatch.setattr(gpu_memory.there, "missing_packages", lambda: "carry them")
    figures = gpu_memory.run(Options())
    assert [figure.verified for figure in figures] == [False, False]
    said = capsys.readouterr().err
    assert "missing: Python packages: carry them\n" in said
    assert "missing: Triton: carry it\n" in said


def test_devices_are_asked_for_first() -> None:
    def never() -> str:
        raise AssertionError

    assert preflight(lambda: 0, {"part": never}).skipped == "NVML tells of no device"
    found = preflight(lambda: 2, {"a": lambda: "", "b": lambda: "carry b"})
    assert (found.skipped, found.missing) == ("", ["b: carry b"])


def test_no_library_is_no_device() -> None:
    assert nvml_devices("libno-such-nvml.so.1") == (
        "libno-such-nvml.so.1 is not on this host: no NVIDIA driver"
    )


def test_the_preflight_runs_on_a_bare_python() -> None:
    program = (
        "import sys; from benchmarks import gpu_memory; from benchmarks.options import Options\n"
        "bare = {m.split('.')[0] for m in sys.modules} & {'grpc', 'numpy', 'pynvml', 'google'}\n"
        "assert not bare, bare"
    )
    subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, check=True)


def test_missing_packages_are_told_with_how_to_carry_them() -> None:
    assert missing_packages() == ""
    told = missing_packages(lambda module: module != "grpc")
    assert told.startswith("grpcio>=1.81.1. ")
    assert "pip download" in told
    assert "pip install --no-index" in told


def test_all_dependencies_are_asked_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") :]
    named = re.findall(r'^    "([^"]+)"', block[: block.index("\n]")], re.MULTILINE)
    assert named
    assert set(named) <= set(MODULES)


def test_compiled_modules_are_told_by_the_python_they_are_for(tmp_path: Path) -> None:
    assert missing_modules() == ""
    for folder in ("_native", "v1"):
        (tmp_path / "scheduler" / folder).mkdir(parents=True)
    for name in ("codec.pyx", "engine.pyx", "engine.cpython-312-x86_64-linux-gnu.so"):
        (tmp_path / "scheduler" / "_native" / name).touch()
    told = missing_modules(tmp_path, "cpython-312")
    assert "scheduler/_native/codec.cpython-312-*.so" in told
    assert "engine.cpython" not in told
    assert all(f"scheduler/v1/{name}" in told for name in GENERATED)


def test_a_python_without_pytorch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_torch().startswith("no PyTorch for Python")


@pytest.mark.parametrize("seed", range(5))
def test_the_tenant_takes_and_frees_within_its_room(seed: int) -> None:
    changes = schedule(seed, 60.0, 100 * GIB)
    assert changes == schedule(seed, 60.0, 100 * GIB)
    times, sizes = [at for at, _ in changes], [size for _, size in changes]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < 60
    assert all(0 <= size <= 100 * GIB for size in sizes)
    # Tens of GiB go and come.
    steps = [after - before for before, after in pairwise(sizes)]
    assert max(steps) > 20 * GIB
    assert min(steps) < -20 * GIB


def test_the_tenant_gets_no_more_than_is_free(tmp_path: Path) -> None:
    figures = Figures.create(tmp_path / "figures", [gpu("GPU-a", 16 * GIB)])
    figures.set_process(0, 1, 6 * GIB)
    tenant = FiguresTenant(figures)
    assert tenant.hold(4 * GIB) == 4 * GIB
    assert tenant.hold(12 * GIB) == 10 * GIB
    with Playing(tenant, ((0.0, 3 * GIB), (3600.0, GIB))) as playing:
        wait_until(lambda: playing.held, "the first change")
    assert [size for _, size in playing.held] == [3 * GIB]
    assert figures.devices[0].other_bytes == 0


def test_the_worst_size_is_the_error_of_the_prediction() -> None:
    actual = {1: 110, 10: 200, 100: 1100}
    error, lines = need_error((100.0, 10.0), actual)
    assert error == pytest.approx(0.0)
    assert len(lines) == 3
    error, lines = need_error((120.0, 10.0), actual)
    assert error == pytest.approx(20 / 110 * 100)
    assert need_error((100.0, 10.0), {4: 0})[0] == float("inf")
    assert need_error(None, actual) == (0.0, [])


def timeline() -> Timeline:
    answers = [(0.1, True), (0.2, True), (0.9, False), (1.9, True)]
    return Timeline(2.0, 16 * GIB, [(0.0, GIB), (1.0, 9 * GIB)], [(0.5, 8 * GIB)], answers)


def test_a_timeline_counts_answers_and_errors_over_time() -> None:
    assert (timeline().errors, timeline().per_s) == (1, 1.5)
    assert timeline().rates(0.5, ok=True) == [(0.25, 4.0), (0.75, 0.0), (1.25, 0.0), (1.75, 2.0)]
    assert timeline().rates(0.5, ok=False) == [(0.25, 0.0), (0.75, 2.0), (1.25, 0.0), (1.75, 0.0)]


def test_what_a_tenant_holds_lasts_until_it_changes() -> None:
    assert stairs([(0, 1), (2, 5)], 3) == [(0, 1), (2, 1), (2, 5), (3, 5)]
    assert stairs([], 3) == []


def test_the_picture_shows_errors_where_there_were_some() -> None:
    root = ElementTree.fromstring(svg(timeline(), "a < b"))
    words = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b" in words
    assert "errors (1)" in words
    none = Timeline(2.0, 16 * GIB, [], [], [(0.1, True)])
    assert "#c02020" in svg(timeline(), "x")
    assert svg(none, "x").count("#c02020") == 1  # the words only
