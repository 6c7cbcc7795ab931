"""A workload as a YAML file: models, their arrivals and classes, executors, what goes wrong.

    executors: 8
    noise: 0.1
    models:
      - name: small
        latency: {alpha: 1.053ms, beta: 5.072ms}
        slo: 25ms
        arrivals: {kind: gamma, rate: 1000, shape: 0.5}

Raises ConfigError with every mistake, its key and the fix.
"""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from scheduler.config.errors import ConfigError, ConfigProblem, problems_of
from scheduler.config.objectives import (
    ATTAINMENT_DEFAULT,
    ATTAINMENT_MAX,
    ATTAINMENT_MIN,
    LEVELS_MAX,
    QUEUE_REQUESTS,
    QUEUE_REQUESTS_MAX,
    TENANTS_MAX,
    WEIGHT_MAX,
    WEIGHT_MIN,
)
from scheduler.config.profile import ProfileError, load_profile
from scheduler.config.section import Section
from scheduler.config.sources import file_layer
from scheduler.config.units import TooLargeError, parse_duration_ns
from scheduler.simulation.engine import FAILURES, FAULTS

Share = Annotated[float, Field(ge=WEIGHT_MIN, le=WEIGHT_MAX, allow_inf_nan=False)]
Speed = Annotated[float, Field(ge=0.001, le=1000)]
HOUR_MS = 3.6e6
# Eleven days: twice that is in the range of a clock in ns, whatever is added to it.
LONGEST = "1000000s"
# More could not be simulated in a reasonable time, less is no load.
RATE_MAX = 1e7
RATE_MIN = 1e-3


def _rate(value: float) -> float:
    if 0 < value < RATE_MIN:
        raise ValueError(f"{value:g}/s is no load; write 0, or {RATE_MIN:g} and more")
    return value


Rate = Annotated[float, Field(ge=0, le=RATE_MAX, allow_inf_nan=False), AfterValidator(_rate)]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# Faults that do not last, and those whose factor is a part of what is there.
ONCE = ("cancels", "clock_jump")
SLOW_MIN = 0.001
PARTS = ("failing", "cancels", "nonsense")
TRACE_REQUESTS_MAX = 20_000_000
TRACE_SPAN_MAX_S = 1e8
# What each kind of arrivals is told.
ARRIVAL_KEYS = {
    "poisson": ("rate",),
    "gamma": ("rate", "shape"),
    "on_off": ("rate", "on", "off"),
    "series": ("rates", "step"),
    "trace": ("file",),
}


def _ms(value: object) -> float:
    try:
        return parse_duration_ns(value) / 1e6
    except TooLargeError:
        return math.inf


def _signed_ms(value: object) -> float:
    text = str(value)
    return -_ms(text[1:]) if text.startswith("-") else _ms(value)


def _from(least: str, most: str) -> AfterValidator:
    """A time in this range, which the message names in the units of the file."""
    least_ms, most_ms = _signed_ms(least), _signed_ms(most)

    def check(ms: float) -> float:
        if not least_ms <= ms <= most_ms:
            raise ValueError(f"it is out of range; give a time from {least} to {most}")
        return ms

    return AfterValidator(check)


def _objective_of_class(value: object) -> float | Literal["none"] | None:
    if value is None or value == "none":
        return value
    ms = _ms(value)
    if not 0 < ms <= HOUR_MS:
        raise ValueError(
            f"{value} is no objective; write a time such as 40ms, at most an hour, or none"
        )
    return ms


Ms = Annotated[float, BeforeValidator(_ms), _from("0s", LONGEST)]
# A phase or a step: many in a moment would be simulated for ever.
PhaseMs = Annotated[float, BeforeValidator(_ms), _from("100us", LONGEST)]
# Requests keep coming until the last that is counted has missed its own.
ObjectiveMs = Annotated[float, BeforeValidator(_ms), _from("1ns", "1h")]
SomeMs = Annotated[float, BeforeValidator(_ms), _from("1ns", LONGEST)]
# Where the engine's clock begins, and what no jump may exceed, for it counts ns: kEpochNs and
# kClockMaxNs of csrc/simulation/engine_settings.h.
CLOCK_MS = 1_000_000.0
CLOCK_MAX_MS = 9e12
SignedMs = Annotated[float, BeforeValidator(_signed_ms), _from(f"-{LONGEST}", LONGEST)]


