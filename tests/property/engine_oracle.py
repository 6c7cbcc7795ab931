"""The engine in plain Python: the readable twin that csrc/engine is compared with.

Same events, same actions. Everything is a list that is searched and sorted where it is needed;
nothing is indexed, so nothing can be forgotten in an index. Requests are named by their admission
number and batches by their dispatch number, both from 1.
"""

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
BISECT_TENTHS_MAX, BISECT_COST = 320, 10
SUSPECT_FAILURE, SUSPECT_UNMERGED, SUSPECTS_MAX = 8, 32, 32
UNMERGED = 5 * SECOND
PASSED_OVER_MAX = 8
STAGE_AHEAD = 2 * MS
REST_MIN, REST_MAX = 10 * MS, SECOND

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

    def __post_init__(self) -> None:
        self.rows_max = max(self.rows_max, 1)
        fitting = {size for size in self.preferred_rows if 0 < size <= self.rows_max}
        self.preferred_rows = tuple(sorted(fitting))
        fitting = {size for size in self.mandatory_rows if 0 < size <= self.rows_max}
        self.mandatory_rows = tuple(sorted(fitting))

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
    group: tuple[int, int, bool]  # signature, pinned backend, mergeable
    sent: int = 0
    queued: bool = True
    dispatched: bool = False
    answered: bool = False
    batches: list[Batch] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.rows - self.sent

    @property
    def rank(self) -> tuple[int, int, int]:
        return (self.level, self.deadline, self.number)


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
    ready: bool = False
    configured: bool = True
    out: list[Batch] = field(default_factory=list)
    ns_per_row: int = 0
    batch_ns: int = 0
    failures: int = 0
    rest_until: int = LONG_AGO

    @property
    def rows_out(self) -> int:
        return sum(batch.rows for batch in self.out)

    def promote(self, now: int) -> None:
        for batch in self.out[: self.instances]:
            batch.started_at = now if batch.started_at == NEVER else batch.started_at

    def rest(self, now: int) -> None:
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


@dataclass(eq=False)
class Model:
    index: int
    policy: Policy = field(default_factory=lambda: Policy(in_use=False))
    merging_off: bool = False
    dirty: bool = False
    placements: list[Placement] = field(default_factory=list)
    queue: list[Request] = field(default_factory=list)  # in order of admission
    groups: dict[tuple[int, int, bool], Group] = field(default_factory=dict)
    retries: list[Batch] = field(default_factory=list)
    unserved: dict[int, int] = field(default_factory=dict)  # by pin; missing: never was served
    batch_ns: int = 0
    drain_ns: int = 0
    last_complete: int = 0
    bisect_tenths: int = BISECT_TENTHS_MAX
    suspects: list[list[int]] = field(default_factory=list)  # signature, score, unmerged until
    moment: int = NEVER
    counts: Counter[Any] = field(default_factory=Counter)

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
        waiting = any(r.group[1] == pin for r in self.queue)
        return waiting or any(b.group[1] == pin for b in self.retries)


