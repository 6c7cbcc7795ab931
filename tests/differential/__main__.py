"""`python -m tests.differential --requests 10000 --seed 7`: random requests, straight and through.

Prints what differs without being meant, how to repeat it, and one JSON line with the figure. Exit
status 0: no unlisted difference, 3: some.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path

from benchmarks.results import Figure, header, write_results
from tests.differential.cases import CHUNK
from tests.differential.random_run import MODELS, Unlisted, run
from tests.differential.worlds import BATCHINGS, DEFAULT_BATCHING

TRITON = Path(__file__).resolve().parents[2] / ".tools" / "triton"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.differential", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time")
    parser.add_argument("--models", type=int, default=MODELS, help="of one tritonserver")
    parser.add_argument("--batching", choices=BATCHINGS, default=DEFAULT_BATCHING)
    parser.add_argument(
        "--backends", type=int, default=1, help="tritonservers behind the scheduler"
    )
    parser.add_argument("--only", type=int, metavar="N", help="the chunk of request N")
    parser.add_argument("--output", type=Path, help="keep the figure in a file of results")
    given = parser.parse_args()
    os.environ.setdefault("INFERSCHED_TRITON_DIR", str(TRITON))
    seed = random.randrange(2**31) if given.seed is None else given.seed
    numbers = range(given.requests)
    if given.only is not None:
        begin = given.only // CHUNK * CHUNK
        numbers = range(begin, begin + CHUNK)
    print(f"seed {seed}", file=sys.stderr)
    told = time.monotonic()

    def say(text: str) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def tell(difference: Unlisted) -> None:
        print(difference.report(seed), file=sys.stderr, flush=True)

    report = run(
        seed,
        numbers,
        models=given.models,
        batching=given.batching,
        backends=given.backends,
        say=say,
        tell=tell,
    )
    print(report.summary(), file=sys.stderr)
    figure = Figure.of("differential_unlisted", len(report.unlisted))
    print(figure.to_json(), flush=True)
    if given.output is not None:
        counted = {
            "batching": given.batching,
            "backends": given.backends,
            "requests": report.requests,
            "executions": report.executions,
        }
        write_results(given.output, header(seed, ["differential"]) | counted, [figure])
    return 3 if report.unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
