"""`make serve`: the digit classifier behind the scheduler, until Ctrl-C or SIGTERM.

Arguments go to `infersched serve`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.demo import classifier

REPOSITORY = Path(__file__).resolve().parents[2] / "build" / "demo" / "repository"


def main() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    network, _ = classifier.train()
    classifier.write_repository(REPOSITORY, network)
    print(f"model {classifier.MODEL!r}: IMAGE FP32[n, 64] -> DIGIT INT32[n, 1], PROBABILITIES")
    sys.stdout.flush()
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--embedded", str(REPOSITORY)]
    os.execv(sys.executable, [*command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
