"""The benchmark on a GPU takes every step with the tests' NVML and the arena model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_memory import NAMES
from benchmarks.results import ROOT
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder


@pytest.mark.slow
@pytest.mark.timeout(300)  # it starts two Tritons
def test_every_step_of_the_gpu_benchmark_runs_and_is_verified(
    needs_triton: None, tmp_path: Path
) -> None:
    figures = Figures.create(tmp_path / "figures", [gpu("GPU-aaaa", 16 * 2**30)])
    nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(figures.path)}
    command = [sys.executable, "-m", "benchmarks", "gpu_memory", "--short", "--no-file"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **nvml},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    values = {f["figure"]: f["value"] for f in map(json.loads, done.stdout.splitlines())}
    assert list(values) == list(NAMES), done.stderr
    assert all(value > 0 for value in values.values()), done.stderr
    assert values["gpu_memory_client_errors"] < 1, done.stderr
    assert "picture in" in done.stderr
    assert figures.devices[0].other_bytes == 0
