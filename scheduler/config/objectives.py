"""Objectives of a model's requests, by priority class, and the tenants that share the executors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from scheduler.config.headers import TenantHeader
from scheduler.config.section import Section
from scheduler.config.units import Duration, format_duration, parse_duration_ns

if TYPE_CHECKING:
    from scheduler.config.schema import Batching

# Shorter than a request takes through the scheduler and back; longer than anybody waits.
SLO_MIN_NS = 100_000
SLO_MAX_NS = 24 * 3600 * 10**9
LEVELS_MAX = 32
# One of them is everybody who is not named.
TENANTS_MAX = 1024
WEIGHT_MIN, WEIGHT_MAX = 1e-6, 1e6
ATTAINMENT_DEFAULT = 0.99
# Margins are learned for this part of the batches and for no other.
ATTAINMENT_MIN, ATTAINMENT_MAX = 0.5, 0.9999
QUEUE_REQUESTS, QUEUE_REQUESTS_MAX = 10_000, 10_000_000


def _meant(duration_ns: int) -> int:
    if duration_ns and not SLO_MIN_NS <= duration_ns <= SLO_MAX_NS:
        raise ValueError(
            f"{format_duration(duration_ns)} is out of the range of "
            f"{format_duration(SLO_MIN_NS)} to {format_duration(SLO_MAX_NS)}"
        )
    return duration_ns


def _objective(value: object) -> int:
    if value == "none":
        return 0
    return _positive(value, "leave the key out, or write none where another is inherited")


def _objective_of_level(value: object) -> int:
    if value == "none":
        raise ValueError(
            "none is no objective; write best_effort: true for a level without one, or leave the "
            "key out for the model's"
        )
    if value is None:
        return 0
    return _positive(value, "leave the key out for the model's, or write best_effort: true")


def _positive(value: object, fix: str) -> int:
    duration_ns = parse_duration_ns(value)
    if not duration_ns:
        raise ValueError(f"{value} is no objective; {fix}")
    return duration_ns


def _waited(duration_ns: int) -> int:
    if duration_ns > SLO_MAX_NS:
        raise ValueError(
            f"{format_duration(duration_ns)} is longer than anybody waits; write at most "
            f"{format_duration(SLO_MAX_NS)}"
        )
    return duration_ns


def _part(value: float) -> float:
    if not 0 < value < 1:
        hint = f"; for {value:g} % write {value / 100:g}" if 1 < value < 100 else ""
        raise ValueError(
            f"{value:g} is no part of the requests; write a number between 0 and 1 such as "
            f"{ATTAINMENT_DEFAULT}{hint}"
        )
    return value


def _part_of_model(value: float) -> float:
    part = _part(value)
    if not ATTAINMENT_MIN <= part <= ATTAINMENT_MAX:
        raise ValueError(
            f"{value:.10g} is out of the range of {ATTAINMENT_MIN:g} to {ATTAINMENT_MAX:g}, for "
            "which margins are learned"
        )
    return part


def _weight(value: float) -> float:
    # Far smaller ones would make sums of what is charged infinite.
    if not (math.isfinite(value) and WEIGHT_MIN <= value <= WEIGHT_MAX):
        raise ValueError(
            f"{value:g} is no weight; write a number from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}"
        )
    return value


def _by_level(value: object) -> object:
    """A list, of the levels from 1 on, as a mapping."""
    if isinstance(value, (list, tuple)):
        return {str(level): {} if item is None else item for level, item in enumerate(value, 1)}
    return value


# In nanoseconds; 0: none, which is written as that.
Objective = Annotated[
    int,
    BeforeValidator(_objective),
    AfterValidator(_meant),
    PlainSerializer(lambda duration_ns: format_duration(duration_ns) if duration_ns else "none"),
]
ObjectiveOfLevel = Annotated[
    int,
    BeforeValidator(_objective_of_level),
    AfterValidator(_meant),
    PlainSerializer(lambda duration_ns: format_duration(duration_ns) if duration_ns else None),
]
AgeBound = Annotated[Duration, AfterValidator(_meant)]
QueueDelay = Annotated[Duration, AfterValidator(_waited)]
Attainment = Annotated[float, AfterValidator(_part_of_model)]
AttainmentOfLevel = Annotated[float, AfterValidator(_part)]
Weight = Annotated[float, AfterValidator(_weight)]


class PriorityClass(Section):
    """What the requests of one priority level ask for."""

    slo: ObjectiveOfLevel = Field(default=0, description="latency objective; else the model's")
    best_effort: bool = Field(
        default=False,
        description="no objective: never refused for being late, served when no other is urgent",
    )
    attainment: AttainmentOfLevel | None = Field(
        default=None,
        description="the part of its requests up to which the level goes before those below it, "
        "while they miss theirs; none: it always does",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> PriorityClass:
        if self.best_effort and self.slo:
            raise ValueError("best_effort has no slo; leave one of them out")
        if self.best_effort and self.attainment:
            raise ValueError("best_effort has no attainment; leave one of them out")
        return self


Priorities = Annotated[dict[int, PriorityClass], BeforeValidator(_by_level)]


class Tenants(Section):
    """Who shares the executors by which weights where requests compete."""

    metadata_key: TenantHeader | None = Field(
        default=None, description="the request header that names the tenant; none: no tenants"
    )
    weights: dict[Annotated[str, Field(min_length=1, max_length=256)], Weight] = Field(
        default={}, description="share of device time by the value of that header"
    )
    default_weight: Weight = Field(
        default=1.0, description="of all others, who share one place, and of requests without it"
    )

    @model_validator(mode="after")
    def _named_by_a_header(self) -> Tenants:
        if self.weights and self.metadata_key is None:
            raise ValueError("weights need metadata_key, the request header that names the tenant")
        if len(self.weights) >= TENANTS_MAX:
            raise ValueError(
                f"{len(self.weights)} tenants are above the limit of {TENANTS_MAX - 1}; those "
                "without a weight of their own share default_weight"
            )
        return self


def objective_problems(batching: Batching) -> list[str]:
    """Contradictions among objectives and classes, as sentences with the fix."""
    return [
        *_delay_problems(batching),
        *_class_problems(batching),
        *_load_aware_problems(batching),
    ]


def objectives(batching: Batching) -> dict[str, int]:
    """The objectives that act, in nanoseconds, by their key below the model's."""
    found = {"slo": batching.slo} if batching.slo else {}
    for level, item in sorted(batching.priorities.items()):
        if item.slo:
            found[f"priorities.{level}.slo"] = item.slo
    return found


