"""What is to be had at all of the model that slo_triton measures, by the simulator.

    python -m benchmarks.slo_possible [--overheads-ms 0,0.5,1] [--requests 60000] [--seeds 3]

Goodputs of Triton's batcher as it comes, of the policy to beat and of the engine on executors
without noise, and the closed bound: executors that start at equal distances, each with the largest
batch that is in time. An overhead is what a server adds to the time of a batch. One JSON object for
each, with medians over the seeds. Simulated time only: nothing else on the machine changes them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import inf
from statistics import median

from benchmarks.results import commit
from benchmarks.slo_triton import MODEL
from scheduler.simulation.compare import POLICIES
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import (
    ENGINE,
    Arrivals,
    Latency,
    Model,
    Policy,
    Scenario,
    staggered_bound,
)

# As POLICIES call them; the others are compared with the first.
DEFAULT, OTHERS = "static_default", ("just_enough", ENGINE)


def latency_with(overhead_ms: float) -> Latency:
    return Latency(MODEL.alpha_ms, MODEL.beta_ms + overhead_ms)


def bound(latency: Latency) -> float:
    """Requests/s of executors at equal distances; 0: no batch is in time so."""
    return staggered_bound(latency, MODEL.objective_ms, MODEL.instances)


def goodput(policy: Policy, latency: Latency, seed: int, requests: int) -> float:
    """Requests/s on as many executors as the model has instances; 0: no rate held."""

    def at(rate: float) -> Scenario:
        model = Model(latency, MODEL.objective_ms, Arrivals(rate_per_s=rate))
        return Scenario([model], MODEL.instances, seed=seed, requests=requests)

    top = bound(latency)
    return search(at, policy, from_per_s=1.1 * top, to_per_s=top / 100).per_s


def possible(overhead_ms: float, seeds: Sequence[int], requests: int) -> dict[str, object]:
    """Requests/s by policy, and what each is of Triton's batcher as it comes."""
    latency = latency_with(overhead_ms)
    per_s = {
        name: median(goodput(POLICIES[name], latency, seed, requests) for seed in seeds)
        for name in (DEFAULT, *OTHERS)
    }
    per_s["bound"] = bound(latency)
    return {
        "overhead_ms": overhead_ms,
        "per_s": {name: round(found) for name, found in per_s.items()},
        "ratios": {
            name: round(found / max(per_s[DEFAULT], 1), 3)
            for name, found in per_s.items()
            if name != DEFAULT
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overheads-ms", default="0,0.5,1", help="comma-separated")
    parser.add_argument("--requests", type=int, default=60_000, help="counted in each run")
    parser.add_argument("--seeds", type=int, default=3, help="the seeds 1 to N")
    given = parser.parse_args()
    try:
        overheads_ms = [float(text) for text in given.overheads_ms.split(",")]
    except ValueError:
        parser.error(f"no numbers: {given.overheads_ms!r}")
    if not all(0 <= each < inf and bound(latency_with(each)) > 0 for each in overheads_ms):
        parser.error("an overhead is not negative, and leaves time for batches")
    if given.requests < 100 or given.seeds < 1:
        parser.error("at least 100 requests and one seed")
    seeds = list(range(1, given.seeds + 1))
    head = {"benchmark": "slo_possible", "commit": commit(), "seeds": seeds}
    print(json.dumps({**head, "requests": given.requests}), flush=True)
    for overhead_ms in overheads_ms:
        print(json.dumps(possible(overhead_ms, seeds, given.requests)), flush=True)


if __name__ == "__main__":
    main()
