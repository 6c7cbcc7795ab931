"""Policies on one world over several loads and seeds: what was in time, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from scheduler.simulation.compare import POLICIES, TUNED
from scheduler.simulation.engine import ClassOutcome
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import ENGINE, LATEST_MS, Outcome, Policy, engine, simulate
from scheduler.simulation.tuned import Tuned, tuned
from scheduler.simulation.world import World

INTERVALS = 100


@dataclass
class Group:
    """Some of the requests of a point, with every seed."""

    name: str
    counts: list[list[ClassOutcome]] = field(default_factory=list)  # by seed

    def add(self, kinds: Sequence[ClassOutcome]) -> None:
        self.counts = self.counts or [[] for _ in kinds]
        for of_seed, kind in zip(self.counts, kinds, strict=True):
            of_seed.append(kind)

    def sums(self, name: str) -> list[int]:
        return [sum(getattr(kind, name) for kind in of_seed) for of_seed in self.counts]

    @property
    def attainments(self) -> list[float]:
        """With the seeds that something was judged with."""
        both = zip(self.sums("in_time"), self.sums("judged"), strict=True)
        return [in_time / judged for in_time, judged in both if judged]

    @property
    def in_time_shares(self) -> list[float]:
        both = zip(self.sums("in_time"), self.sums("asked"), strict=True)
        return [in_time / asked if asked else 0.0 for in_time, asked in both]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


@dataclass(frozen=True)
class Point:
    """One policy at one load over several seeds."""

    policy: str
    factor: float
    offered_per_s: float
    outcomes: tuple[Outcome, ...]

    @property
    def attainments(self) -> list[float]:
        """With the seeds that something was judged with."""
        return [outcome.attainment for outcome in self.outcomes if outcome.offered]

    @property
    def in_time_per_s(self) -> float:
        return self.offered_per_s * median(outcome.in_time_share for outcome in self.outcomes)

    @property
    def requests(self) -> int:
        """That came and were counted, with every seed at least."""
        return min(outcome.came for outcome in self.outcomes)

    def groups(self, world: World) -> list[Group]:
        """The classes of models that have several, and the tenants of all."""
        engines = [outcome.engine for outcome in self.outcomes if outcome.engine is not None]
        if not engines:
            return []
        kinds = [
            (model, label, [one.classes[at][place] for one in engines])
            for at, model in enumerate(world.models)
            for place, label in enumerate(world.classes_of(at))
        ]
        several = {model for at, model in enumerate(world.models) if len(world.classes_of(at)) > 1}
        found: dict[tuple[str, str], Group] = {}
        for model, label, counts in kinds:
            if model in several:
                group = Group(f"{model}: {label.name}")
                found.setdefault((model, label.name), group).add(counts)
        # No model is called "".
        for _, label, counts in kinds if world.settings.tenants else ():
            group = Group(f"tenant {label.tenant or '(others)'}")
            found.setdefault(("", label.tenant), group).add(counts)
        return list(found.values())

    def in_time_per_s_of(self, group: Group) -> float:
        """As in_time_per_s, of a group."""
        pairs = zip(self._parts(group), group.in_time_shares, strict=True)
        return self.offered_per_s * median(part * share for part, share in pairs)

    def offered_per_s_of(self, group: Group) -> float:
        return self.offered_per_s * median(self._parts(group))

    def _parts(self, group: Group) -> list[float]:
        """Of what came, by seed."""
        came = zip(group.sums("offered"), self.outcomes, strict=True)
        return [count / outcome.came for count, outcome in came]

    def record(self, world: World) -> dict[str, Any]:
        """As JSON has it; medians over the seeds. None: nothing was judged."""
        spread = self.attainments
        worst = (o.worst_attainment for o in self.outcomes if o.offered)
        record: dict[str, Any] = {
            "policy": self.policy,
            "load": round(self.factor, 4),
            "offered_per_s": round(self.offered_per_s, 1),
            "in_time_per_s": round(self.in_time_per_s, 1),
            "attainment": _rounded(median(spread) if spread else None),
            "attainment_lowest": _rounded(min(spread, default=None)),
            "attainment_highest": _rounded(max(spread, default=None)),
            "worst_model_attainment": _rounded(min(worst, default=None)),
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
                record["models"][at]["offered"] = sum(kind.offered for kind in kinds)
                record["models"][at]["classes"] = [
                    {**vars(label), **vars(kind), "attainment": _rounded(kind.attainment)}
                    for label, kind in zip(world.classes_of(at), kinds, strict=True)
                ]
        return record


@dataclass(frozen=True)
class Plan:
    """What a study runs; `tuned` is what `tune` found for its tuned policies.

    The attainment over time is that at load `focus`.
    """

    policies: tuple[str, ...]
    factors: tuple[float, ...]
    seeds: tuple[int, ...]
    requests: int
    focus: float
    tuned: Mapping[str, Tuned] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        return len(self.policies) * len(self.factors) * len(self.seeds)


def tune(world: World, plan: Plan) -> Plan:
    """With the settings of its tuned policies, searched with its first seed. Raises ValueError."""
    found = {
        name: tuned(world, name, seed=plan.seeds[0], requests=plan.requests)
        for name in plan.policies
        if name in TUNED
    }
    return replace(plan, tuned=found)


def policy_of(name: str, world: World, plan: Plan) -> Policy:
    """The policy `name` of scheduler.simulation.compare; the engine with the world's settings."""
    if name in plan.tuned:
        return plan.tuned[name].policy
    return engine(world.settings) if name == ENGINE else POLICIES[name]


def points(world: World, plan: Plan, on_run: Callable[[], None]) -> Iterable[Point]:
    """Every policy at every load; `on_run` after each run. Raises ValueError."""
    for name in plan.policies:
        policy = policy_of(name, world, plan)
        for factor in plan.factors:
            outcomes = []
            for seed in plan.seeds:
                scenario = replace(world.at(factor), seed=seed, requests=plan.requests)
                if factor == plan.focus and seed == plan.seeds[0]:
                    scenario = replace(scenario, interval_ms=_interval_ms(world, plan, factor))
                outcomes.append(simulate(scenario, policy))
                on_run()
                if not outcomes[-1].came:
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
        policy = policy_of(name, world, plan)
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
        waiting = max((sum(kind.unanswered for kind in one.kinds) for one in engines), default=0)
        if waiting > 0:
            told.append(
                f"{at}: {waiting} requests without a deadline waited when it ended, "
                "in no attainment"
            )
    return told


def over_time(world: World, plan: Plan, found: Sequence[Point]) -> dict[str, list[dict[str, Any]]]:
    """By policy: judged and in-time requests in intervals of the run at load `focus`."""
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
