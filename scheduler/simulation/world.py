"""What a study runs on: a named workload, or one from a file, at any load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from scheduler.config.errors import ConfigError, ConfigProblem
from scheduler.config.objectives import ATTAINMENT_DEFAULT, QUEUE_REQUESTS
from scheduler.simulation.engine import (
    EngineSettings,
    Fault,
    Level,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import Arrivals, Executor, Latency, Model, Scenario
from scheduler.simulation.workload_file import (
    ArrivalsSpec,
    ClassSpec,
    LatencySpec,
    LevelSpec,
    ModelSpec,
    WorkloadSpec,
    profile_table_ms,
    read_workload,
    trace_times_ms,
)
from scheduler.simulation.workloads import WORKLOADS, known


@dataclass(frozen=True)
class ClassLabel:
    """How reports call a kind of a model's requests; a tenant "" is everybody else."""

    name: str = "class 0"
    priority: int = 1
    tenant: str = ""


@dataclass(frozen=True)
class World:
    """`at(factor)` is the scenario with `factor` times the rates, which are `per_s` at 1."""

    name: str
    models: tuple[str, ...]
    per_s: float
    capacity_per_s: float  # no policy serves more
    at: Callable[[float], Scenario]
    settings: EngineSettings
    # What only the engine can run here, as keys of the file: reference policies know none of it.
    only_engine: tuple[str, ...] = ()
    classes: tuple[tuple[ClassLabel, ...], ...] = ()  # by model; none: one of each

    def classes_of(self, model: int) -> tuple[ClassLabel, ...]:
        return self.classes[model] if self.classes else (ClassLabel(),)


def named(letter: str) -> World:
    """A workload of scheduler.simulation.workloads; at load 1 its known goodput is offered."""
    workload = WORKLOADS[letter]
    per_s = known(letter, "just_enough")[0]
    return World(
        name=letter,
        models=tuple(f"model {i}" for i in range(workload.models)),
        per_s=per_s,
        capacity_per_s=workload.capacity_per_s,
        at=lambda factor: workload.scenario(per_s * factor),
        settings=EngineSettings(),
    )


def from_file(path: Path) -> World:
    """The world of a YAML file. Raises ConfigError."""
    spec = read_workload(path)
    directory = path.parent
    models = []
    for place, model in enumerate(spec.models):
        with _naming("models", place, "latency", "profile"):
            latency = _latency(model.latency, directory)
        with _naming("models", place, "arrivals", "file"):
            arrivals = _arrivals(model.arrivals, directory)
        models.append(Model(latency, model.slo, arrivals, model.max_batch_size))
    _check_objectives(spec, models, path)
    rates = [_per_s(model.arrivals) for model in models]

    def at(factor: float) -> Scenario:
        scaled = [replace(model, arrivals=model.arrivals.scaled(factor)) for model in models]
        return Scenario(
            scaled,
            spec.executors,
            setups=_executors(spec),
            noise_sigma=spec.noise,
            drift_per_s=spec.drift_per_s,
            warm_up_ms=spec.warm_up,
        )

    return World(
        name=path.name,
        models=tuple(model.name for model in spec.models),
        per_s=sum(rates),
        capacity_per_s=_capacity_per_s(spec, models, rates),
        at=at,
        settings=_settings(spec),
        only_engine=_only_engine(spec),
        classes=tuple(_labels(model) for model in spec.models),
    )


