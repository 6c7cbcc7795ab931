"""What is simulated: models with their latencies, objectives and arrivals, and executors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scheduler._native import simulation as native
from scheduler.simulation.engine import EngineOutcome, EngineSettings

MS = 1_000_000
ROWS_MAX = 1024  # of any batch
LATEST_MS = 9e12  # that fits in ns


@dataclass(frozen=True)
class Latency:
    """How long a batch of b rows holds its executor.

    Affine, `alpha_ms * b + beta_ms`, or the measured times `table_ms[b - 1]` in ms with an affine
    tail through the last two. Raises ValueError for negative and absent times.
    """

    alpha_ms: float = 0.0
    beta_ms: float = 0.0
    table_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        times = [self.alpha_ms, self.beta_ms, *self.table_ms]
        if not all(math.isfinite(time) and time >= 0 for time in times):
            raise ValueError("latencies must not be negative")
        if self.table_ms and (self.alpha_ms or self.beta_ms):
            raise ValueError("a latency is affine or a table, not both")
        if not any(times):
            raise ValueError("a batch must take time")

    def at(self, rows: int) -> float:
        """l(rows) in ms, rows from 1 on; a dip below an earlier point is raised to it."""
        known = len(self.table_ms)
        if not known:
            return self.alpha_ms * rows + self.beta_ms
        if rows <= known:
            return max(self.table_ms[:rows])
        step = self.at(known) - self.at(known - 1) if known > 1 else 0.0
        return self.at(known) + step * (rows - known)

    def native(self) -> dict[str, Any]:
        """As the compiled module takes it, in ns."""
        if self.table_ms:
            return {"table_ns": [round(time * MS) for time in self.table_ms]}
        return {"affine_ns": (self.alpha_ms * MS, self.beta_ms * MS)}


@dataclass(frozen=True)
class Arrivals:
    """When requests arrive; `scaled` multiplies the rates.

    * "poisson": exponential gaps at `rate_per_s`.
    * "gamma": gamma gaps of `shape` at the mean `rate_per_s`; below 1 in bursts.
    * "on_off": Poisson during exponential phases of mean `on_mean_ms`, nothing during those of mean
      `off_mean_ms`; `rate_per_s` is the mean over both.
    * "series": Poisson of `rates_per_s[i]` during step i of `step_ms`, then nothing.
    * "recorded": at `times_ms`, ascending, then nothing.
    """

    kind: str = "poisson"
    rate_per_s: float = 0.0
    shape: float = 1.0
    on_mean_ms: float = 1000.0
    off_mean_ms: float = 1000.0
    rates_per_s: tuple[float, ...] = ()
    step_ms: float = 1000.0
    times_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("poisson", "gamma", "on_off", "series", "recorded"):
            raise ValueError(f"no arrivals are called {self.kind}")

    def scaled(self, factor: float) -> Arrivals:
        """The same pattern with `factor` times the rate; recorded times move closer."""
        return replace(
            self,
            rate_per_s=self.rate_per_s * factor,
            rates_per_s=tuple(rate * factor for rate in self.rates_per_s),
            times_ms=tuple(min(time / factor, LATEST_MS) for time in self.times_ms),
        )

    def native(self) -> dict[str, Any]:
        """As the compiled module takes it, in ns."""
        return {
            "kind": self.kind,
            "rate_per_s": self.rate_per_s,
            "shape": self.shape,
            "on_mean_ns": round(self.on_mean_ms * MS),
            "off_mean_ns": round(self.off_mean_ms * MS),
            "rates_per_s": self.rates_per_s,
            "step_ns": round(self.step_ms * MS),
            "times_ns": [round(time * MS) for time in self.times_ms],
        }

    def first(self, count: int, seed: int) -> list[int]:
        """The first `count` arrivals in ns, fewer where the plan ends."""
        return native.arrival_times(self.native(), seed, count)


@dataclass(frozen=True)
class Model:
    """A model: a request is in time when its batch ends within `objective_ms` of its arrival.

    `rows_max` bounds the batches of reference policies; the engine is told by its settings.
    """

    latency: Latency
    objective_ms: float
    arrivals: Arrivals
    rows_max: int = ROWS_MAX


@dataclass(frozen=True)
class Trouble:
    """From `from_ms` to `until_ms` batches that start take `factor` times as long.

    0: the executor is down. What it runs and what is staged there is lost.
    """

    from_ms: float
    until_ms: float
    factor: float = 0.0


@dataclass(frozen=True)
class Executor:
    """What is special about an executor.

    It holds only `models`, by their place in the scenario (None: all); batches take 1/`speed` as
    long; the part `failing` of them ends without an answer; `troubles` ascend and do not overlap.
    """

    models: tuple[int, ...] | None = None
    speed: float = 1.0
    failing: float = 0.0
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """Models on executors that run one batch at a time.

    The first executors are as `setups` says; the others hold every model, at speed 1 and without
    trouble. A batch that starts at t seconds takes l(b) * (1 + `drift_per_s` * t) times a lognormal
    factor of median 1 and deviation `noise_sigma` of its logarithm, the part `straggling` of all
    batches five times as long. `requests` that arrive after `warm_up_ms` are counted, over all
    models.
    """

    models: Sequence[Model]
    executors: int
    setups: Sequence[Executor] = ()
    noise_sigma: float = 0.0
    straggling: float = 0.0
    drift_per_s: float = 0.0
    seed: int = 1
    warm_up_ms: float = 2000.0
    requests: int = 100_000
    # Stop after more misses than this: for a search that needs no exact figure of a failure.
    misses_max: int | None = None
    interval_ms: float = 0.0  # of Outcome.intervals; 0: none


@dataclass(frozen=True)
class Policy:
    """A policy by its name, with its settings in ns: a reference policy, or the engine."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StaticSettings:
    """Triton's dynamic batcher for one model; without `delay_ms` a batch goes to any idle executor.

    The default is the batcher as it comes: no delay, no timeout, batches up to 64 rows.
    """

    rows_max: int = 64
    rows_preferred: int = 0  # 0: rows_max
    delay_ms: float = 0.0
    queue_timeout_ms: float | None = None

    def __post_init__(self) -> None:
        if self.rows_max < 1 or self.rows_preferred < 0 or self.delay_ms < 0:
            raise ValueError("a batcher needs at least one row and no negative delay")

    def native(self) -> dict[str, Any]:
        timeout = self.queue_timeout_ms
        return {
            "rows_max": self.rows_max,
            "rows_preferred": self.rows_preferred,
            "delay_ns": round(self.delay_ms * MS),
            "queue_timeout_ns": None if timeout is None else round(timeout * MS),
        }


