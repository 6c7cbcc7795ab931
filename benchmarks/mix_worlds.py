"""Random workloads: a number gives executors, models, their loads, and what goes wrong.

Unlike the workloads of scheduler.simulation these are not chosen: models of a millisecond beside
models of a second, measured steps beside straight lines, tight and loose objectives, popularities
from even to steep, arrivals from steady to those of a day or of a crowd, execution times that
scatter, drift or double for a while, executors that are unequal or hold some of the models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

from scheduler.simulation.scenario import Arrivals, Executor, Latency, Model, Scenario, Trouble

EXECUTORS = (1, 2, 3, 4, 8, 16, 32)
MODELS_MAX = 50
ROWS_MAX = 128  # of a batch, as the engine's default
ALPHA_MS = (0.1, 20.0)
BETA_PARTS = (0.3, 12.0)  # of alpha
OBJECTIVE_MS = (10.0, 1000.0)
OBJECTIVE_TIMES = (2.0, 20.0)  # what one row takes
WARM_UP_MS = 2000.0
PATTERN_STEP_MS = 100.0
# Steps of a series are so many times as many as the counted requests need at their mean rate.
PATTERN_SPARE = 1.3


@dataclass(frozen=True)
class Profile:
    """A model of a mix, its load apart."""

    latency: Latency
    objective_ms: float
    weight: float  # of its arrivals
    arrivals: Arrivals  # at any rate
    pattern: tuple[float, ...] = ()  # of its rate by step, mean 1, repeated

    @property
    def busy_ms(self) -> float:
        """The least that a request in time takes of an executor."""
        sizes = range(1, ROWS_MAX + 1)
        holds = ((rows, self.latency.at(rows)) for rows in sizes)
        fit = [ms / rows for rows, ms in holds if rows == 1 or ms <= self.objective_ms]
        return min(fit)


@dataclass(frozen=True)
class Mix:
    """One random workload; `words` says what is special about it."""

    seed: int
    words: str
    executors: int
    profiles: tuple[Profile, ...]
    setups: tuple[Executor, ...] = ()
    noise_sigma: float = 0.0
    straggling: float = 0.0
    drift_per_s: float = 0.0

    @property
    def capacity_per_s(self) -> float:
        """No policy has more in time, whatever the arrivals."""
        weights = sum(each.weight for each in self.profiles)
        busy_ms = sum(each.weight * each.busy_ms for each in self.profiles) / weights
        speeds = [setup.speed for setup in self.setups]
        speed = sum(speeds) + self.executors - len(speeds)
        return 1000 * speed / busy_ms

    def scenario(self, rate_per_s: float, requests: int) -> Scenario:
        """At `rate_per_s` over all models."""
        weights = sum(each.weight for each in self.profiles)
        models = []
        for each in self.profiles:
            rate = rate_per_s * each.weight / weights
            arrivals = each.arrivals.scaled(rate)
            if each.pattern:
                lasts_ms = WARM_UP_MS + 1000 * requests / rate_per_s * PATTERN_SPARE
                steps = math.ceil(lasts_ms / PATTERN_STEP_MS)
                turns = -(-steps // len(each.pattern))
                rates = tuple(rate * part for part in each.pattern) * turns
                arrivals = Arrivals("series", rates_per_s=rates, step_ms=PATTERN_STEP_MS)
            models.append(Model(each.latency, each.objective_ms, arrivals))
        return Scenario(
            models,
            self.executors,
            setups=self.setups,
            noise_sigma=self.noise_sigma,
            straggling=self.straggling,
            drift_per_s=self.drift_per_s,
            seed=self.seed,
            warm_up_ms=WARM_UP_MS,
            requests=requests,
        )


def mix(seed: int) -> Mix:
    """The workload of this number."""
    rng = Random(seed)
    executors = rng.choice(EXECUTORS)
    count = min(round(_between(rng, (1, MODELS_MAX))), MODELS_MAX)
    zipf = rng.uniform(0.5, 1.5)
    alike = rng.random() < 0.3
    words, arrivals = _load(rng)
    one = _model(rng)
    profiles = []
    common = arrivals(rng)
    together = rng.random() < 0.5
    for rank in range(count):
        latency, objective_ms = one if alike else _model(rng)
        process, pattern = common if together else arrivals(rng)
        # Popularity is of the work that models bring: else slow ones would be all there is.
        work = 1.0 if alike else latency.at(8) / 8
        weight = (rank + 1) ** -zipf / work ** rng.choice((0, 0.5, 1))
        profiles.append(Profile(latency, objective_ms, weight, process, pattern))
    said = [f"{executors} executors", f"{count} {'alike' if alike else 'mixed'}", words]
    if words != "poisson" and count > 1:
        said.append("together" if together else "apart")
    trouble = rng.choices((_quiet, _noise, _tail, _drift, _doubled, _unequal, _partial),
                          (9, 3, 2, 2, 2, 2, 2))[0]  # fmt: skip
    changed, also = trouble(rng, executors, count)
    if also:
        said.append(also)
    return Mix(seed, ", ".join(said), executors, tuple(profiles), **changed)


def _between(rng: Random, ends: tuple[float, float]) -> float:
    """Evenly by its logarithm."""
    return math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1])))


def _model(rng: Random) -> tuple[Latency, float]:
    alpha = _between(rng, ALPHA_MS)
    beta = alpha * _between(rng, BETA_PARTS)
    latency = Latency(alpha, beta)
    shape = rng.random()
    if shape < 0.15:  # kernels of eight rows
        latency = Latency(table_ms=tuple(alpha * -(-b // 8) * 8 + beta for b in range(1, 129)))
    elif shape < 0.3:  # small ones underuse the device: flat, then straight
        bend = rng.choice((4, 8, 16))
        latency = Latency(table_ms=tuple(alpha * max(b, bend) + beta for b in range(1, 129)))
    one_ms = latency.at(1)
    wanted = max(one_ms * _between(rng, OBJECTIVE_TIMES), OBJECTIVE_MS[0])
    return latency, max(min(wanted, OBJECTIVE_MS[1]), 1.5 * one_ms)


# --- Arrivals ------------------------------------------------------------------------------------

Load = tuple[Arrivals, tuple[float, ...]]


def _load(rng: Random) -> tuple[str, Callable[[Random], Load]]:
    """Words and what makes the arrivals of one model."""
    poisson = Arrivals(rate_per_s=1)
    kind = rng.choices(("poisson", "gamma", "on-off", "steps", "daily", "spikes", "idle", "bursts"),
                       (8, 3, 2, 2, 2, 2, 2, 2))[0]  # fmt: skip
    if kind == "gamma":
        shape = _between(rng, (0.05, 1))
        process = Arrivals("gamma", 1, shape=shape)
        return f"gamma {shape:.2f}", lambda _: (process, ())
    if kind == "on-off":
        on_ms, off_ms = _between(rng, (50, 2000)), _between(rng, (50, 1000))
        process = Arrivals("on_off", 1, on_mean_ms=on_ms, off_mean_ms=off_ms)
        return f"on {on_ms:.0f} off {off_ms:.0f} ms", lambda _: (process, ())
    patterns: dict[str, Callable[[Random], Sequence[float]]] = {
        "steps": _steps,
        "daily": _daily,
        "spikes": _spikes,
        "idle": _idle,
        "bursts": _bursts,
    }
    if kind == "poisson":
        return kind, lambda _: (poisson, ())
    return kind, lambda rng: (poisson, _mean_one(patterns[kind](rng)))


def _mean_one(rates: Sequence[float]) -> tuple[float, ...]:
    mean = sum(rates) / len(rates)
    return tuple(rate / mean for rate in rates)


def _steps(rng: Random) -> Sequence[float]:
    """Another rate every half second to two seconds."""
    rates: list[float] = []
    for _ in range(12):
        rates += [rng.uniform(0.4, 1.6)] * rng.randint(5, 20)
    return rates


def _daily(rng: Random) -> Sequence[float]:
    """A day in so many seconds."""
    steps = rng.randint(40, 200)
    turn = rng.random()
    return [1 + 0.7 * math.sin(2 * math.pi * (at / steps + turn)) for at in range(steps)]


def _spikes(rng: Random) -> Sequence[float]:
    """Steady, but for moments of five times as much and as many of next to nothing."""
    rates = [1.0] * rng.randint(60, 150)
    for height in (5.0, 0.1) * rng.randint(1, 3):
        at = rng.randrange(len(rates) - 5)
        rates[at : at + rng.randint(1, 5)] = [height] * rng.randint(1, 5)
    return rates


def _idle(rng: Random) -> Sequence[float]:
    """Models that go and return."""
    rates = [0.0] * rng.randint(10, 80) + [1.0] * rng.randint(30, 100)
    turn = rng.randrange(len(rates))
    return rates[turn:] + rates[:turn]


def _bursts(rng: Random) -> Sequence[float]:
    """A random walk of the rate, as recorded traces show it."""
    moves = accumulate((rng.gauss(0, 0.35) for _ in range(100)), lambda at, move: 0.9 * at + move)
    return [math.exp(at) for at in moves]


# --- What goes wrong -----------------------------------------------------------------------------

Changed = tuple[dict[str, Any], str]


def _quiet(_rng: Random, _executors: int, _models: int) -> Changed:
    return {}, ""


def _noise(rng: Random, _executors: int, _models: int) -> Changed:
    sigma = _between(rng, (0.01, 0.2))
    return {"noise_sigma": sigma}, f"noise {sigma:.2f}"


def _tail(rng: Random, _executors: int, _models: int) -> Changed:
    return {"straggling": 1 / 500, "noise_sigma": 0.02}, "one batch in 500 takes five times"


def _drift(rng: Random, _executors: int, _models: int) -> Changed:
    return {"drift_per_s": 0.3 / 60}, "drift of 30 % a minute"


def _doubled(rng: Random, executors: int, _models: int) -> Changed:
    """All at once, so often that hardly a run ends before."""
    period_ms = _between(rng, (1000, 5000))
    lasts_ms = 0.3 * period_ms
    starts = (WARM_UP_MS + period_ms * turn for turn in range(200))
    troubles = tuple(Trouble(at, at + lasts_ms, 2.0) for at in starts)
    return {"setups": (Executor(troubles=troubles),) * executors}, (
        f"twice as slow for {lasts_ms:.0f} of {period_ms:.0f} ms"
    )


def _unequal(rng: Random, executors: int, _models: int) -> Changed:
    speeds = [rng.choice((0.4, 0.7, 1.0, 1.5)) for _ in range(executors)]
    return {"setups": tuple(Executor(speed=speed) for speed in speeds)}, "unequal executors"


def _partial(rng: Random, executors: int, models: int) -> Changed:
    """Each model on some of them, at least one."""
    held: list[list[int]] = [[] for _ in range(executors)]
    for model in range(models):
        for executor in rng.sample(range(executors), rng.randint(1, executors)):
            held[executor].append(model)
    return {"setups": tuple(Executor(models=tuple(some)) for some in held)}, "some models each"
