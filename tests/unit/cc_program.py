"""C++ test programs: built with the sanitizers, run with a seed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"


def build_program(
    directory: Path, name: str, rooms: tuple[str, ...] = (), *, sanitize: str
) -> Path:
    """tests/unit/<name>.cc with these sources of csrc, under these sanitizers."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    built = directory / Path(name).name
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
    flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    sources = [HERE / f"{name}.cc", *(CSRC / source for source in rooms)]
    command = [compiler, *flags, *map(str, sources), "-o", str(built)]
    subprocess.run(command, check=True, timeout=120)
    return built


def run_program(program: Path, seed: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), str(seed)], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
