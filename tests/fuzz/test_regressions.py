"""Every input that once broke something, and some fresh ones, run through the built libraries.

No libFuzzer is needed: the fuzzers' entries are linked with a small main, against the archives of
the last build, or those of the sanitizer build under `make test-asan`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.corpus import SEEDS, write_corpus
from tests.fuzz.figure import ROOMS

pytestmark = pytest.mark.native

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FRESH_INPUTS = 200


def built() -> tuple[Path, tuple[str, ...]]:
    """Where the archives of the rooms are, and the flags they need."""
    chosen = os.environ.get("INFERSCHED_NATIVE_DIR")
    if chosen is None:
        return ROOT / "build" / "release", ()
    directory = Path(chosen).parent
    return directory, SANITIZERS if directory.name == "asan" else ()


@pytest.fixture(scope="module", params=sorted(SEEDS))
def replay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs files through one fuzzer; its name is the fuzzer's."""
    name = str(request.param)
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    directory, flags = built()
    archives = [directory / f"lib{room}.a" for room in ROOMS[name.partition("_")[0]]]
    if compiler is None or not all(archive.exists() for archive in archives):
        pytest.skip("no C++ compiler, or the libraries were built elsewhere")
    program = tmp_path_factory.mktemp("fuzz") / name
    sources = [str(HERE / f"{name}.cc"), str(HERE / "replay.cc")]
    command = [compiler, "-std=c++17", "-O1", "-pthread", *flags, f"-I{ROOT / 'csrc'}", *sources]
    libraries = ["-lnghttp2", "-lz"] if "http2" in name else []
    command += [*map(str, archives), *libraries, "-o", str(program)]
    subprocess.run(command, check=True, timeout=170)
    return program


def run(program: Path, files: list[Path]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [str(program), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_broke_once_breaks_no_more(replay: Path) -> None:
    files = sorted((HERE / "regressions" / replay.name).glob("*"))
    if not files:
        pytest.skip("nothing was ever found by this fuzzer")
    run(replay, files)


def test_fresh_inputs_break_nothing(replay: Path, rng: random.Random, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", replay.name, rng, FRESH_INPUTS)
    run(replay, sorted((tmp_path / "corpus").iterdir()))
