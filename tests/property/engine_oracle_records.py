"""What the engine's plain-Python twin keeps, and the constants of csrc/engine/core.h."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NEVER = (1 << 63) - 1
LONG_AGO = -(1 << 63)
NO_BACKEND = 0xFFFFFFFF
MS = 1_000_000
SECOND = 1000 * MS

UNSERVED_MAX = 5 * SECOND
UNSERVED_ADMIT = SECOND
TRIES_MAX = 8
BISECT_TENTHS_MAX, BISECT_COST = 1280, 10
SUSPECT_FAILURE, SUSPECT_UNMERGED, SUSPECTS_MAX = 8, 32, 32
UNMERGED = 5 * SECOND
PASSED_OVER_MAX = 8
STAGE_AHEAD = 2 * MS
ANSWER_MARGIN_MIN = 2 * MS
REST_MIN, REST_MAX = 10 * MS, SECOND
GIVEN_UP_MIN = MS
STATS_ROWS_MAX = 4096
BEST_EFFORT = 1 << 31

OK, CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE = 0, 1, 4, 13, 14


def after(moment: int, duration: int) -> int:
    """moment + duration, where never stays never."""
    return NEVER if NEVER in (moment, duration) else min(moment + duration, NEVER)


def averaged(average: int, sample: int) -> int:
    if average == 0:
        return sample
    change = sample - average
    return average + (change // 8 if change >= 0 else -(-change // 8))


@dataclass
class Policy:
    in_use: bool = True
    merge: bool = True
    rows_max: int = 1
    preferred_rows: tuple[int, ...] = ()
    mandatory_rows: tuple[int, ...] = ()
    queue_delay_max_ns: int = 0
    priority_levels: int = 1
    default_priority: int = 1
    slo_ns: int = 0
    queue_requests_max: int = 10_000
    queue_bytes_max: int = 1 << 30
    queue_age_max_ns: int = 0
    staged_batches_max: int = 1
    idempotent: bool = True
    cancellable: bool = False
    direct_max: int = 0
    sequence_idle_ns: int = 0
    admitting: bool = True
    hold_requests: int = 0
    levels: tuple[tuple[int, bool], ...] = ()  # (slo_ns, best_effort) of level 1, 2, ...

    def __post_init__(self) -> None:
        self.rows_max = max(self.rows_max, 1)
        self.merge = self.merge and self.direct_max == 0
        fitting = {size for size in self.preferred_rows if 0 < size <= self.rows_max}
        self.preferred_rows = tuple(sorted(fitting))
        fitting = {size for size in self.mandatory_rows if 0 < size <= self.rows_max}
        self.mandatory_rows = tuple(sorted(fitting))

    def ranked(self, priority: int) -> tuple[int, int]:
        """(queue level, slo_ns) of a request; levels without an objective come after the others."""
        level = priority if 1 <= priority <= self.priority_levels else self.default_priority
        slo_ns, best_effort = self.levels[level - 1] if level <= len(self.levels) else (0, False)
        return (level + BEST_EFFORT, 0) if best_effort else (level, slo_ns or self.slo_ns)

    def batching(self) -> tuple[Any, ...]:
        sizes = (self.rows_max, self.preferred_rows, self.mandatory_rows)
        return (self.in_use, self.merge, *sizes)

    @property
    def limit(self) -> int:
        return self.mandatory_rows[-1] if self.mandatory_rows else self.rows_max

    @property
    def enough(self) -> int:
        return min(self.preferred_rows[0], self.limit) if self.preferred_rows else self.limit

    @property
    def full(self) -> int:
        return min(self.preferred_rows[-1], self.limit) if self.preferred_rows else self.limit

    def fill(self, queued: int) -> int:
        limit = self.limit
        for sizes in (self.preferred_rows, self.mandatory_rows):
            reached = [size for size in sizes if size <= min(queued, limit)]
            limit = reached[-1] if reached else limit
        return limit

    def padded(self, rows: int) -> int:
        return next((size for size in self.mandatory_rows if size >= rows), rows)


@dataclass(eq=False)
class Request:
    number: int
    user: int
    model: int
    rows: int
    bytes: int
    level: int
    arrival: int
    deadline: int
    # signature, pinned backend, mergeable; None: waits behind others of its sequence
    group: tuple[int, int, bool] | None
    sent: int = 0
    queued: bool = True
    dispatched: bool = False
    answered: bool = False
    batches: list[Batch] = field(default_factory=list)
    sequence: Sequence | None = None
    start: bool = False
    end: bool = False
    path: int = 0
    pin: int = NO_BACKEND

    @property
    def left(self) -> int:
        return self.rows - self.sent

    @property
    def rank(self) -> tuple[int, int, int]:
        return (self.level, self.deadline, self.number)


@dataclass(eq=False)
class Sequence:
    key: int
    number: int
    waiting: list[Request] = field(default_factory=list)  # queued; the first may be in a group
    inflight: int = 0
    again: Request | None = None  # waits to be sent again
    path: int = 0
    backend: int = NO_BACKEND
    started: bool = False
    ended: bool = False
    lost: bool = False
    idle_until: int = NEVER

    @property
    def idle(self) -> bool:
        return not self.inflight and not self.waiting


@dataclass(eq=False)
class Batch:
    model: int
    group: tuple[int, int, bool]
    members: list[tuple[Request, int, int]] = field(default_factory=list)  # row_begin, rows
    number: int = 0  # 0: waits to be sent again
    backend: int = NO_BACKEND
    rows: int = 0
    dispatched_at: int = 0
    started_at: int = NEVER
    tries: int = 0
    avoid: int = NO_BACKEND
    retried: bool = False
    release_at: int = NEVER  # given up: when its slot is free again

    @property
    def live(self) -> list[tuple[Request, int, int]]:
        return [member for member in self.members if not member[0].answered]


@dataclass(eq=False)
class Group:
    """Requests that may share a batch; ready, or waiting until `ready_at`."""

    key: tuple[int, int, bool]
    ready: bool = False
    ready_at: int = LONG_AGO


@dataclass(eq=False)
class Placement:
    backend: int
    instances: int = 1
    slots: int = 1
    ready: bool = False
    configured: bool = True
    out: list[Batch] = field(default_factory=list)
    ns_per_row: int = 0
    batch_ns: int = 0
    failures: int = 0
    rest_until: int = LONG_AGO
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def rows_out(self) -> int:
        return sum(batch.rows for batch in self.out)

    def promote(self, now: int) -> None:
        for batch in self.out[: self.slots]:
            batch.started_at = now if batch.started_at == NEVER else batch.started_at

    def rest(self, now: int) -> None:
        if self.rest_until > now:
            return
        self.rest_until = now + min(REST_MIN << min(self.failures, 7), REST_MAX)
        self.failures += 1

    def recover(self) -> None:
        self.failures, self.rest_until = 0, LONG_AGO

    def stage_at(self, staged_max: int) -> int:
        staged = len(self.out) - self.instances
        if staged >= staged_max or self.batch_ns == 0:
            return NEVER
        turns = staged * self.batch_ns // self.instances
        return self.out[0].started_at + self.batch_ns + turns - STAGE_AHEAD


@dataclass
class Stats:
    sums: Counter[str] = field(default_factory=Counter)
    last_answer: int = 0
    sizes: dict[int, list[int]] = field(default_factory=dict)  # rows: batches, backend_ns

    def answered(self, outcome: str, reason: str, rows: int, ns: int) -> None:
        if outcome == "expired":
            outcome = "rejected" if reason == "expired_in_queue" else "failed"
        self.sums[outcome] += 1
        self.sums[outcome + "_ns"] += ns
        self.sums["rows"] += rows if outcome == "completed" else 0

    def executed(self, rows: int, ns: int) -> None:
        size = self.sizes.setdefault(rows, [0, 0])
        size[0] += 1
        size[1] += ns
        self.sums["batches"] += 1


@dataclass(eq=False)
class Model:
    index: int
    policy: Policy = field(default_factory=lambda: Policy(in_use=False))
    merging_off: bool = False
    dirty: bool = False
    holding: bool = False
    placements: list[Placement] = field(default_factory=list)
    queue: list[Request] = field(default_factory=list)  # in order of admission
    groups: dict[tuple[int, int, bool], Group] = field(default_factory=dict)
    retries: list[Batch] = field(default_factory=list)
    unserved: dict[int, int] = field(default_factory=dict)  # by pin; missing: never was served
    batch_ns: int = 0
    drain_ns: int = 0
    last_complete: int = 0
    bisect_tenths: int = BISECT_TENTHS_MAX
    sequences: dict[int, Sequence] = field(default_factory=dict)
    doomed: list[Sequence] = field(default_factory=list)
    suspects: list[list[int]] = field(default_factory=list)  # signature, score, unmerged until
    moment: int = NEVER
    counts: Counter[Any] = field(default_factory=Counter)
    stats: Stats = field(default_factory=lambda: Stats())

    @property
    def merging(self) -> bool:
        return self.policy.merge and not self.merging_off

    def placement(self, backend: int) -> Placement | None:
        return next((p for p in self.placements if p.backend == backend), None)

    def members(self, key: tuple[int, int, bool]) -> list[Request]:
        return sorted((r for r in self.queue if r.group == key), key=lambda r: r.rank)

    def pins(self) -> list[int]:
        return [NO_BACKEND, *(p.backend for p in self.placements)]

    def has_work(self, pin: int) -> bool:
        waiting = any(r.group is not None and r.group[1] == pin for r in self.queue)
        return waiting or any(b.group[1] == pin for b in self.retries)