class LatencySpec(Section):
    """alpha and beta of `alpha * rows + beta`, a table of l(1), l(2), ..., or a saved profile."""

    alpha: Ms = 0.0
    beta: Ms = 0.0
    table: tuple[SomeMs, ...] = ()
    profile: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> LatencySpec:
        given = [bool(self.alpha or self.beta), bool(self.table), self.profile is not None]
        if sum(given) != 1:
            raise ValueError("give either alpha and beta, or table, or profile")
        return self


class ArrivalsSpec(Section):
    """When requests come. `rate` is the mean in requests/s; a `trace` has times in seconds."""

    kind: Literal["poisson", "gamma", "on_off", "series", "trace"] = "poisson"
    rate: Rate = 0.0
    shape: Annotated[float, Field(ge=0.001, allow_inf_nan=False)] = 1.0
    on: PhaseMs = 1000.0
    off: Ms = 1000.0
    rates: tuple[Rate, ...] = ()
    step: PhaseMs = 1000.0
    file: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> ArrivalsSpec:
        told = ARRIVAL_KEYS[self.kind]
        unused = sorted(self.model_fields_set - {"kind", "file", *told})
        if unused:
            raise ValueError(
                f"{unused[0]} does nothing with kind: {self.kind}, which has {', '.join(told)}"
            )
        if self.kind == "series" and not self.rates:
            raise ValueError("a series needs rates, one for each step")
        if self.kind == "series" and not any(self.rates):
            raise ValueError("no request ever arrives: all rates are 0")
        if (self.kind == "trace") != (self.file is not None):
            raise ValueError("a trace needs its file, and nothing else has one")
        if self.kind in ("poisson", "gamma", "on_off") and self.rate == 0:
            raise ValueError("a rate in requests/s is needed")
        phase_rate = self.rate * (1 + self.off / self.on)
        if self.kind == "on_off" and phase_rate > RATE_MAX:
            raise ValueError(
                f"a rate of {self.rate:g}/s is {phase_rate:.3g}/s while requests come, more than "
                f"{RATE_MAX:,.0f}"
            )
        return self


class ClassSpec(Section):
    """A kind of requests; reports show the name.

    `slo` is the deadline that its clients bring; the server's own for the model or the level
    counts, too, and the earliest wins. `none`: neither, which only a best_effort level has.
    """

    name: str = ""
    share: Share = 1.0
    priority: Annotated[int, Field(ge=0, le=2**31)] = 0
    slo: Annotated[float | Literal["none"] | None, PlainValidator(_objective_of_class)] = None
    tenant: str = ""
    rows: Annotated[int, Field(ge=1, le=1024)] = 1
    signatures: Annotated[int, Field(ge=1, le=100_000)] = 1


class LevelSpec(Section):
    """What a priority level asks for; without slo and attainment what the model does."""

    slo: ObjectiveMs | None = None
    best_effort: bool = False
    attainment: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> LevelSpec:
        if self.best_effort and (self.slo or self.attainment):
            raise ValueError("best_effort has neither slo nor attainment; leave one out")
        return self


