"""Large blocks of csrc/base: nothing is lost or shared, and what is kept is bounded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without AddressSanitizer, under which no block is kept."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    built = tmp_path_factory.mktemp("blocks") / "large_blocks"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
    sources = [HERE / "large_blocks.cc", CSRC / "base/large_blocks.cc", CSRC / "base/bytes.cc"]
    command = [compiler, *flags, *map(str, sources), "-o", str(built)]
    subprocess.run(command, check=True, timeout=120)
    return built


@pytest.mark.parametrize("seed", range(3))
def test_blocks_serve_buffers(program: Path, seed: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), str(seed)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
