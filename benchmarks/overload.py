"""The engine under noise, overload and light load, simulated: what the virtual clock can show.

    python -m benchmarks overload

Workloads of scheduler.simulation; nothing is given to the engine, the first two seconds, in which
it learns, are not counted. Medians over `--rounds` seeds; the worst workload counts.

* goodput with 10 % lognormal noise of execution times, as a part of that without (A, C, F)
* requests in time at two and three times the goodput load, as a part of the goodput (A, C, F)
* the top class in time when at twice the goodput load 30 % of the requests are of it (A, C, F)
* median wait, beyond the execution, at a fifth of the goodput load (A, C, F)
* false refusals at the goodput load of A: 1,000 refused requests, each in a run of its own in which
  only it is admitted all the same; false when it then is in time and no other becomes late that
  arrived before its deadline
* requests that the simulator puts through the engine a second, the slowest of all workloads at 0.9
  and twice the known goodput; CPU time, the best of the rounds
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median

from benchmarks.options import Options, say
from benchmarks.results import Figure
from scheduler.simulation.engine import FATES, EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import Outcome, Scenario, engine, simulate
from scheduler.simulation.workloads import WORKLOADS, Workload, known

LETTERS = ("A", "C", "F")
NOISE = 0.1
TOP_PART = 0.3
SAMPLES = 1_000
IN_TIME, REFUSED = FATES.index("in_time"), FATES.index("refused")


@dataclass(frozen=True)
class Size:
    """How much is simulated."""

    requests: int
    seeds: tuple[int, ...]
    samples: int

    @classmethod
    def of(cls, options: Options) -> Size:
        if options.short:
            return cls(requests=500, seeds=(options.seed,), samples=5)
        seeds = tuple(range(options.seed, options.seed + options.rounds))
        return cls(requests=50_000, seeds=seeds, samples=SAMPLES)


def goodput(workload: Workload, size: Size, noise: float = 0.0) -> float:
    """Requests/s, the median over the seeds; 0: none was found."""

    def at(rate: float, seed: int) -> Scenario:
        scenario = workload.scenario(rate, seed=seed, requests=size.requests)
        return replace(scenario, noise_sigma=noise)

    return median(
        search(
            lambda rate, seed=seed: at(rate, seed),  # type: ignore[misc]
            engine(),
            from_per_s=workload.capacity_per_s,
            to_per_s=workload.capacity_per_s / 1000,
        ).per_s
        for seed in size.seeds
    )


def outcomes(
    workload: Workload, rate: float, size: Size, settings: EngineSettings | None = None
) -> Iterator[Outcome]:
    """One run a seed."""
    for seed in size.seeds:
        scenario = workload.scenario(rate, seed=seed, requests=size.requests)
        yield simulate(scenario, engine(settings))


def two_classes(workload: Workload) -> EngineSettings:
    """Every model with a top class of TOP_PART of its requests and one below."""
    shared = workload.models > 1
    setup = ModelSetup(
        placements=tuple(Placement(e, 1, e if shared else None) for e in range(workload.executors)),
        classes=(RequestClass(TOP_PART, priority=1), RequestClass(1 - TOP_PART, priority=2)),
        slo_ms=workload.objective_ms,
        priority_levels=2,
        default_priority=2,
    )
    return EngineSettings(models=(setup,) * workload.models)


def top_class_in_time(workload: Workload, rate: float, size: Size) -> float:
    """The part of the top class that is in time, the median over the seeds."""
    parts = []
    for outcome in outcomes(workload, rate, size, two_classes(workload)):
        assert outcome.engine is not None
        top = [kinds[0] for kinds in outcome.engine.classes]
        offered = sum(kind.offered for kind in top)
        parts.append(sum(kind.in_time for kind in top) / max(offered, 1))
    return median(parts)


def wait_ms(workload: Workload, rate: float, size: Size) -> float:
    waits = []
    for outcome in outcomes(workload, rate, size):
        assert outcome.engine is not None
        waits.append(outcome.engine.waits_ms[0.5])
    return median(waits)


def refusals(workload: Workload, rate: float, size: Size, seed: int, wanted: int) -> list[bool]:
    """Whether each of at most `wanted` refused requests of one run was refused wrongly."""
    scenario = workload.scenario(rate, seed=seed, requests=min(size.requests, 20_000))
    base = simulate(scenario, engine(EngineSettings(keep_fates=True))).engine
    assert base is not None
    refused = [n for n, fate in enumerate(base.fates) if fate == REFUSED]
    # Those of the warm-up tell nothing.
    warm_up_ns = round(scenario.warm_up_ms * 1e6)
    refused = [n for n in refused if base.arrivals_ns[n] >= warm_up_ns]
    objective_ns = round(workload.objective_ms * 1e6)
    found = []
    for ordinal in Random(seed).sample(refused, min(wanted, len(refused))):
        deadline_ns = base.arrivals_ns[ordinal] + objective_ns
        settings = EngineSettings(
            keep_fates=True, forced=ordinal, stop_ns=deadline_ns + objective_ns + 1
        )
        other = simulate(scenario, engine(settings)).engine
        assert other is not None
        harmed = any(
            before == IN_TIME and after != IN_TIME
            for before, after, at in zip(base.fates, other.fates, other.arrivals_ns, strict=False)
            if at <= deadline_ns
        )
        found.append(other.fates[ordinal] == IN_TIME and not harmed)
    return found


def false_refusals(workload: Workload, rate: float, size: Size) -> float:
    """The part of sampled refusals that was wrong; over as many seeds as it takes, at most 40."""
    found: list[bool] = []
    for seed in range(size.seeds[0], size.seeds[0] + 40):
        if len(found) < size.samples:
            found += refusals(workload, rate, size, seed, size.samples - len(found))
    say(f"{len(found)} refusals sampled at {rate:.0f} requests/s, {sum(found)} false")
    return sum(found) / max(len(found), 1)


def simulated_per_s(letter: str, factor: float, size: Size) -> float:
    """Requests a CPU second, warm-up included, the best of the seeds' runs."""
    rate = factor * known(letter, "just_enough")[0]
    best = 0.0
    for seed in size.seeds:
        scenario = WORKLOADS[letter].scenario(rate, seed=seed, requests=size.requests)
        begun = time.process_time()
        simulate(scenario, engine())
        took = time.process_time() - begun
        best = max(best, (scenario.requests + rate * scenario.warm_up_ms / 1000) / took)
    return best