class ModelSpec(Section):
    name: Annotated[str, Field(min_length=1)]
    latency: LatencySpec
    slo: ObjectiveMs
    arrivals: ArrivalsSpec
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 128
    instances: Annotated[int, Field(ge=1, le=1024)] = 1
    attainment: Annotated[float, Field(ge=ATTAINMENT_MIN, le=ATTAINMENT_MAX)] = ATTAINMENT_DEFAULT
    value: Share | None = None  # none: not weighed against other models
    priority_levels: Annotated[int, Field(ge=1, le=LEVELS_MAX)] = 1
    levels: tuple[LevelSpec, ...] = ()
    aging: Ms = 0.0
    queue_requests_max: Annotated[int, Field(ge=1, le=QUEUE_REQUESTS_MAX)] = QUEUE_REQUESTS
    classes: tuple[ClassSpec, ...] = ()
    executors: tuple[int, ...] = ()  # none: all

    @model_validator(mode="after")
    def _sound(self) -> ModelSpec:
        if len(self.levels) > self.priority_levels:
            raise ValueError(f"there are only {self.priority_levels} priority_levels")
        levels = [*self.levels, *[LevelSpec()] * (self.priority_levels - len(self.levels))]
        for at, (level, below) in enumerate(pairwise(levels)):
            if level.best_effort and not below.best_effort:
                raise ValueError(f"levels[{at}] is best_effort and above one that is not")
        if self.aging and self.priority_levels == 1:
            raise ValueError("aging needs priority_levels of 2 or more; leave it out")
        for at, kind in enumerate(self.classes):
            if kind.priority > self.priority_levels:
                raise ValueError(
                    f"classes[{at}] has priority {kind.priority}, "
                    f"but priority_levels is {self.priority_levels}"
                )
        return self


class FaultSpec(Section):
    kind: Literal[FAULTS]  # type: ignore[valid-type]
    start: Ms
    end: Ms = 0.0
    executor: Annotated[int, Field(ge=0)] | None = None
    model: str | None = None
    factor: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 1.0
    shift: SignedMs = 0.0
    failure: Literal[FAILURES] = "connection"  # type: ignore[valid-type]
    code: Annotated[int, Field(ge=1, le=16)] = 14

    @model_validator(mode="after")
    def _sound(self) -> FaultSpec:
        if self.kind not in ONCE and self.end <= self.start:
            raise ValueError(f"{self.kind} needs an end after its start")
        if self.kind in PARTS and self.factor > 1:
            raise ValueError(f"the factor of {self.kind} is a part, at most 1")
        if self.kind == "slow" and self.factor < SLOW_MIN:
            raise ValueError(
                f"slow needs a factor above 0, at least {SLOW_MIN:g}: 2 is half the speed"
            )
        if self.kind == "unplaced" and self.executor is None:
            raise ValueError("unplaced needs an executor")
        return self