def static(*models: StaticSettings) -> Policy:
    """Triton's dynamic batcher: one setting for all models, or one for each."""
    return Policy("static", {"models": [m.native() for m in models or (StaticSettings(),)]})


def clockwork(ahead_ms: float = 5.0) -> Policy:
    """Clockwork, which commits batches up to `ahead_ms` before their executor is free."""
    return Policy("clockwork", {"ahead_ns": round(ahead_ms * MS)})


def engine(settings: EngineSettings | None = None) -> Policy:
    """The engine of the server, which learns rates and latencies as it does there."""
    return Policy(ENGINE, (settings or EngineSettings()).native())


ENGINE = "infersched"
SYMPHONY = Policy("symphony")
NEXUS = Policy("nexus")
SHEPHERD = Policy("shepherd")
JUST_ENOUGH = Policy("just_enough")
BENTOML = Policy("bentoml")
RAY_SERVE = Policy("ray_serve")


@dataclass(frozen=True)
class ModelOutcome:
    """Counted requests of one model: offered = in_time + late + dropped."""

    offered: int
    in_time: int
    late: int
    dropped: int
    batches: int
    batched_rows: int

    @property
    def attainment(self) -> float:
        return self.in_time / self.offered if self.offered else 1.0

    @property
    def mean_batch(self) -> float:
        return self.batched_rows / self.batches if self.batches else 0.0