class Oracle:
    def __init__(self) -> None:
        self.models: list[Model] = []
        self.available: dict[int, bool] = {}
        self.draining = False
        self.requests: dict[int, Request] = {}  # admitted and not answered
        self.batches: dict[int, Batch] = {}  # at a backend
        self.admitted = 0
        self.dispatched = 0
        self.wake = NEVER
        self.actions: list[tuple[Any, ...]] = []

    # -- configuration ---------------------------------------------------------------------------

    def configure_model(
        self, index: int, placements: list[tuple[int, int, bool]], now: int, **policy: Any
    ) -> None:
        while len(self.models) <= index:
            self.models.append(Model(len(self.models)))
        model = self.models[index]
        wanted = Policy(**policy)
        if wanted.batching() != model.policy.batching():
            model.merging_off = False
        model.policy = wanted
        model.dirty = True
        self._place(model, placements, now)
        if not wanted.in_use:
            self._fail_pin(model, NO_BACKEND, now)
            model.suspects.clear()
        for place in list(model.placements):
            if not wanted.in_use or not place.configured:
                self._fail_pin(model, place.backend, now)
        waiting, model.retries = model.retries, []
        # Pool by pool, because every group is cut when its pool's turn comes.
        for pin in model.pins():
            for batch in [b for b in waiting if b.group[1] == pin]:
                self._retry(model, batch, self._detach(batch), batch.tries, batch.avoid)
        for group in model.groups.values():
            self._refresh(model, group, now)
        self._update_served(model, now)

    def _place(self, model: Model, wanted: list[tuple[int, int, bool]], now: int) -> None:
        placements = []
        for backend, instances, ready in wanted:
            place = model.placement(backend) or Placement(backend)
            place.instances, place.ready, place.configured = max(instances, 1), ready, True
            place.promote(now)
            placements.append(place)
        for place in model.placements:
            if place in placements:
                continue
            place.configured = False
            if place.out or model.has_work(place.backend):
                placements.append(place)
            else:
                model.unserved.pop(place.backend, None)
        model.placements = placements

    def set_backend(self, backend: int, available: bool, now: int) -> None:
        if self.available.get(backend, False) == available:
            return
        self.available[backend] = available
        for model in self.models:
            place = model.placement(backend)
            if place is None:
                continue
            if available:
                place.recover()
            self._update_served(model, now)
            model.dirty = True

    def set_draining(self, draining: bool) -> None:
        self.draining = draining

    def _usable(self, place: Placement) -> bool:
        return place.configured and place.ready and self.available.get(place.backend, False)

    def _update_served(self, model: Model, now: int) -> None:
        served = {place.backend: self._usable(place) for place in model.placements}
        served[NO_BACKEND] = any(served.values())
        for pin, is_served in served.items():
            if is_served:
                model.unserved[pin] = NEVER
            elif model.unserved.get(pin) == NEVER:
                model.unserved[pin] = now

    # -- requests --------------------------------------------------------------------------------

    def submit(
        self,
        now: int,
        *,
        user: int = 0,
        model: int = 0,
        rows: int = 1,
        signature: int = 0,
        bytes: int = 0,
        priority: int = 0,
        arrival: int | None = None,
        deadline: int = NEVER,
        mergeable: bool = True,
        pinned_backend: int = NO_BACKEND,
    ) -> tuple[int, str, int]:
        """(number or 0, reason, retry_after_ns)."""
        if model >= len(self.models) or not self.models[model].policy.in_use:
            return 0, "unknown_model", 0
        target = self.models[model]
        policy = target.policy
        arrival = now if arrival is None else min(arrival, now)
        if policy.slo_ns > 0:
            deadline = min(deadline, after(arrival, policy.slo_ns))
        reason = self._refusal(target, bytes, pinned_backend, deadline, now)
        if reason != "none":
            target.counts["refused", reason] += 1
            return 0, reason, self._retry_after(target, reason)
        self.admitted += 1
        target.counts["admitted"] += 1
        ranked = 1 <= priority <= policy.priority_levels
        level = priority if ranked else policy.default_priority
        key = (signature, pinned_backend, mergeable and rows > 0)
        request = Request(
            self.admitted, user, model, rows, bytes, level, arrival, deadline, key
        )
        self.requests[request.number] = request
        target.queue.append(request)
        target.dirty = True
        group = target.groups.setdefault(key, Group(key))
        if not group.ready or target.members(key)[0] is request:
            self._refresh(target, group, now)
        return request.number, "none", 0

    def _refusal(self, model: Model, size: int, pin: int, deadline: int, now: int) -> str:
        policy = model.policy
        if self.draining:
            return "draining"
        if deadline <= now:
            return "deadline_infeasible"
        place = model.placement(pin)
        if pin != NO_BACKEND and (place is None or not place.configured):
            return "no_backend"
        unserved = model.unserved.get(pin, LONG_AGO)
        if unserved != NEVER and now >= unserved + UNSERVED_ADMIT:
            return "no_backend"
        if len(model.queue) + 1 > policy.queue_requests_max:
            return "queue_full"
        if sum(r.bytes for r in model.queue) + size > policy.queue_bytes_max:
            return "queue_full"
        if policy.queue_age_max_ns > 0 and model.queue:
            age = now - model.queue[0].arrival
            if age > policy.queue_age_max_ns:
                return "queue_age"
        return "none"

    def _retry_after(self, model: Model, reason: str) -> int:
        if reason in ("queue_full", "queue_age"):
            return min(max(model.drain_ns * len(model.queue), MS), 10 * SECOND)
        return SECOND if reason in ("draining", "no_backend") else 0

    def cancel(self, number: int, now: int) -> None:
        if number in self.requests:
            self._finish(self.requests[number], now, "cancelled", "client_cancelled", CANCELLED)

    def fail_all(self, reason: str, now: int) -> None:
        for request in list(self.requests.values()):
            self._finish(request, now, "failed", reason, UNAVAILABLE)

    def _finish(
        self,
        request: Request,
        now: int,
        outcome: str,
        reason: str,
        code: int,
        batch: int = 0,
        backend: int = NO_BACKEND,
    ) -> None:
        model = self.models[request.model]
        if request.queued:
            self._unqueue(model, request)
            model.dirty = True
            self._refresh(model, model.groups[request.group], now)
        request.answered = True
        del self.requests[request.number]
        for carrier in reversed(request.batches):
            self._left_alone(model, carrier, now)
        model.counts[outcome, reason] += 1
        if request.deadline != NEVER and outcome != "cancelled":
            model.counts["slo_total"] += 1
            model.counts["slo_good"] += outcome == "completed" and now <= request.deadline
        queued_ns = max(now - request.arrival, 0)
        self.actions.append(
            ("answer", request.number, request.user, request.model, outcome, reason, code, batch,
             backend, queued_ns)
        )  # fmt: skip

    def _left_alone(self, model: Model, batch: Batch, now: int) -> None:
        """Ends a batch that nobody waits for, where that is possible."""
        if batch.live:
            return
        if batch.number == 0:
            model.retries.remove(batch)
            model.dirty = True
        elif model.policy.cancellable:
            self.actions.append(("abandon", batch.number, model.index, batch.backend))
            self._leave(model, batch, now)

    # -- queue -----------------------------------------------------------------------------------

    def _unqueue(self, model: Model, request: Request) -> None:
        request.queued = False
        model.queue.remove(request)

    def _merges(self, model: Model, key: tuple[int, int, bool], now: int) -> bool:
        unmerged = any(s[0] == key[0] and now < s[2] for s in model.suspects)
        return key[2] and model.merging and not unmerged

    def _refresh(self, model: Model, group: Group, now: int) -> None:
        members = model.members(group.key)
        if not members:
            group.ready = False
            return
        group.ready_at = self._ready_at(model, group.key, members)
        group.ready = group.ready_at <= now

    def _ready_at(
        self, model: Model, key: tuple[int, int, bool], members: list[Request]
    ) -> int:
        policy = model.policy
        if policy.queue_delay_max_ns == 0 or not key[2] or not model.merging:
            return LONG_AGO
        if sum(r.left for r in members) >= policy.enough:
            return LONG_AGO
        oldest = min(members, key=lambda r: r.number)
        waited = oldest.arrival + policy.queue_delay_max_ns
        lead = members[0]
        if lead.deadline == NEVER:
            return waited
        return min(waited, lead.deadline - model.batch_ns - model.batch_ns // 4)

    # -- dispatch --------------------------------------------------------------------------------

    def step(self, now: int) -> None:
        due = [r for r in self.requests.values() if r.deadline <= now]
        for request in sorted(due, key=lambda r: (r.deadline, r.number)):
            reason = "expired_in_flight" if request.dispatched else "expired_in_queue"
            self._finish(request, now, "expired", reason, DEADLINE_EXCEEDED)
        for model in self.models:
            if model.dirty or model.moment <= now:
                self._run(model, now)
                model.moment = self._next_moment(model, now)
                model.dirty = False
        moments = [r.deadline for r in self.requests.values()] + [m.moment for m in self.models]
        soonest = min(moments, default=NEVER)
        if soonest < self.wake or (self.wake <= now and soonest != self.wake):
            self.wake = soonest
            self.actions.append(("wake", soonest))

    def _run(self, model: Model, now: int) -> None:
        for pin in model.pins():
            unserved = model.unserved.get(pin, LONG_AGO)
            if unserved != NEVER and model.has_work(pin) and now >= unserved + UNSERVED_MAX:
                self._fail_pin(model, pin, now)
        for group in model.groups.values():
            if model.members(group.key) and group.ready_at <= now:
                group.ready = True
        while self._dispatch_retry(model, now) or self._dispatch_next(model, now):
            pass

    def _fail_pin(self, model: Model, pin: int, now: int) -> None:
        for request in [r for r in model.queue if r.group[1] == pin]:
            self._finish(request, now, "failed", "no_backend", UNAVAILABLE)
        for batch in [b for b in model.retries if b.group[1] == pin]:
            for request, _, _ in batch.live:
                if not request.answered:
                    self._finish(request, now, "failed", "no_backend", UNAVAILABLE)

    def _choose(
        self,
        model: Model,
        pin: int,
        now: int,
        rows: int,
        *,
        stage_with: int = -1,
        merging: bool = False,
        avoid: int = NO_BACKEND,
    ) -> tuple[Placement | None, int]:
        """The placement for a batch, and until when those that might do are blocked.

        `stage_with` is the number of rows that wait; negative: the batch may not be staged.
        """
        eligible = [p for p in model.placements if self._usable(p)]
        if pin != NO_BACKEND:
            eligible = [p for p in eligible if p.backend == pin]
        others = [p for p in eligible if p.backend != avoid]
        if avoid != NO_BACKEND and any(p.rest_until <= now for p in others):
            eligible = others
        free, blocked_until = [], NEVER
        for place in eligible:
            if place.rest_until > now:
                blocked_until = min(blocked_until, place.rest_until)
                continue
            if len(place.out) >= place.instances:
                if stage_with < 0:
                    continue
                half = 2 * stage_with >= model.policy.full and stage_with >= place.rows_out
                if merging and not (stage_with >= model.policy.full or half):
                    continue
                at = place.stage_at(model.policy.staged_batches_max)
                if at > now:
                    blocked_until = min(blocked_until, at)
                    continue
            free.append(place)

        def cost(place: Placement) -> tuple[int, int]:
            expected = (place.rows_out + rows) * place.ns_per_row // place.instances
            return expected, place.rows_out

        return min(free, key=cost, default=None), blocked_until

    def _choose_for_retry(self, model: Model, batch: Batch, now: int) -> tuple[Any, int]:
        rows = sum(rows for _, _, rows in batch.live)
        return self._choose(model, batch.group[1], now, rows, avoid=batch.avoid)

    def _batch_limit(self, model: Model, key: tuple[int, int, bool], merging: bool) -> int:
        members = model.members(key)
        splits = key[2] and model.merging
        part = min(members[0].left, model.policy.limit) if splits else members[0].left
        return max(part, model.policy.fill(sum(r.left for r in members))) if merging else part

    def _choose_for_group(self, model: Model, group: Group, now: int) -> tuple[Any, int]:
        waiting = sum(r.left for r in model.members(group.key))
        merging = self._merges(model, group.key, now)
        rows = min(waiting, self._batch_limit(model, group.key, merging))
        pin = group.key[1]
        return self._choose(model, pin, now, rows, stage_with=waiting, merging=merging)

    def _lead_group(self, model: Model, pin: int) -> Group | None:
        ready = [g for g in model.groups.values() if g.ready and g.key[1] == pin]
        return min(ready, key=lambda g: model.members(g.key)[0].rank, default=None)

    def _first_retry(self, model: Model, pin: int) -> Batch | None:
        return next((b for b in model.retries if b.group[1] == pin), None)

    def _dispatch_retry(self, model: Model, now: int) -> bool:
        chosen = []
        for pin in model.pins():
            batch = self._first_retry(model, pin)
            if batch is None:
                continue
            place, _ = self._choose_for_retry(model, batch, now)
            if place is not None:
                chosen.append((model.retries.index(batch), batch, place))
        if not chosen:
            return False
        _, batch, place = min(chosen, key=lambda choice: choice[0])
        model.retries.remove(batch)
        batch.members = batch.live
        self._send(model, batch, place, now)
        return True

    def _dispatch_next(self, model: Model, now: int) -> bool:
        chosen = []
        for pin in model.pins():
            group = self._lead_group(model, pin)
            if group is None:
                continue
            place, _ = self._choose_for_group(model, group, now)
            if place is not None:
                chosen.append((model.members(group.key)[0].rank, group, place))
        if not chosen:
            return False
        _, group, place = min(chosen, key=lambda choice: choice[0])
        self._send(model, self._form(model, group, now), place, now)
        return True

    def _form(self, model: Model, group: Group, now: int) -> Batch:
        merging = self._merges(model, group.key, now)
        limit = self._batch_limit(model, group.key, merging)
        batch = Batch(model.index, group.key)
        rows = passed_over = 0
        for request in model.members(group.key):
            part = request.left
            if not batch.members:
                part = min(part, limit)
            elif part > limit - rows:
                passed_over += 1
                if passed_over > PASSED_OVER_MAX:
                    break
                continue
            batch.members.append((request, request.sent, part))
            request.batches.append(batch)
            request.dispatched = True
            request.sent += part
            rows += part
            if request.left == 0:
                self._unqueue(model, request)
            if not merging or rows >= limit:
                break
        self._refresh(model, group, now)
        return batch

    def _send(self, model: Model, batch: Batch, place: Placement, now: int) -> None:
        self.dispatched += 1
        batch.number = self.dispatched
        batch.backend = place.backend
        batch.rows = sum(rows for _, _, rows in batch.members)
        batch.dispatched_at = now
        self.batches[batch.number] = batch
        place.out.append(batch)
        place.promote(now)
        if not batch.retried:
            model.bisect_tenths = min(model.bisect_tenths + 1, BISECT_TENTHS_MAX)
        model.counts["batches"] += 1
        model.counts["retried_batches"] += batch.retried
        pads = batch.group[2] and model.merging
        padded = model.policy.padded(batch.rows) if pads else batch.rows
        deadline = max(request.deadline for request, _, _ in batch.members)
        members = tuple((r.number, r.user, begin, rows) for r, begin, rows in batch.members)
        self.actions.append(
            ("dispatch", batch.number, model.index, place.backend, batch.rows, padded, deadline,
             members)
        )  # fmt: skip

    def _next_moment(self, model: Model, now: int) -> int:
        moments = [NEVER]
        for pin in model.pins():
            if not model.has_work(pin):
                continue
            unserved = model.unserved.get(pin, LONG_AGO)
            if unserved != NEVER:
                moments.append(unserved + UNSERVED_MAX)
                continue
            for group in model.groups.values():
                if group.key[1] == pin and not group.ready and model.members(group.key):
                    moments.append(group.ready_at)
            lead, again = self._lead_group(model, pin), self._first_retry(model, pin)
            if lead is not None:
                moments.append(self._choose_for_group(model, lead, now)[1])
            if again is not None:
                moments.append(self._choose_for_retry(model, again, now)[1])
        return min(moments)

    # -- replies ---------------------------------------------------------------------------------

    def _leave(self, model: Model, batch: Batch, now: int) -> None:
        place = model.placement(batch.backend)
        assert place is not None
        place.out.remove(batch)
        place.promote(now)
        del self.batches[batch.number]
        model.dirty = True

    def _detach(self, batch: Batch) -> list[tuple[Request, int, int]]:
        live = batch.live
        for request, _, _ in live:
            request.batches.remove(batch)
        return live

    def complete(self, number: int, now: int) -> None:
        batch = self.batches.get(number)
        if batch is None:
            return
        model = self.models[batch.model]
        place = model.placement(batch.backend)
        assert place is not None
        place.recover()
        if batch.started_at != NEVER:
            ran = max(now - batch.started_at, 1)
            place.batch_ns = averaged(place.batch_ns, ran)
            per_row = ran // max(batch.rows, 1)
            place.ns_per_row = max(averaged(place.ns_per_row, per_row), 1)
            model.batch_ns = averaged(model.batch_ns, ran)
        self._leave(model, batch, now)
        if len(batch.members) > 1:
            self._suspect_good(model, batch.group[0])
        answered = 0
        for request, _, _ in batch.live:
            request.batches.remove(batch)
            if not request.queued and not request.batches:
                self._finish(request, now, "completed", "none", OK, number, batch.backend)
                answered += 1
        if answered:
            if model.queue and model.last_complete > 0:
                apart = max((now - model.last_complete) // answered, 1)
                model.drain_ns = averaged(model.drain_ns, apart)
            model.last_complete = now

    def dispatch_failed(self, number: int, kind: str, code: int, now: int) -> None:
        batch = self.batches.get(number)
        if batch is None:
            return
        model = self.models[batch.model]
        self._leave(model, batch, now)
        place = model.placement(batch.backend)
        assert place is not None
        if kind in ("nothing_ran", "connection"):
            place.rest(now)
        merged = len(batch.members) > 1
        if kind == "rejected" and merged and not batch.retried:
            self._suspect_failed(model, batch.group[0], now)
        live = self._detach(batch)
        if not live:
            return
        if not merged and kind in ("rejected", "unsplittable"):
            kind = "final"
        self._resolve(model, batch, live, kind, code or INTERNAL, now)

    def _resolve(
        self,
        model: Model,
        batch: Batch,
        live: list[tuple[Request, int, int]],
        kind: str,
        code: int,
        now: int,
    ) -> None:
        reason, fails = "backend_error", True
        if not model.policy.in_use and kind != "final":
            reason, code = "no_backend", UNAVAILABLE
        elif kind in ("nothing_ran", "connection"):
            code = UNAVAILABLE
            again = kind == "nothing_ran" or model.policy.idempotent
            if again and batch.tries + 1 < TRIES_MAX:
                fails = False
                self._retry(model, batch, live, batch.tries + 1, batch.backend)
        elif kind == "unsplittable":
            if not model.merging_off:
                model.merging_off = True
                for group in model.groups.values():
                    self._refresh(model, group, now)
            if model.policy.idempotent:
                fails = False
                self._retry(model, batch, live, batch.tries, batch.backend)
        elif kind == "rejected" and model.policy.idempotent:
            fails = not self._bisect(model, batch, live)
        if fails:
            for request, _, _ in live:
                if not request.answered:
                    self._finish(
                        request, now, "failed", reason, code, batch.number, batch.backend
                    )

    def _retry(
        self,
        model: Model,
        failed: Batch,
        members: list[tuple[Request, int, int]],
        tries: int,
        avoid: int,
    ) -> None:
        together = failed.group[2] and model.merging
        limit = model.policy.limit if together else 1 << 32
        groups: list[list[tuple[Request, int, int]]] = [[]]
        for request, begin, rows in members:
            if not together or sum(r for _, _, r in groups[-1]) + rows > limit:
                groups.append([])
            while rows > limit:
                groups[-1].append((request, begin, limit))
                groups.append([])
                begin, rows = begin + limit, rows - limit
            groups[-1].append((request, begin, rows))
        for group in filter(None, groups):
            batch = Batch(model.index, failed.group, group, tries=tries, avoid=avoid, retried=True)
            for request, _, _ in group:
                request.batches.append(batch)
            model.retries.append(batch)

    def _bisect(
        self, model: Model, failed: Batch, live: list[tuple[Request, int, int]]
    ) -> bool:
        cost = BISECT_COST * (2 if len(live) > 1 else 1)
        if model.bisect_tenths < cost:
            return False
        model.bisect_tenths -= cost
        model.counts["bisected_batches"] += 1
        half = (len(live) + 1) // 2
        self._retry(model, failed, live[:half], failed.tries, NO_BACKEND)
        self._retry(model, failed, live[half:], failed.tries, NO_BACKEND)
        return True

    def _suspect_failed(self, model: Model, signature: int, now: int) -> None:
        suspect = next((s for s in model.suspects if s[0] == signature), None)
        if suspect is None:
            if len(model.suspects) == SUSPECTS_MAX:
                model.suspects.pop(0)
            suspect = [signature, 0, LONG_AGO]
            model.suspects.append(suspect)
        suspect[1] += SUSPECT_FAILURE
        if suspect[1] >= SUSPECT_UNMERGED:
            suspect[1:] = [SUSPECT_UNMERGED - SUSPECT_FAILURE, now + UNMERGED]

    def _suspect_good(self, model: Model, signature: int) -> None:
        for suspect in model.suspects:
            if suspect[0] == signature:
                suspect[1] -= 1
                if suspect[1] <= 0:
                    model.suspects.remove(suspect)
                return

    # -- what is seen from outside ---------------------------------------------------------------

    def take_actions(self) -> list[tuple[Any, ...]]:
        taken, self.actions = self.actions, []
        return taken

    def queue_status(self, index: int) -> tuple[int, int, int, int, int, bool]:
        if index >= len(self.models):
            return (0, 0, 0, NEVER, 0, False)
        model = self.models[index]
        oldest = model.queue[0].arrival if model.queue else NEVER
        out = sum(len(place.out) for place in model.placements)
        rows, size = sum(r.left for r in model.queue), sum(r.bytes for r in model.queue)
        return (len(model.queue), rows, size, oldest, out, model.merging)
