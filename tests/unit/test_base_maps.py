"""SlotMap and StreamMap of csrc/base against the standard containers, under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SANITIZERS = "-fsanitize=address,undefined"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    built = tmp_path_factory.mktemp("maps") / "base_maps"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", SANITIZERS]
    flags += ["-fno-sanitize-recover=all", f"-I{CSRC}"]
    source = str(HERE / "base_maps.cc")
    subprocess.run([compiler, *flags, source, "-o", str(built)], check=True, timeout=120)
    return built


@pytest.mark.parametrize("seed", range(5))
def test_the_maps_agree_with_their_twins(program: Path, seed: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), str(seed)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
