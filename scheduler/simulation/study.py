"""Policies on one world over several loads and seeds: what was in time, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from scheduler.simulation.compare import POLICIES
from scheduler.simulation.engine import ClassOutcome, EngineOutcome, EngineSettings
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import ENGINE, LATEST_MS, Outcome, Policy, engine, simulate
from scheduler.simulation.world import World

INTERVALS = 100


@dataclass
class Group:
    """Some of the requests of a point: those that were judged and those in time, by seed."""

    name: str
    judged: list[int] = field(default_factory=list)
    in_time: list[int] = field(default_factory=list)

    def add(self, seed: int, kind: ClassOutcome) -> None:
        for counts, more in ((self.judged, kind.judged), (self.in_time, kind.in_time)):
            if len(counts) == seed:
                counts.append(0)
            counts[seed] += more

    @property
    def attainments(self) -> list[float]:
        return [
            in_time / judged if judged else 1.0
            for in_time, judged in zip(self.in_time, self.judged, strict=True)
        ]


def _requests(outcome: Outcome) -> int:
    if outcome.engine is None:
        return outcome.offered
    return sum(kind.offered for kinds in outcome.engine.classes for kind in kinds)


@dataclass(frozen=True)
class Point:
    """One policy at one load over several seeds."""

    policy: str
    factor: float
    offered_per_s: float
    outcomes: tuple[Outcome, ...]

    @property
    def attainment(self) -> float:
        return median(outcome.attainment for outcome in self.outcomes)

    @property
    def in_time_per_s(self) -> float:
        return self.attainment * self.offered_per_s

    @property
    def requests(self) -> int:
        """That came and were counted, with every seed at least."""
        return min(_requests(outcome) for outcome in self.outcomes)

    def groups(self, world: World) -> list[Group]:
        """The classes of models that have several, and the tenants of all."""
        if self.outcomes[0].engine is None:
            return []
        by_class: dict[tuple[str, str], Group] = {}
        by_tenant: dict[str, Group] = {}
        for seed, outcome in enumerate(self.outcomes):
            assert outcome.engine is not None
            for at, kinds in enumerate(outcome.engine.classes):
                labels = world.classes_of(at)
                for label, kind in zip(labels, kinds, strict=True):
                    found = []
                    if len(labels) > 1:
                        name = f"{world.models[at]}: {label.name}"
                        found.append(
                            by_class.setdefault((world.models[at], label.name), Group(name))
                        )
                    if world.settings.tenants:
                        name = f"tenant {label.tenant or '(others)'}"
                        found.append(by_tenant.setdefault(name, Group(name)))
                    for group in found:
                        group.add(seed, kind)
        return [*by_class.values(), *by_tenant.values()]

    def record(self, world: World) -> dict[str, Any]:
        """As JSON has it; medians over the seeds."""
        spread = [outcome.attainment for outcome in self.outcomes]
        record: dict[str, Any] = {
            "policy": self.policy,
            "load": round(self.factor, 4),
            "offered_per_s": round(self.offered_per_s, 1),
            "in_time_per_s": round(self.in_time_per_s, 1),
            "attainment": round(self.attainment, 5),
            "attainment_lowest": round(min(spread), 5),
            "attainment_highest": round(max(spread), 5),
            "worst_model_attainment": round(min(o.worst_attainment for o in self.outcomes), 5),
            "mean_batch": round(median(outcome.mean_batch for outcome in self.outcomes), 3),
            "requests": self.requests,
        }
        first = self.outcomes[0]
        record["models"] = [
            {
                "name": name,
                "offered": model.offered,
                "in_time": model.in_time,
                "late": model.late,
                "dropped": model.dropped,
                "mean_batch": round(model.mean_batch, 3),
            }
            for name, model in zip(world.models, first.models, strict=True)
        ]
        if first.engine is not None:
            counted = first.engine
            record["latency_ms"] = {f"p{100 * p:g}": t for p, t in counted.latencies_ms.items()}
            record["wait_ms"] = {f"p{100 * p:g}": t for p, t in counted.waits_ms.items()}
            for at, kinds in enumerate(counted.classes):
                record["models"][at]["classes"] = [
                    {**vars(label), **vars(kind), "attainment": round(kind.attainment, 5)}
                    for label, kind in zip(world.classes_of(at), kinds, strict=True)
                ]
        return record


@dataclass(frozen=True)
class Plan:
    """What a study runs. `interval_ms` is that of the attainment over time, at load `focus`."""

    policies: tuple[str, ...]
    factors: tuple[float, ...]
    seeds: tuple[int, ...]
    requests: int
    focus: float

    @property
    def runs(self) -> int:
        return len(self.policies) * len(self.factors) * len(self.seeds)


def policy_of(name: str, settings: EngineSettings) -> Policy:
    """The policy `name` of scheduler.simulation.compare; the engine with `settings`."""
    return engine(settings) if name == ENGINE else POLICIES[name]


def points(world: World, plan: Plan, on_run: Callable[[], None]) -> Iterable[Point]:
    """Every policy at every load; `on_run` after each run. Raises ValueError."""
    for name in plan.policies:
        policy = policy_of(name, world.settings)
        for factor in plan.factors:
            outcomes = []
            for seed in plan.seeds:
                scenario = replace(world.at(factor), seed=seed, requests=plan.requests)
                if factor == plan.focus and seed == plan.seeds[0]:
                    scenario = replace(scenario, interval_ms=_interval_ms(world, plan, factor))
                outcomes.append(simulate(scenario, policy))
                on_run()
                if not outcomes[-1].offered:
                    raise ValueError(
                        f"at load {factor:g} nothing arrives after the warm_up of "
                        f"{scenario.warm_up_ms / 1000:g} s, in which nothing is counted"
                    )
            yield Point(name, factor, world.per_s * factor, tuple(outcomes))


def _interval_ms(world: World, plan: Plan, factor: float) -> float:
    """Of the attainment over time: a run has about INTERVALS of them."""
    run_ms = world.at(factor).warm_up_ms + 1000 * plan.requests / (world.per_s * factor)
    return min(max(run_ms / INTERVALS, 1.0), LATEST_MS)


def goodputs(world: World, plan: Plan) -> list[dict[str, Any]]:
    """The goodput of every policy: the median over the seeds, and its range. Raises ValueError."""
    found = []
    for name in plan.policies:
        policy = policy_of(name, world.settings)
        rates = []
        for seed in plan.seeds:

            def at(rate: float, seed: int = seed) -> Any:
                scenario = world.at(rate / world.per_s)
                return replace(scenario, seed=seed, requests=plan.requests)

            top = world.capacity_per_s
            rates.append(search(at, policy, from_per_s=top, to_per_s=top / 1000).per_s)
        found.append(
            {
                "policy": name,
                "goodput_per_s": round(median(rates), 1),
                "lowest_per_s": round(min(rates), 1),
                "highest_per_s": round(max(rates), 1),
            }
        )
    return found


def notes(world: World, plan: Plan, found: Sequence[Point]) -> list[str]:
    """What a reader of the figures would not think of."""
    told = []
    for point in found:
        at = f"{point.policy} at load {point.factor:.3g}"
        if point.requests < plan.requests:
            told.append(f"{at}: only {point.requests} requests came to be counted")
        engines = [outcome.engine for outcome in point.outcomes if outcome.engine is not None]
        never = max((len(world.settings.faults) - one.faults_begun for one in engines), default=0)
        if never > 0:
            ended_s = min(one.ended_ms for one in engines) / 1000
            told.append(f"{at}: ended after {ended_s:.4g} s, before {never} of the faults began")
        waiting = max((_unanswered(one) for one in engines), default=0)
        if waiting > 0:
            told.append(
                f"{at}: {waiting} requests without a deadline waited when it ended, in no figure"
            )
    return told


def _unanswered(counted: EngineOutcome) -> int:
    return sum(kind.unanswered for kinds in counted.classes for kind in kinds)


def over_time(world: World, plan: Plan, found: Sequence[Point]) -> dict[str, list[dict[str, Any]]]:
    """By policy: offered and in-time requests in intervals of the run at load `focus`."""
    series = {}
    for point in found:
        if point.factor != plan.focus:
            continue
        intervals = point.outcomes[0].intervals
        step_s = _interval_ms(world, plan, plan.focus) / 1000
        series[point.policy] = [
            {"from_s": round(i * step_s, 4), "offered": offered, "in_time": in_time}
            for i, (offered, in_time) in enumerate(intervals)
        ]
    return series
