"""What noise of execution times costs the engine, by workload and seed.

    python -m benchmarks.noise [--seeds 5] [--workloads A,C,F] [--noise 0.1] [--jobs 2]

Every batch takes a lognormal factor of this deviation; margins are learned. One JSON object a
workload: goodput with noise as a part of that without, the medians over the seeds, and the parts of
each seed. `python -m benchmarks overload` takes the worst of A, C and F as its figure. Simulated
time only: neither --jobs nor anything else on the machine changes a figure.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

from benchmarks.goodput import chosen
from benchmarks.options import say
from benchmarks.results import commit
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import Scenario, engine
from scheduler.simulation.workloads import WORKLOADS, Workload

LETTERS = ("A", "C", "F")
NOISE = 0.1


def goodput(workload: Workload, seed: int, requests: int, noise: float = 0.0) -> float:
    """Requests/s of the engine; 0: no rate held."""

    def at(rate: float) -> Scenario:
        scenario = workload.scenario(rate, seed=seed, requests=requests)
        return replace(scenario, noise_sigma=noise)

    top = workload.capacity_per_s
    return search(at, engine(), from_per_s=top, to_per_s=top / 1000).per_s


def lines(
    letters: list[str], seeds: list[int], requests: int, noise: float, jobs: int
) -> Iterator[str]:
    """One JSON object a workload."""
    with ThreadPoolExecutor(jobs) as pool:
        started = {
            (letter, seed, sigma): pool.submit(goodput, WORKLOADS[letter], seed, requests, sigma)
            for letter in letters
            for seed in seeds
            for sigma in (0.0, noise)
        }
        for letter in letters:
            without = [started[letter, seed, 0.0].result() for seed in seeds]
            with_noise = [started[letter, seed, noise].result() for seed in seeds]
            parts = [ours / max(base, 1) for ours, base in zip(with_noise, without, strict=True)]
            part = median(with_noise) / max(median(without), 1)
            say(f"{letter}: {part:.3f}; by seed {' '.join(f'{each:.3f}' for each in parts)}")
            yield json.dumps(
                {
                    "figure": f"noise_{letter}_part_of_goodput",
                    "value": round(part, 4),
                    "by_seed": [round(each, 4) for each in parts],
                    "goodput": round(median(without)),
                    "goodput_with_noise": round(median(with_noise)),
                    "unit": "part",
                    "better": "higher",
                }
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 1 to N")
    parser.add_argument("--requests", type=int, default=50_000, help="counted in each run")
    parser.add_argument("--workloads", default=",".join(LETTERS), help=", ".join(WORKLOADS))
    parser.add_argument("--noise", type=float, default=NOISE, help="deviation of the logarithm")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="searches at a time; default: one a core")  # fmt: skip
    options = parser.parse_args()
    if options.seeds < 1 or options.requests < 100 or options.jobs < 1:
        parser.error("at least one seed, 100 requests and one job are needed")
    if not 0 < options.noise <= 1:
        parser.error("noise is above 0 and at most 1")
    letters = chosen(options.workloads, list(WORKLOADS), parser)
    seeds = list(range(1, options.seeds + 1))
    head = {"benchmark": "noise", "commit": commit(), "seeds": seeds, "noise": options.noise}
    print(json.dumps({**head, "requests": options.requests}), flush=True)
    for line in lines(letters, seeds, options.requests, options.noise, options.jobs):
        print(line, flush=True)


if __name__ == "__main__":
    main()
