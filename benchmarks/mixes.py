"""The engine and the reference policies on workloads that nobody chose.

    python -m benchmarks.mixes [--first 1] [--count 100] [--requests 20000] [--jobs 2] [--short]
                               [--policies just_enough,symphony,...] [--no-overload]

Workload n is made from the number n alone (benchmarks/mix_worlds.py). One JSON object a workload:
the goodput of the engine and of each policy on the same arrivals; of the best rate, what of it the
engine reaches; and of the engine, in a run each, requests in time at 1.2 to 5 times its goodput as
a part of it, the top class in time at twice the goodput when 30 % of the requests are of it, and
the median wait beyond the execution at a fifth. Then one JSON object a ratio, with its quantiles
over the workloads, and on stderr the table of them and the workloads where the engine does worst.

References know the true latencies of batches and the engine learns them, in the two seconds that
are not counted and while it goes on. Simulated time only: the machine changes no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.mix_worlds import Mix, mix
from benchmarks.options import say
from benchmarks.overload import top_part_in_time, two_classes
from benchmarks.results import commit
from scheduler.simulation.compare import POLICIES
from scheduler.simulation.engine import EngineSettings
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import Outcome, Policy, StaticSettings, engine, simulate, static

REFERENCES = ("just_enough", "symphony", "clockwork", "nexus", "shepherd", "static_tuned")
LOADS = (1.2, 2.0, 3.0, 5.0)
LOWEST_PART = 0.002  # of the capacity: below it a goodput is none
# A tuned static batcher is the best of these, each model's rows the most within a part of its
# objective.
STATIC_PARTS = (0.3, 0.5, 0.75)
STATIC_DELAYS = (0.0, 0.12)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75)
WORST_SHOWN = 12


def requests_of(each: Mix, requests: int) -> int:
    """Enough that a run lasts some seconds, no more than ten times as many."""
    return max(requests, min(round(4 * each.capacity_per_s), 10 * requests))


def static_settings(each: Mix) -> Iterator[Policy]:
    for part in STATIC_PARTS:
        for delay in STATIC_DELAYS:
            batchers = []
            for profile in each.profiles:
                objective_ms = profile.objective_ms
                rows = 1
                while rows < 64 and profile.latency.at(rows + 1) <= part * objective_ms:
                    rows += 1
                left_ms = objective_ms - profile.latency.at(rows)
                delay_ms = delay * objective_ms
                batchers.append(
                    StaticSettings(
                        rows, delay_ms=delay_ms, queue_timeout_ms=max(left_ms, delay_ms + 0.01)
                    )
                )
            yield static(*batchers)


def goodput_of(each: Mix, name: str, requests: int) -> float:
    """Requests/s over all models; 0: hardly any were in time at any rate."""
    counted = requests_of(each, requests)
    lowest = each.capacity_per_s * LOWEST_PART

    def found(policy: Policy, above: float) -> float:
        goodput = search(
            lambda rate: each.scenario(rate, counted),
            policy,
            from_per_s=each.capacity_per_s,
            to_per_s=above,
        )
        return goodput.per_s

    if name != "static_tuned":
        return found(POLICIES[name], lowest)
    best = 0.0
    for settings in static_settings(each):
        best = max(best, found(settings, max(best, lowest)))
    return best


@dataclass(frozen=True)
class Row:
    """What was found on one workload."""

    mix: Mix
    ours: float  # requests/s
    references: dict[str, float]
    in_time: dict[float, float] = field(default_factory=dict)  # by load, of the goodput
    top_class: float | None = None
    wait_ms: float | None = None

    @property
    def best(self) -> float:
        return max(self.references.values(), default=0.0)

    def ratios(self) -> dict[str, float]:
        """By name; those that say nothing are left out."""
        found = {}
        if self.references.get("just_enough"):
            found["of_just_enough"] = self.ours / self.references["just_enough"]
        if self.best:
            found["of_best_reference"] = self.ours / self.best
        found["of_capacity"] = self.ours / self.mix.capacity_per_s
        if self.ours:
            found |= {f"in_time_at_{load:g}": part for load, part in self.in_time.items()}
            if self.top_class is not None:
                found["top_class_in_time"] = self.top_class
        return found

    def to_json(self) -> str:
        line: dict[str, Any] = {
            "mix": self.mix.seed,
            "words": self.mix.words,
            "goodput": round(self.ours, 1),
            **{name: round(rate, 1) for name, rate in self.references.items()},
            **{name: round(ratio, 4) for name, ratio in self.ratios().items()},
        }
        if self.wait_ms is not None:
            line["wait_ms"] = round(self.wait_ms, 3)
        return json.dumps(line)


def all_with_two_classes(each: Mix) -> EngineSettings:
    """Of every model, on the executors that hold it."""
    setups = []
    for at, profile in enumerate(each.profiles):
        held = [
            e
            for e in range(each.executors)
            if e >= len(each.setups) or at in (each.setups[e].models or (at,))
        ]
        setups.append(two_classes(held, len(each.profiles) > 1, profile.objective_ms))
    return EngineSettings(models=tuple(setups))


def run_at(
    each: Mix, rate: float, requests: int, settings: EngineSettings | None = None
) -> Outcome:
    return simulate(each.scenario(rate, requests_of(each, requests)), engine(settings))


def top_class(each: Mix, rate: float, requests: int) -> float:
    """The part of the top class that is in time."""
    return top_part_in_time(run_at(each, rate, requests, all_with_two_classes(each)))


def look_at(seed: int, requests: int, policies: Sequence[str], overload: bool) -> Row:
    each = mix(seed)
    ours = goodput_of(each, "infersched", requests)
    row = Row(each, ours, {name: goodput_of(each, name, requests) for name in policies})
    if not overload or not ours:
        return row
    in_time = {load: load * run_at(each, load * ours, requests).attainment for load in LOADS}
    light = run_at(each, ours / 5, requests // 4).engine
    assert light is not None
    top = top_class(each, 2 * ours, requests)
    return replace(row, in_time=in_time, top_class=top, wait_ms=light.waits_ms[0.5])


def quantiles(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One object a ratio: its quantiles over the workloads that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row.ratios()))
    for name in names:
        found = sorted(row.ratios()[name] for row in rows if name in row.ratios())
        at = {q: found[min(int(q * len(found)), len(found) - 1)] for q in QUANTILES}
        yield {
            "figure": f"mixes_{name}",
            "value": round(at[0.5], 4),
            "quantiles": {f"{q:g}": round(value, 4) for q, value in at.items()},
            "workloads": len(found),
            "unit": "part",
            "better": "higher",
        }


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'':20}{'least':>8}" + "".join(f"{q:8.0%}" for q in QUANTILES[1:])]
    for found in quantiles(rows):
        figures = "".join(f"{value:8.3f}" for value in found["quantiles"].values())
        lines.append(f"{found['figure'].removeprefix('mixes_'):20}{figures}")
    lines.append("least of the best reference:")
    worst = sorted(rows, key=lambda row: row.ratios().get("of_best_reference", 9.0))
    for row in worst[:WORST_SHOWN]:
        best = max(row.references, key=row.references.__getitem__, default="")
        ratio = row.ratios().get("of_best_reference", 9.0)
        lines.append(
            f"{ratio:7.3f} {row.mix.seed:5} {row.ours:8.0f}/s, {best} {row.best:.0f}: "
            f"{row.mix.words}"
        )
    return "\n".join(lines)


def look_at_all(
    seeds: Sequence[int], requests: int, policies: Sequence[str], overload: bool, jobs: int
) -> Iterator[Row]:
    """In order, `jobs` at a time."""
    begun = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(look_at, seed, requests, policies, overload) for seed in seeds]
        try:
            for done, each in enumerate(started, 1):
                row = each.result()
                parts = " ".join(f"{name} {part:.3f}" for name, part in row.ratios().items())
                took = time.monotonic() - begun
                say(f"{done:4}/{len(seeds)} {took:6.0f} s  {row.mix.seed}: {parts}")
                yield row
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=1, help="the workloads from this number on")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--requests", type=int, default=20_000, help="counted in each run, or more")
    parser.add_argument("--policies", default=",".join(REFERENCES), help="to compare with")
    parser.add_argument("--no-overload", action="store_true", help="goodputs only")
    parser.add_argument("--short", action="store_true", help="only see whether it runs")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="workloads at a time; default: one a core")  # fmt: skip
    options = parser.parse_args()
    if options.count < 1 or options.requests < 100 or options.jobs < 1:
        parser.error("at least one workload, 100 requests and one job are needed")
    policies = [name for name in options.policies.split(",") if name]
    unknown = sorted(set(policies) - {*POLICIES, "static_tuned"})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(REFERENCES)}")
    count, requests = (2, 200) if options.short else (options.count, options.requests)
    seeds = list(range(options.first, options.first + count))
    head = {"benchmark": "mixes", "commit": commit(), "first": seeds[0], "count": count}
    print(json.dumps({**head, "requests": requests}), flush=True)
    rows = []
    for row in look_at_all(seeds, requests, policies, not options.no_overload, options.jobs):
        rows.append(row)
        print(row.to_json(), flush=True)
    for found in quantiles(rows):
        print(json.dumps(found), flush=True)
    say(table(rows))


if __name__ == "__main__":
    main()