def run(options: Options) -> list[Figure]:
    size = Size.of(options)
    found: dict[str, list[float]] = {name: [] for name in ("noise", "overload", "top", "wait")}
    base: dict[str, float] = {}
    for letter in LETTERS:
        workload = WORKLOADS[letter]
        rate = base[letter] = goodput(workload, size)
        noisy = goodput(workload, size, NOISE)
        served = [
            factor * median(o.attainment for o in outcomes(workload, factor * rate, size))
            for factor in (2, 3)
        ]
        found["noise"].append(noisy / max(rate, 1))
        found["overload"] += served
        found["top"].append(top_class_in_time(workload, 2 * rate, size))
        found["wait"].append(wait_ms(workload, rate / 5, size))
        say(
            f"{letter}: goodput {rate:.0f}/s, with noise {noisy:.0f}/s; in time at 2x and 3x "
            f"{served[0]:.3f} and {served[1]:.3f} of it; top class {found['top'][-1]:.4f}; "
            f"median wait at a fifth {found['wait'][-1]:.3f} ms"
        )
    problem = "" if all(base.values()) else "no goodput was found"
    wrong = false_refusals(WORKLOADS["A"], base["A"], size) if base["A"] else 0.0
    simulated = min(
        (simulated_per_s(letter, factor, size), letter, factor)
        for letter in WORKLOADS
        for factor in (0.9, 2)
    )
    say("simulated at {:.0f} requests/s, the slowest: {} at {}x".format(*simulated))
    return [
        Figure.of("noise_part_of_goodput", min(found["noise"]), problem),
        Figure.of("overload_part_of_goodput", min(found["overload"]), problem),
        Figure.of("overload_top_class_in_time", min(found["top"]), problem),
        Figure.of("added_wait_median", max(found["wait"]), problem),
        Figure.of("false_refusals", wrong, problem),
        Figure.of("simulated_requests", simulated[0] / 1e6),
    ]
