"""What the ledger of device memory costs a request: instructions of the engine, by callgrind.

The closed loop of `benchmarks.engine` with a device whose need is known against the same loop
without one. Runs of two lengths are subtracted, so that what a process does once does not count.
Batches of one size that the device has room for, as they are nearly all the time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.options import Options, say
from benchmarks.results import ROOT, Figure

LIMIT_S = 300.0
_COLLECTED = re.compile(rb"Collected : (\d+)")


def instructions(with_device: bool, requests: int) -> int:
    """Of a whole process that drives so many. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory(prefix="infersched-callgrind-") as directory:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={Path(directory) / 'out'}",
             sys.executable, "-S", "-m", "benchmarks.ledger_loop", str(requests),
             *(["--with-device"] if with_device else [])],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            timeout=LIMIT_S,
        )  # fmt: skip
    found = _COLLECTED.search(done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
    return int(found[1])


def run(options: Options) -> list[Figure]:
    """No figure where valgrind is missing."""
    if shutil.which("valgrind") is None:
        say("device_memory_ledger_cost is left out: there is no valgrind (install it)")
        return []
    requests = 2_000 if options.short else 100_000
    runs = [(device, count) for device in (False, True) for count in (requests, 2 * requests)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = list(pool.map(lambda run: instructions(*run), runs))
    without, with_device = ((counts[at + 1] - counts[at]) / requests for at in (0, 2))
    say(f"instructions a request: {without:.1f} without a device, {with_device:.1f} with one")
    cost = (with_device / without - 1) * 100
    return [Figure.of("device_memory_ledger_cost", cost)]
