"""A data plane's clock that a test sets ahead, for what happens only after long."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.grpc_js import clean_environment

SOURCE = Path(__file__).with_suffix(".c")


class ClockAhead:
    """Of a process with `environment`."""

    def __init__(self, directory: Path) -> None:
        library = str(directory / "clock_ahead.so")
        self._file = directory / "ahead"
        self._file.write_bytes(bytes(8))
        preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
        self.environment = {"CLOCK_AHEAD_FILE": str(self._file), "LD_PRELOAD": preloaded}
        command = [os.environ.get("CC", "cc"), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
        command += ["-shared", "-fPIC", str(SOURCE), "-o", library, "-ldl"]
        subprocess.run(command, check=True, timeout=60, env=clean_environment())

    def set_s(self, seconds: int) -> None:
        with self._file.open("r+b") as file:
            file.write((seconds * 10**9).to_bytes(8, "little"))