@contextmanager
def _naming(*key: str | int) -> Iterator[None]:
    """Problems with another file are those of the key that names it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(replace(problem, path=key) for problem in error.problems) from error


def _check_objectives(spec: WorkloadSpec, models: list[Model], path: Path) -> None:
    """Raises ConfigError for objectives that not even an idle executor can meet."""
    speed = max([*spec.speeds, *[1.0] * (spec.executors > len(spec.speeds))])
    problems = []
    for at, (model, timed) in enumerate(zip(spec.models, models, strict=True)):

        def needs_ms(rows: int, timed: Model = timed) -> float:
            return timed.latency.at(rows) / speed + 2 * spec.wire

        for key, message in _objective_problems(model, needs_ms):
            problems.append(ConfigProblem(("models", at, *key), message, str(path)))
    if problems:
        raise ConfigError(problems)


def _objective_problems(
    model: ModelSpec, needs_ms: Callable[[int], float]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Keys of the model and what is wrong with them; one mistake is told once."""
    one_ms = needs_ms(1)

    def too_short(slo_ms: float) -> str:
        return (
            f"{slo_ms:g} ms cannot be met: one row takes {one_ms:.4g} ms; give a slo of at least "
            f"{one_ms:.4g} ms"
        )

    if model.slo < one_ms:
        yield ("slo",), too_short(model.slo)
    for level, asked in enumerate(model.levels):
        if asked.slo and asked.slo < one_ms:
            yield ("levels", level, "slo"), too_short(asked.slo)
    for place, kind in enumerate(model.classes):
        most_ms = _level_objective_ms(kind, model)
        if most_ms < one_ms:
            continue
        key = ("classes", place)
        if isinstance(kind.slo, float) and kind.slo < one_ms:
            yield (*key, "slo"), too_short(kind.slo)
            continue
        held_ms, rows = _objective_ms(kind, model), min(kind.rows, model.max_batch_size)
        if held_ms < needs_ms(rows):
            yield (
                (*key, "rows"),
                f"a batch of {rows} rows takes {needs_ms(rows):.4g} ms, but its slo is "
                f"{held_ms:g} ms; give fewer rows, or a larger slo",
            )
        if _own_objective_ms(kind, most_ms) > most_ms:
            priority = kind.priority or 1
            levels = priority <= len(model.levels) and model.levels[priority - 1].slo
            yield (
                (*key, "slo"),
                f"{kind.slo if kind.slo == 'none' else f'{kind.slo:g} ms'} does nothing: "
                f"{f'levels[{priority - 1}].slo' if levels else 'the slo of the model'}, "
                f"{most_ms:g} ms, counts too, and the earliest wins; give "
                f"levels[{priority - 1}] a longer slo, or best_effort",
            )


def _latency(spec: LatencySpec, directory: Path) -> Latency:
    if spec.profile is not None:
        return Latency(table_ms=profile_table_ms(directory / spec.profile))
    return Latency(spec.alpha, spec.beta, spec.table)


def _arrivals(spec: ArrivalsSpec, directory: Path) -> Arrivals:
    if spec.file is not None:
        return Arrivals("recorded", times_ms=trace_times_ms(directory / spec.file))
    return Arrivals(
        spec.kind,
        spec.rate,
        shape=spec.shape,
        on_mean_ms=spec.on,
        off_mean_ms=spec.off,
        rates_per_s=spec.rates,
        step_ms=spec.step,
    )


def _per_s(arrivals: Arrivals) -> float:
    if arrivals.kind == "series":
        return sum(arrivals.rates_per_s) / len(arrivals.rates_per_s)
    if arrivals.kind == "recorded":
        span_ms = max(arrivals.times_ms[-1], 1.0)
        return 1000 * len(arrivals.times_ms) / span_ms
    return arrivals.rate_per_s


def _capacity_per_s(spec: WorkloadSpec, models: list[Model], rates: list[float]) -> float:
    """Of full batches only, on every executor."""
    busy = 0.0
    for model, rows, rate in zip(models, spec.models, rates, strict=True):
        size = rows.max_batch_size
        whole_ms = model.latency.at(size)
        busy += rate * whole_ms / size / 1000
    speed = sum(spec.speeds) + max(spec.executors - len(spec.speeds), 0)
    instances = 1 if spec.exclusive else max(model.instances for model in spec.models)
    return sum(rates) * speed * instances / max(busy, 1e-9)


def _executors(spec: WorkloadSpec) -> tuple[Executor, ...]:
    """What each holds, and its speed."""
    if not spec.speeds and not any(model.executors for model in spec.models):
        return ()
    speeds = (*spec.speeds[: spec.executors], *[1.0] * (spec.executors - len(spec.speeds)))
    return tuple(
        Executor(
            models=tuple(
                at
                for at, model in enumerate(spec.models)
                if not model.executors or executor in model.executors
            ),
            speed=speed,
        )
        for executor, speed in enumerate(speeds)
    )