class WorkloadSpec(Section):
    """The file."""

    models: Annotated[tuple[ModelSpec, ...], Field(max_length=4096)]
    executors: Annotated[int, Field(ge=1, le=256)] = 1
    exclusive: bool = True  # an executor runs one batch at a time, whatever models it holds
    speeds: tuple[Speed, ...] = ()
    noise: Annotated[float, Field(ge=0, le=3)] = 0.0
    drift_per_s: Annotated[float, Field(ge=0, le=1000)] = 0.0
    wire: Ms = 0.0
    warm_up: Annotated[float, BeforeValidator(_ms), _from("0s", "1h")] = 2000.0
    tenants: Annotated[dict[str, Share], Field(max_length=TENANTS_MAX - 1)] = Field(
        default_factory=dict
    )
    faults: tuple[FaultSpec, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> WorkloadSpec:
        names = [model.name for model in self.models]
        if not names:
            raise ValueError("models: name at least one")
        if len(set(names)) < len(names):
            raise ValueError("two models have one name")
        if len(self.speeds) > self.executors:
            raise ValueError(
                f"speeds of {len(self.speeds)} executors, but executors: {self.executors}"
            )
        for model in self.models:
            if any(not 0 <= at < self.executors for at in model.executors):
                raise ValueError(f"{model.name}: executors are 0 to {self.executors - 1}")
            if len(set(model.executors)) < len(model.executors):
                raise ValueError(f"{model.name}: an executor is named twice")
            for kind in model.classes:
                if kind.tenant and kind.tenant not in self.tenants:
                    raise ValueError(f"{model.name}: no tenant is called {kind.tenant}")
        for fault in self.faults:
            if fault.kind in ("removed", "unplaced") and fault.model is None and len(names) > 1:
                raise ValueError(f"a fault {fault.kind} needs a model, one of {', '.join(names)}")
            if fault.model is not None and fault.model not in names:
                raise ValueError(f"a fault names {fault.model}, which is no model")
            if fault.executor is not None and fault.executor >= self.executors:
                raise ValueError(f"a fault names executor {fault.executor} of {self.executors}")
        self._check_clock()
        return self

    def _check_clock(self) -> None:
        """As engine_run.cc does; of jumps at one time those back come first."""
        jumps = [at for at, fault in enumerate(self.faults) if fault.kind == "clock_jump"]
        shift_ms = 0.0
        for at in sorted(jumps, key=lambda at: (self.faults[at].start, self.faults[at].shift)):
            fault = self.faults[at]
            shift_ms += fault.shift
            clock_ms = CLOCK_MS + fault.start + shift_ms
            if clock_ms <= 0:
                bound, shift = "at or below 0", f"above {(fault.shift - clock_ms) / 1000:g}s"
            elif clock_ms > CLOCK_MAX_MS:
                bound = f"above {CLOCK_MAX_MS / 1000:g} s"
                shift = f"of at most {(fault.shift - clock_ms + CLOCK_MAX_MS) / 1000:g}s"
            else:
                continue
            raise ValueError(
                f"faults[{at}]: clock_jump takes the clock to {clock_ms / 1000:g} s, and it is "
                f"never {bound}: it begins at {CLOCK_MS / 1000:g} s; give a shift {shift}"
            )


def read_workload(path: Path) -> WorkloadSpec:
    """The workload of a file; paths in it are relative to it."""
    layer = file_layer(path)
    try:
        return WorkloadSpec.model_validate(layer.values)
    except ValidationError as error:
        problems = [
            ConfigProblem(p.path, p.message, layer.origins.get(p.path, str(path)))
            for p in problems_of(error, WorkloadSpec)
        ]
        raise ConfigError(problems) from error


def trace_times_ms(path: Path) -> tuple[float, ...]:
    """The first column of a CSV file: seconds, in any order; a heading is passed over.

    Times count from the first one. Raises ConfigError.
    """

    def wrong(message: str) -> ConfigError:
        return ConfigError([ConfigProblem((), message, str(path))])

    times: list[float] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row or not row[0].strip():
                    continue
                try:
                    at = float(row[0])
                except ValueError:
                    if number == 1:
                        continue
                    raise wrong(f"line {number}: {row[0]!r} is no time in seconds") from None
                if not math.isfinite(at) or abs(at) > 1e12:
                    raise wrong(f"line {number}: {row[0]!r} is no time in seconds")
                times.append(at)
                if len(times) > TRACE_REQUESTS_MAX:
                    raise wrong(f"more than {TRACE_REQUESTS_MAX:,} requests")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not CSV text"
        raise wrong(f"cannot read: {reason}") from error
    if not times:
        raise wrong("no request in it")
    times.sort()
    if times[-1] - times[0] > TRACE_SPAN_MAX_S:
        raise wrong(
            f"from the first request to the last one it is {times[-1] - times[0]:.3g} s, more than "
            f"{TRACE_SPAN_MAX_S:g}; are the times in seconds?"
        )
    return tuple((at - times[0]) * 1e3 for at in times)


def profile_table_ms(path: Path) -> tuple[float, ...]:
    """l(1), l(2), ... of a saved profile, linear between the sizes that were measured.

    Raises ConfigError.
    """
    try:
        profile = load_profile(path)
    except ProfileError as error:
        raise ConfigError([ConfigProblem((), str(error), str(path))]) from error
    known = [(size.rows, size.median_ns / 1e6) for size in profile.sizes if size.rows <= 1024]
    if not known:
        raise ConfigError([ConfigProblem((), "no batch of 1 to 1024 rows in it", str(path))])
    fit = profile.fit
    # One row takes what the line says, where it was not measured.
    if known[0][0] > 1:
        known.insert(0, (1, min(max((fit.alpha_ns + fit.beta_ns) / 1e6, 1e-6), known[0][1])))
    table = [known[0][1]]
    for (low, low_ms), (high, high_ms) in pairwise(known):
        steps = high - low
        table += [low_ms + (high_ms - low_ms) * i / steps for i in range(1, steps + 1)]
    return tuple(table)