def _delay_problems(batching: Batching) -> list[str]:
    delay = batching.max_queue_delay
    return [
        f"max_queue_delay {format_duration(delay)} leaves nothing of {key} "
        f"{format_duration(slo)}; make max_queue_delay smaller than slo"
        for key, slo in objectives(batching).items()
        if delay >= slo
    ]


def _class_problems(batching: Batching) -> list[str]:
    problems: list[str] = []
    levels = max(batching.priority_levels, 1)
    beyond = [level for level in batching.priorities if not 1 <= level <= levels]
    if beyond:
        problems.append(
            f"priorities {beyond[0]} is not one of the {levels} priority_levels; 1 is the most "
            "urgent, priority_levels the last"
        )
    best_effort = [level for level, item in batching.priorities.items() if item.best_effort]
    if best_effort and not beyond:
        below = [n for n in range(min(best_effort), levels + 1) if n not in best_effort]
        if below:
            problems.append(
                f"priorities {min(best_effort)} is best_effort and above level {below[0]}, which "
                "is not; best effort is for the last levels"
            )
        if batching.slo and len(best_effort) == levels:
            problems.append("slo acts on no level, all are best_effort; leave one of them out")
    if batching.aging and levels == 1:
        problems.append("aging needs priority_levels of 2 or more; leave it out")
    return problems


def _load_aware_problems(batching: Batching) -> list[str]:
    if batching.batching != "load_aware":
        return []
    waiting: dict[str, Any] = {
        "max_queue_delay": batching.max_queue_delay,
        "preferred_batch_rows": batching.preferred_batch_rows,
    }
    return [
        f"{key} contradicts batching: load_aware, which decides by itself how long to wait; set "
        f"it to {'0' if key == 'max_queue_delay' else '[]'}, or set batching: fixed_delay"
        for key, value in waiting.items()
        if value
    ]