def _labels(model: ModelSpec) -> tuple[ClassLabel, ...]:
    return tuple(
        ClassLabel(kind.name or f"class {at}", kind.priority or 1, kind.tenant)
        for at, kind in enumerate(model.classes or (ClassSpec(),))
    )


def _level_objective_ms(kind: ClassSpec, model: ModelSpec) -> float:
    """What the server holds every request of that priority to; infinite: to nothing."""
    at = (kind.priority or 1) - 1
    level = model.levels[at] if at < len(model.levels) else LevelSpec()
    return math.inf if level.best_effort else level.slo or model.slo


def _own_objective_ms(kind: ClassSpec, otherwise_ms: float) -> float:
    """The deadline that its clients bring."""
    if kind.slo is None:
        return otherwise_ms
    return math.inf if kind.slo == "none" else kind.slo


def _objective_ms(kind: ClassSpec, model: ModelSpec) -> float:
    """The earliest of all that count."""
    most_ms = _level_objective_ms(kind, model)
    return min(_own_objective_ms(kind, most_ms), most_ms)


def _class(spec: ClassSpec, model: ModelSpec, tenants: list[str]) -> RequestClass:
    return RequestClass(
        share=spec.share,
        priority=spec.priority,
        objective_ms=_objective_ms(spec, model),
        tenant=tenants.index(spec.tenant) + 1 if spec.tenant else 0,
        rows=spec.rows,
        signatures=spec.signatures,
    )


def _setup(model: ModelSpec, spec: WorkloadSpec) -> ModelSetup:
    shared = spec.exclusive and (len(spec.models) > 1 or model.instances > 1)
    return ModelSetup(
        placements=tuple(
            Placement(executor, model.instances, executor if shared else None)
            for executor in model.executors or range(spec.executors)
        ),
        classes=tuple(
            _class(kind, model, list(spec.tenants)) for kind in model.classes or (ClassSpec(),)
        ),
        rows_max=model.max_batch_size,
        slo_ms=model.slo,
        attainment=model.attainment,
        value=model.value or 0.0,
        aging_ms=model.aging,
        priority_levels=model.priority_levels,
        levels=tuple(
            Level(level.slo or 0.0, level.best_effort, level.attainment or 0.0)
            for level in model.levels
        ),
        queue_requests_max=model.queue_requests_max,
    )


def _settings(spec: WorkloadSpec) -> EngineSettings:
    names = [model.name for model in spec.models]
    return EngineSettings(
        models=tuple(_setup(model, spec) for model in spec.models),
        tenants=(1.0, *spec.tenants.values()) if spec.tenants else (),
        wire_ms=spec.wire,
        faults=tuple(
            Fault(
                fault.kind,
                from_ms=fault.start,
                until_ms=fault.end,
                backend=fault.executor,
                model=names.index(fault.model) if fault.model is not None else 0,
                factor=fault.factor,
                shift_ms=fault.shift,
                failure=fault.failure,
                code=fault.code,
            )
            for fault in spec.faults
        ),
    )


def _only_engine(spec: WorkloadSpec) -> tuple[str, ...]:
    found = [
        key
        for key, used in {
            "exclusive: false": not spec.exclusive,
            "wire": spec.wire,
            "faults": spec.faults,
            "tenants": spec.tenants,
            "classes": any(model.classes for model in spec.models),
            "levels": any(
                level.slo or level.best_effort or level.attainment
                for model in spec.models
                for level in model.levels
            ),
            "attainment": any(model.attainment != ATTAINMENT_DEFAULT for model in spec.models),
            "value": any(model.value for model in spec.models),
            "aging": any(model.aging for model in spec.models),
            "queue_requests_max": any(
                model.queue_requests_max != QUEUE_REQUESTS for model in spec.models
            ),
        }.items()
        if used
    ]
    return tuple(found)
