"""Triton's perf_analyzer: a client program that is built on Triton's C++ gRPC client library.

PyPI's `tritonclient` carries the binary in this release. It needs two libraries which the embedded
Triton brings under names of its own, so it is installed beside that:

    python -m tests.perf_analyzer
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.backends import triton_install
from scheduler.backends.triton_install import TritonInstallError

VERSION = "2.41.1"
# What the binary asks the loader for, and what the wheel of the embedded Triton calls it.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
TIMEOUT_S = 120
# Of one measurement; a report takes three. Where nothing is answered in it, a longer one follows.
WINDOWS_MS = (150, 1000, 5000)
_WINDOW_TOO_SHORT = "Please use a larger time window"


def _directory() -> Path:
    return triton_install.default_tool_directory() / f"perf_analyzer-{VERSION}"


def installed() -> bool:
    return _directory().exists()


def install() -> None:
    """Puts it beside the embedded Triton unless it is there. Raises TritonInstallError."""
    if installed():
        return
    triton = triton_install.locate()
    if triton is None:
        raise TritonInstallError("it needs libraries of the embedded Triton, which is not there")
    with triton_install.staged_directory(_directory()) as staged:
        print(f"installing perf_analyzer {VERSION} (12 MB to download)", file=sys.stderr)
        wheel = staged / "wheel"
        triton_install.pip_install(f"tritonclient=={VERSION}", wheel)
        (wheel / "bin" / "perf_analyzer").rename(staged / "perf_analyzer")
        shutil.rmtree(wheel)
        for name, pattern in LIBRARIES.items():
            library = next(triton.libraries.glob(pattern), None)
            if library is None:
                raise TritonInstallError(f"{triton.libraries} has no {pattern}")
            (staged / name).symlink_to(os.path.relpath(library, staged))
        done = _run(staged, ["--version"])
        if done.returncode != 0:
            raise TritonInstallError(f"perf_analyzer does not run here: {done.stdout.strip()}")


def _run(directory: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(directory)}
    environment.pop("LD_PRELOAD", None)  # of a sanitizer run, which is not about this program
    return subprocess.run(
        [str(directory / "perf_analyzer"), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@dataclass(frozen=True)
class Report:
    """What one run of it says: its text, a row of the CSV and an experiment for each level."""

    returncode: int
    text: str
    levels: list[dict[str, str]]
    experiments: list[dict[str, Any]]

    def figures(self, name: str) -> list[int]:
        """The numbers after `name: ` in the text, in its order."""
        lines = (line.strip() for line in self.text.splitlines())
        return [int(line.split()[-1]) for line in lines if line.startswith(f"{name}: ")]

    def errors(self) -> set[str]:
        """What its threads ended with."""
        lines = self.text.splitlines()
        return {line.partition(" had error: ")[2] for line in lines if " had error: " in line}


def analyze(address: str, model: str, *arguments: str, work: Path) -> Report:
    """Runs it over gRPC against one model; files go to the directory `work`."""
    work.mkdir(parents=True, exist_ok=True)
    table, export = work / "levels.csv", work / "requests.json"
    command = ["-i", "grpc", "-u", address, "-m", model, *arguments]
    command += ["-f", str(table), "--verbose-csv", "--profile-export-file", str(export)]
    for window_ms in WINDOWS_MS:
        for path in (table, export):
            path.unlink(missing_ok=True)
        # One measurement may differ from the next as it likes: this is no benchmark.
        steady = ["--measurement-interval", str(window_ms), "--stability-percentage", "999"]
        done = _run(_directory(), [*command, *steady])
        if _WINDOW_TOO_SHORT not in done.stdout:
            break
    levels = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    experiments = json.loads(export.read_text())["experiments"] if export.exists() else []
    return Report(done.returncode, done.stdout, levels, experiments)


if __name__ == "__main__":
    try:
        install()
    except TritonInstallError as error:
        sys.exit(f"no perf_analyzer: {error}")