@dataclass(frozen=True)
class Outcome:
    """What one run counted. `stopped_early`: there were more than `misses_max` misses."""

    models: tuple[ModelOutcome, ...]
    preempted_batches: int
    arrived: int  # warm-up included
    stopped_early: bool
    engine: EngineOutcome | None = None
    # Requests judged and in time by arrival, warm-up included.
    intervals: tuple[tuple[int, int], ...] = ()

    @property
    def offered(self) -> int:
        """Counted requests that were judged; of the engine's, without cancelled and unanswered."""
        return sum(model.offered for model in self.models)

    @property
    def came(self) -> int:
        """All counted requests."""
        return self.offered if self.engine is None else sum(k.offered for k in self.engine.kinds)

    @property
    def asked(self) -> int:
        """Those whose clients did not leave."""
        return self.offered if self.engine is None else sum(k.asked for k in self.engine.kinds)

    @property
    def in_time(self) -> int:
        return sum(model.in_time for model in self.models)

    @property
    def in_time_share(self) -> float:
        """Of what was asked: what waits in the end without a deadline was not served either."""
        return self.in_time / self.asked if self.asked else 0.0

    @property
    def attainment(self) -> float:
        """The share of all judged requests that was answered in time."""
        return self.in_time / self.offered if self.offered else 1.0

    @property
    def worst_attainment(self) -> float:
        return min(model.attainment for model in self.models)

    @property
    def mean_batch(self) -> float:
        batches = sum(model.batches for model in self.models)
        return sum(model.batched_rows for model in self.models) / batches if batches else 0.0


def simulate(scenario: Scenario, policy: Policy) -> Outcome:
    """Runs a scenario; the same one always gives the same outcome.

    Raises ValueError for a scenario that cannot be run, BrokenTruth when truths were to be checked
    and one did not hold.
    """
    run = native.Scenario(
        executors=scenario.executors,
        noise_sigma=scenario.noise_sigma,
        straggling=scenario.straggling,
        seed=scenario.seed,
        warm_up_ns=round(scenario.warm_up_ms * MS),
        requests=scenario.requests,
        misses_max=scenario.misses_max,
        drift_per_s=scenario.drift_per_s,
        interval_ns=round(scenario.interval_ms * MS),
    )
    for setup in scenario.setups:
        troubles = [
            (round(trouble.from_ms * MS), round(trouble.until_ms * MS), trouble.factor)
            for trouble in setup.troubles
        ]
        run.add_setup(setup.models, setup.speed, setup.failing, troubles)
    for model in scenario.models:
        objective_ns = round(model.objective_ms * MS)
        latency = model.latency.native()
        run.add_model(model.arrivals.native(), objective_ns, model.rows_max, **latency)
    if policy.name == ENGINE:
        counted = run.run_engine(policy.settings)
    else:
        counted = run.run(policy.name, policy.settings)
    return Outcome(
        models=tuple(ModelOutcome(**model) for model in counted["models"]),
        preempted_batches=counted["preempted"],
        arrived=counted["arrived"],
        stopped_early=counted["stopped_early"],
        intervals=tuple(counted["intervals"]),
        engine=EngineOutcome.of(counted["engine"]) if "engine" in counted else None,
    )


def staggered_bound(latency: Latency, objective_ms: float, executors: int) -> float:
    """Requests/s of `executors` that start at equal distances: the bound for one model.

    N * b / l(b) with the largest b for which l(b) * (1 + 1/N) is within the objective.
    """
    return native.staggered_bound(round(objective_ms * MS), executors, **latency.native())


def uncoordinated(latency: Latency, objective_ms: float, executors: int) -> float:
    """The same where a request may wait for one whole batch: 2 * l(b) within the objective."""
    return native.uncoordinated(round(objective_ms * MS), executors, **latency.native())
