"""The engine under noise, overload and light load, simulated: what the virtual clock can show.

    python -m benchmarks overload

Workloads of scheduler.simulation; nothing is given to the engine, the first two seconds, in which
it learns, are not counted. Medians over `--rounds` seeds; the worst workload counts.

* goodput with 10 % lognormal noise of execution times, as a part of that without (A, C, F);
  `python -m benchmarks.noise` gives it by workload and seed
* requests in time at two and three times the goodput load, as a part of the goodput (A, C, F)
* the top class in time when at twice the goodput load 30 % of the requests are of it (A, C, F)
* median wait, beyond the execution, at a fifth of the goodput load (A, C, F)
* false refusals at the goodput load of A, C and F: 1,000 refused requests, each in a run of its own
  in which only it is admitted all the same; false when it then is in time and no other becomes late
  that arrived before its deadline. Where models share executors hardly any are refused: all those
  of forty runs are taken then. The figure is of all samples, the result says how many each workload
  has: nearly all are of A
* wrong give-ups: what was admitted and is given up in the queue is no refusal. So that the one is
  not had at the price of the other: the part of all requests that is given up wrongly, by 200
  samples, wrong in the same sense: kept until its deadline, it is in time and no other becomes late
* requests that the simulator puts through the engine a second, the slowest of all workloads at 0.9
  and twice the known goodput; CPU time, the best of the rounds
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from statistics import median

from benchmarks.noise import LETTERS, NOISE, goodput
from benchmarks.options import Options, say
from benchmarks.results import Figure
from scheduler.simulation.engine import FATES, EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import Outcome, engine, simulate
from scheduler.simulation.workloads import WORKLOADS, Workload, known

TOP_PART = 0.3
SAMPLES = 1_000
IN_TIME, REFUSED, EXPIRED = (FATES.index(fate) for fate in ("in_time", "refused", "expired"))
SEEDS_MAX = 40


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


def outcomes(
    workload: Workload, rate: float, size: Size, settings: EngineSettings | None = None
) -> Iterator[Outcome]:
    """One run a seed."""
    for seed in size.seeds:
        scenario = workload.scenario(rate, seed=seed, requests=size.requests)
        yield simulate(scenario, engine(settings))


def two_classes(executors: Iterable[int], shared: bool, objective_ms: float) -> ModelSetup:
    """A model with a top class of TOP_PART of its requests and one below."""
    return ModelSetup(
        placements=tuple(Placement(e, 1, e if shared else None) for e in executors),
        classes=(RequestClass(TOP_PART, priority=1), RequestClass(1 - TOP_PART, priority=2)),
        slo_ms=objective_ms,
        priority_levels=2,
        default_priority=2,
    )


def top_part_in_time(outcome: Outcome) -> float:
    """Of the first classes of all models."""
    assert outcome.engine is not None
    top = [kinds[0] for kinds in outcome.engine.classes]
    return sum(kind.in_time for kind in top) / max(sum(kind.offered for kind in top), 1)


def top_class_in_time(workload: Workload, rate: float, size: Size) -> float:
    """The part of the top class that is in time, the median over the seeds."""
    executors, shared = range(workload.executors), workload.models > 1
    setup = two_classes(executors, shared, workload.objective_ms)
    settings = EngineSettings(models=(setup,) * workload.models)
    return median(map(top_part_in_time, outcomes(workload, rate, size, settings)))


def wait_ms(workload: Workload, rate: float, size: Size) -> float:
    waits = []
    for outcome in outcomes(workload, rate, size):
        assert outcome.engine is not None
        waits.append(outcome.engine.waits_ms[0.5])
    return median(waits)


@dataclass
class Denied:
    """Requests that were not answered for reasons of load, in runs of one workload."""

    fate: int  # REFUSED at arrival or EXPIRED: given up in the queue
    total: int = 0
    offered: int = 0
    wrongly: list[bool] = field(default_factory=list)  # of each sampled one

    @property
    def wrong_part(self) -> float:
        """Of all requests offered, by the samples."""
        return self.total / max(self.offered, 1) * sum(self.wrongly) / max(len(self.wrongly), 1)

    def __str__(self) -> str:
        part = self.total / max(self.offered, 1)
        return f"{part:.2%}, of {len(self.wrongly)} sampled {sum(self.wrongly)} wrongly"


def look_at(
    denied: Denied, workload: Workload, rate: float, requests: int, seed: int, wanted: int
) -> None:
    """Adds one run, and at most `wanted` samples of it."""
    scenario = workload.scenario(rate, seed=seed, requests=requests)
    base = simulate(scenario, engine(EngineSettings(keep_fates=True))).engine
    assert base is not None
    # Those of the warm-up tell nothing.
    first = bisect_left(base.arrivals_ns, round(scenario.warm_up_ms * 1e6))
    found = [n for n in range(first, len(base.fates)) if base.fates[n] == denied.fate]
    denied.total += len(found)
    denied.offered += len(base.fates) - first
    objective_ns = round(workload.objective_ms * 1e6)
    for ordinal in Random(seed).sample(found, min(wanted, len(found))):
        deadline_ns = base.arrivals_ns[ordinal] + objective_ns
        settings = EngineSettings(
            keep_fates=True,
            forced=ordinal if denied.fate == REFUSED else None,
            kept=ordinal if denied.fate == EXPIRED else None,
            stop_ns=deadline_ns + objective_ns + 1,
        )
        other = simulate(scenario, engine(settings)).engine
        assert other is not None
        harmed = any(
            before == IN_TIME and after != IN_TIME
            for before, after, at in zip(base.fates, other.fates, other.arrivals_ns, strict=False)
            if at <= deadline_ns
        )
        denied.wrongly.append(other.fates[ordinal] == IN_TIME and not harmed)


def denied_wrongly(
    fate: int, workload: Workload, rate: float, size: Size, samples: int | None = None
) -> Denied:
    """Over as many seeds as it takes, at most SEEDS_MAX."""
    denied = Denied(fate)
    wanted = size.samples if samples is None else samples
    for seed in range(size.seeds[0], size.seeds[0] + SEEDS_MAX):
        missing = wanted - len(denied.wrongly)
        if missing <= 0:
            break
        look_at(denied, workload, rate, min(size.requests, 20_000), seed, missing)
    return denied


def wrong_denials(goodputs: dict[str, float], size: Size, problem: str) -> list[Figure]:
    """False refusals and wrong give-ups at these requests/s by workload."""
    refused, given_up = {}, {}
    for letter, rate in goodputs.items():
        if not rate:
            continue
        workload = WORKLOADS[letter]
        refused[letter] = denied_wrongly(REFUSED, workload, rate, size)
        samples = max(size.samples // 5, 1)
        given_up[letter] = denied_wrongly(EXPIRED, workload, rate, size, samples)
        say(f"{letter} at {rate:.0f}/s: refused {refused[letter]}; given up {given_up[letter]}")
    wrongly = [wrong for denied in refused.values() for wrong in denied.wrongly]
    worst = max((denied.wrong_part for denied in given_up.values()), default=0.0)
    return [
        Figure.of(name, value, problem, "; ".join(f"{at}: {found[at]}" for at in found))
        for name, value, found in (
            ("false_refusals", sum(wrongly) / max(len(wrongly), 1), refused),
            ("wrong_give_ups", worst, given_up),
        )
    ]


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
        rate, noisy = (
            median(goodput(workload, seed, size.requests, noise) for seed in size.seeds)
            for noise in (0.0, NOISE)
        )
        base[letter] = rate
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
    wrong = wrong_denials(base, size, problem)
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
        *wrong,
        Figure.of("simulated_requests", simulated[0] / 1e6),
    ]
