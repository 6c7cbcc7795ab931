"""Two models of different speed and two priorities on one executor, on a real Triton.

Both models hold one process-shared lock while they sleep, as models on one GPU do. The figure is
the share of requests in time of the class that fares worst, at twice the goodput that the simulator
predicts for the mix without priorities: ours, which is told which backend is one executor, against
the best of Triton's batcher with priority levels, queue time-outs and its rate limiter.

Room for the top classes at every moment and for the worst class is not to be had at once: a fluid
model of one executor, its batch sizes and their order tried out, gives the worst class at most .86
without precedence, .72 with nine tenths of the top classes in time, .54 with 99 %. So ours is told
that the models are worth the same and how much of the top classes must be in time before anything
else is. Without that they nearly all
are: told beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import Options, say
from benchmarks.results import Figure
from benchmarks.slo_servers import (
    Batcher,
    Measured,
    Offered,
    Sleeper,
    TunableTriton,
    first_problem,
    offer,
    scheduler_before,
    tunable_triton,
)
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine

QUICK = Sleeper("quick", 0.5, 3.0, objective_ms=30.0, instances=2)
HEAVY = Sleeper("heavy", 2.5, 12.0, objective_ms=80.0, instances=2)
# Of the requests.
SHARES = {QUICK: 0.8, HEAVY: 0.2}
TOP_SHARE = 0.3
OVERLOAD = 2.0
# Of the top classes, in time before others are.
TOP_ATTAINMENT = 0.6
# What Triton's round trip and the lock add to a batch, for the prediction.
OVERHEAD_MS = 0.7
# Of the rate limiter: one resource, which an execution of either model takes.
RESOURCES = [{"name": "device", "global": True, "count": 1}]


@dataclass(frozen=True)
class Setting:
    """Triton's batchers of both models, without or with its rate limiter and the heavy one's turns.

    The rate limiter gives the heavy model one turn in `limiter` of the quick one's; 0 is off.
    """

    quick: Batcher
    heavy: Batcher
    limiter: int

    def __str__(self) -> str:
        limiter = f", rate limiter 1:{self.limiter}" if self.limiter else ""
        return f"quick {self.quick}, heavy {self.heavy}{limiter}"


def settings() -> list[Setting]:
    """The grid: sizes, delays, time-outs that leave room for a batch, priorities, rate limiter."""
    found = []
    for limiter in (0, 1, 4):
        for quick_rows, heavy_rows in ((64, 64), (32, 12), (24, 8), (16, 4)):
            for timed in (False, True):
                quick, heavy = (
                    Batcher(
                        rows,
                        timeout_ms=model.objective_ms / 2 if timed else 0.0,
                        priorities=True,
                    )
                    for model, rows in ((QUICK, quick_rows), (HEAVY, heavy_rows))
                )
                found.append(Setting(quick, heavy, limiter))
    delayed = replace(found[4], quick=replace(found[4].quick, delay_ms=5.0),
                      heavy=replace(found[4].heavy, delay_ms=10.0))  # fmt: skip
    return [*found, delayed]


def run(options: Options) -> list[Figure]:
    grid = settings()[19:20] if options.short else settings()
    requests = 5_000 if options.short else 40_000
    rate = OVERLOAD * predicted(requests)
    say(f"two models on one executor: {rate:.0f} requests/s are offered")
    rounds = 1 if options.short else max(options.rounds, 3)
    with tempfile.TemporaryDirectory(prefix="infersched-shared-") as directory:
        repository, lock = Path(directory) / "models", Path(directory) / "device"
        for model in SHARES:
            model.write(repository, model.name, lock)
        ours = [
            through_scheduler(repository, rate, options, turn, TOP_ATTAINMENT)
            for turn in range(rounds)
        ]
        strict = through_scheduler(repository, rate, options, rounds)
        theirs = [
            loads
            for limited in (False, True)
            for loads in by_triton(
                repository, [s for s in grid if bool(s.limiter) is limited], limited, rate, options
            )
        ]
    problem = first_problem([load for loads in (*ours, strict, *theirs) for load in loads])
    worst = median(worst_class(loads) for loads in ours)
    best = max(worst_class(loads) for loads in theirs)
    say(f"worst class in time: {worst:.3f}, by Triton at best {best:.3f} {problem}")
    return [Figure.of("slo_shared_worst_class_ratio", worst / max(best, 0.001), problem)]


def predicted(requests: int) -> float:
    """Requests/s of the mix that the engine serves in time on one executor, by the simulator."""

    def scenario(rate_per_s: float) -> Scenario:
        mix = [
            Model(
                Latency(model.alpha_ms, model.beta_ms + OVERHEAD_MS),
                model.objective_ms,
                Arrivals(rate_per_s=rate_per_s * share),
            )
            for model, share in SHARES.items()
        ]
        return Scenario(mix, 1, requests=requests)

    return search(scenario, engine(), from_per_s=2_000.0, to_per_s=10.0).per_s or 100.0


def classes(rate_per_s: float) -> list[Offered]:
    """Each model's requests of the first and of the second priority."""
    return [
        Offered(model.name, rate_per_s * share * part, model.objective_ms, f"priority{level}")
        for model, share in SHARES.items()
        for level, part in ((1, TOP_SHARE), (2, 1 - TOP_SHARE))
    ]


def worst_class(loads: Sequence[Measured]) -> float:
    return min(load.attainment for load in loads)


def through_scheduler(
    repository: Path,
    rate: float,
    options: Options,
    turn: int,
    top_attainment: float | None = None,
) -> list[Measured]:
    """`top_attainment` None: the top classes go before the others without end.

    The models are weighed against each other: the default is that they are not.
    """
    levels: dict[str, Any] = {"priority_levels": 2, "value": 1}
    if top_attainment is not None:
        levels["priorities"] = {"1": {"attainment": top_attainment}}
    config: dict[str, Any] = {
        "backend": {"executor": "device"},
        "models": {model.name: {"slo": f"{model.objective_ms:g}ms", **levels} for model in SHARES},
    }
    with tunable_triton(repository) as triton:
        for model in SHARES:
            triton.load(model.name, None)
        with scheduler_before(triton, config) as address:
            loads = offer(triton, address, classes(rate), options, turn)
    told(f"scheduler, top classes first up to {top_attainment or 1:g}", loads)
    return loads


def by_triton(
    repository: Path, grid: Sequence[Setting], limited: bool, rate: float, options: Options
) -> list[list[Measured]]:
    """Every setting, in one Triton with its rate limiter on or off."""
    if not grid:
        return []
    arguments = ["--rate-limit=execution_count", "--rate-limit-resource=device:1"]
    found = []
    with tunable_triton(repository, *(arguments if limited else [])) as triton:
        for setting in grid:
            load_setting(triton, setting)
            loads = offer(triton, triton.address, classes(rate), options)
            told(str(setting), loads)
            found.append(loads)
    return found


def load_setting(triton: TunableTriton, setting: Setting) -> None:
    for model, batcher, turns in (
        (QUICK, setting.quick, 1),
        (HEAVY, setting.heavy, setting.limiter),
    ):
        limiter = {"resources": RESOURCES, "priority": turns} if setting.limiter else None
        triton.load(model.name, batcher, limiter)


def told(name: str, loads: Sequence[Measured]) -> None:
    cells = "  ".join(f"{load.attainment:6.1%}" for load in loads)
    say(f"  {cells}  {name} {first_problem(loads)}")
