"""Two models of different speed and two priorities on one executor, on a real Triton.

Both models hold one process-shared lock while they sleep, as models on one GPU do. The figure is
the share of requests in time of the class that fares worst, at twice the goodput that the simulator
predicts for the mix without priorities: ours, which is told which backend is one executor, against
the best of Triton's batcher with priority levels, queue time-outs and its rate limiter.

Room for the top classes at every moment and for the worst class is not to be had at once: a fluid
model of one executor at 596 requests/s, its batch sizes and their order tried out, gives the worst
class at most .86 without precedence, .72 with nine tenths of the top classes in time, .54 with
99 %. So there are two figures. Untuned, ours is told objectives and priority levels and nothing
else: more than nine tenths of the top classes are in time then. Tuned, it is also told that the
models are worth the same and how much of the top classes must be in time before anything else is.
Both are compared with the best of Triton's settings: all are tried once, and the best few as long
and as often as ours. They do not take turns with it: ours runs all its rounds first, untuned and
tuned in turns, then Triton. The output tells the classes of every load, the result those of the
median rounds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.loading import first_problem
from benchmarks.options import Options, say
from benchmarks.results import Figure
from benchmarks.slo_compared import Way, compared, finalists, median_round, ranked
from benchmarks.slo_servers import (
    SETTLED_S,
    Batcher,
    Measured,
    Offered,
    Sleeper,
    TunableTriton,
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
# Of the scheduler, by model, beyond slo and priority_levels. Tuned: models weighed against each
# other, and the part of the top classes that is in time before others are.
UNTUNED: dict[str, Any] = {}
TUNED: dict[str, Any] = {"value": 1, "priorities": {"1": {"attainment": 0.6}}}
# What Triton's round trip and the lock add to a batch, for the prediction.
OVERHEAD_MS = 0.7
# Of Triton's worst class; a ratio to less would be one to nothing.
LEAST_IN_TIME = 0.01
FIGURES = ("slo_shared_worst_class_ratio", "slo_shared_worst_class_ratio_tuned")
# Of the rate limiter: one resource, which an execution of either model takes.
RESOURCES = [{"name": "device", "global": True, "count": 1}]
# The least time of each load of what is compared.
COMPARED_S = 6.0


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
    longer = options
    if not options.short:
        longer = replace(options, seconds=max(options.seconds, COMPARED_S))
    with tempfile.TemporaryDirectory(prefix="infersched-shared-") as directory:
        repository, lock = Path(directory) / "models", Path(directory) / "device"
        for model in SHARES:
            model.write(repository, model.name, lock)
        in_turns = [
            [through_scheduler(repository, rate, longer, turn, keys) for keys in (UNTUNED, TUNED)]
            for turn in range(rounds)
        ]
        # Of arrivals that no round has.
        tried = by_triton(repository, grid, rate, options, [rounds])
        near = finalists(tried, worst_class)
        theirs = by_triton(repository, near, rate, longer, range(rounds))
    problem = first_problem(chain(*chain(*in_turns), *(loads for _, loads in tried + theirs)))
    setting, loads = ranked(theirs, worst_class)[0]
    triton = way(f"Triton, best of {len(grid)} settings ({setting})", loads)
    return [
        compared(
            name,
            way(f"worst class in time, the scheduler, told {told_of(keys)}", ours),
            triton,
            LEAST_IN_TIME,
            problem,
        )
        for name, keys, ours in zip(
            FIGURES, (UNTUNED, TUNED), zip(*in_turns, strict=True), strict=True
        )
    ]


def way(name: str, rounds: Sequence[Sequence[Measured]]) -> Way:
    """With what every class has in time in the median round."""
    middle = median_round(rounds, worst_class)
    parts = (
        f"{offered.model} {offered.workload} {load.attainment:.4g}"
        for offered, load in zip(classes(1.0), middle, strict=True)
    )
    worst = [worst_class(loads) for loads in rounds]
    return Way(name, worst, f"by class: {', '.join(parts)}")


def told_of(keys: dict[str, Any]) -> str:
    """What the scheduler is told of each model, in words."""
    told = ", ".join(f"{key} {json.dumps(value)}" for key, value in keys.items())
    return "slo and priority_levels" + (f", {told}" if told else " only")


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
        Offered(
            model.name, rate_per_s * share * part, model.objective_ms, f"priority{level}", SETTLED_S
        )
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
    keys: dict[str, Any],
) -> list[Measured]:
    """`keys` are those of both models beyond objective and priority levels."""
    config: dict[str, Any] = {
        "backend": {"executor": "device"},
        "models": {
            model.name: {"slo": f"{model.objective_ms:g}ms", "priority_levels": 2, **keys}
            for model in SHARES
        },
    }
    with tunable_triton(repository) as triton:
        for model in SHARES:
            triton.load(model.name, None)
        with scheduler_before(triton, config) as address:
            loads = offer(triton, address, classes(rate), options, turn)
    told(f"scheduler, told {told_of(keys)}", loads)
    return loads


def by_triton(
    repository: Path,
    grid: Sequence[Setting],
    rate: float,
    options: Options,
    turns: Sequence[int],
) -> list[tuple[Setting, list[Measured]]]:
    """Every setting in each turn, in one Triton with its rate limiter off and one with it on."""
    arguments = ["--rate-limit=execution_count", "--rate-limit-resource=device:1"]
    found = []
    for limited in (False, True):
        settings = [setting for setting in grid if bool(setting.limiter) is limited]
        if not settings:
            continue
        with tunable_triton(repository, *(arguments if limited else [])) as triton:
            for turn in turns:
                for setting in settings:
                    load_setting(triton, setting)
                    loads = offer(triton, triton.address, classes(rate), options, turn)
                    told(str(setting), loads)
                    found.append((setting, loads))
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
