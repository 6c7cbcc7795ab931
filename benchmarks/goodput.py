"""Goodput of the engine and the reference policies on the workloads of scheduler.simulation.

    python -m benchmarks.goodput [--seeds 5] [--requests N] [--workloads A,C] [--policies nexus,...]
                                 [--jobs 2]

One JSON object a figure: the median over the seeds, its range, the worst model's attainment there
and the figure known from elsewhere: for the engine that of just_enough, the policy to beat. All
policies meet the same arrivals. The first two seconds of each run are not counted; in them the
engine, which is given neither rates nor latencies, learns both. stderr has the progress and the
table. Simulated time only: neither --jobs nor anything else on the machine changes a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from threading import Lock

from benchmarks.options import say
from benchmarks.results import commit
from scheduler.simulation.compare import NAMES, Compared, compare, table
from scheduler.simulation.goodput import Goodput
from scheduler.simulation.workloads import WORKLOADS, known


def line(row: Compared) -> str:
    """One figure as JSON."""
    low, high = known(row.workload, row.policy)
    figure = {
        "figure": f"goodput_{row.workload}_{row.policy}",
        "value": round(row.per_s),
        "lowest": round(row.lowest_per_s),
        "highest": round(row.highest_per_s),
        "worst_model_attainment": round(row.worst_attainment, 4),
        "known_low": low,
        "known_high": high,
        "difference": round(row.difference, 4),
        "unit": "requests/s",
        "better": "higher",
    }
    return json.dumps(figure)


def chosen(text: str, known: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The comma-separated names of `text`, all of `known` when it is empty."""
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names or known


class Progress:
    """Says what was found, and how much of it all that is."""

    def __init__(self, searches: int) -> None:
        self._searches = searches
        self._done = 0
        self._begun = time.monotonic()
        self._lock = Lock()

    def __call__(self, letter: str, name: str, seed: int, goodput: Goodput) -> None:
        with self._lock:
            self._done += 1
            took = time.monotonic() - self._begun
            say(
                f"{self._done:4}/{self._searches} {took:6.0f} s  "
                f"{letter} {name}, seed {seed}: {goodput.per_s:.0f}/s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 1 to N")
    parser.add_argument("--requests", type=int, default=100_000, help="counted in each run")
    parser.add_argument("--workloads", default="", help=", ".join(WORKLOADS))
    parser.add_argument("--policies", default="", help=", ".join(NAMES))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="searches at a time; default: one a core")  # fmt: skip
    options = parser.parse_args()
    if options.seeds < 1 or options.requests < 100 or options.jobs < 1:
        parser.error("at least one seed, 100 requests and one job are needed")
    letters = chosen(options.workloads, list(WORKLOADS), parser)
    names = chosen(options.policies, list(NAMES), parser)
    seeds = list(range(1, options.seeds + 1))
    head = {"benchmark": "goodput", "commit": commit(), "seeds": seeds}
    print(json.dumps({**head, "requests": options.requests}), flush=True)
    workloads = {letter: WORKLOADS[letter] for letter in letters}
    rows = []
    progress = Progress(len(letters) * len(names) * len(seeds))
    for row in compare(
        workloads, names, seeds, options.requests, jobs=options.jobs, on_found=progress
    ):
        rows.append(row)
        print(line(row), flush=True)
    say(table(rows))


if __name__ == "__main__":
    main()
