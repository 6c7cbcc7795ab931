"""The engine in plain Python: the readable twin that csrc/engine is compared with.

Same events, same actions. Everything is a list that is searched and sorted where it is needed;
nothing is indexed, so nothing can be forgotten in an index. Requests are named by their admission
number and batches by their dispatch number, both from 1.
"""

from __future__ import annotations

from typing import Any

from tests.property.engine_oracle_records import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    LONG_AGO,
    MS,
    NEVER,
    NO_BACKEND,
    SECOND,
    UNAVAILABLE,
    UNSERVED_ADMIT,
    UNSERVED_MAX,
    Group,
    Model,
    Placement,
    Policy,
    Request,
    Stats,
    after,
)
from tests.property.engine_oracle_replies import Replies


class Oracle(Replies):
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
        if wanted.in_use and not model.policy.in_use:
            model.holding = True
        if not wanted.in_use:
            model.stats = Stats()
        model.policy = wanted
        model.dirty = True
        if not wanted.in_use:
            self._forget_all(model, now)
        named = [backend for backend, _, _ in placements]
        for place in model.placements:
            if place.backend not in named:
                self._lose_all(model, place, now)
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
            place.slots = model.policy.direct_max or place.instances
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
        sequence: int = 0,
        start: bool = False,
        end: bool = False,
        path: int = 0,
    ) -> tuple[int, str, int]:
        """(number or 0, reason, retry_after_ns)."""
        if model >= len(self.models) or not self.models[model].policy.in_use:
            return 0, "unknown_model", 0
        target = self.models[model]
        policy = target.policy
        arrival = now if arrival is None else min(arrival, now)
        level, slo_ns = policy.ranked(priority)
        if slo_ns > 0:
            deadline = min(deadline, after(arrival, slo_ns))
        known = self._known(target, sequence, start)
        reason = self._refusal(target, bytes, pinned_backend, level, deadline, now, known)
        if reason != "none":
            target.counts["refused", reason] += 1
            target.counts["slo_total"] += deadline != NEVER
            target.stats.answered("rejected", reason, 0, 0)
            return 0, reason, self._retry_after(target, reason, level)
        self.admitted += 1
        target.counts["admitted"] += 1
        key = (signature, pinned_backend, mergeable and rows > 0)
        request = Request(self.admitted, user, model, rows, bytes, level, arrival, deadline, key)
        self.requests[request.number] = request
        target.queue.append(request)
        target.dirty = True
        if sequence and policy.sequence_idle_ns:
            request.group, request.pin, request.path = None, pinned_backend, path
            request.start, request.end = start, end
            self._join(target, request, sequence, now)
            return request.number, "none", 0
        group = target.groups.setdefault(key, Group(key))
        if not group.ready or target.members(key)[0] is request:
            self._refresh(target, group, now)
        return request.number, "none", 0

    def _refusal(
        self, model: Model, size: int, pin: int, level: int, deadline: int, now: int, known: bool
    ) -> str:
        policy = model.policy
        if self.draining:
            return "draining"
        if not policy.admitting:
            return "unloading"
        if deadline <= now:
            return "deadline_infeasible"
        place = model.placement(pin)
        if not known and pin != NO_BACKEND and (place is None or not place.configured):
            return "no_backend"
        unserved = model.unserved.get(pin, LONG_AGO)
        if not known and unserved != NEVER and now >= unserved + UNSERVED_ADMIT:
            return "no_backend"
        above = [r for r in model.queue if r.level <= level]
        if len(above) + 1 > policy.queue_requests_max:
            return "queue_full"
        if sum(r.bytes for r in above) + size > policy.queue_bytes_max:
            return "queue_full"
        firsts = {r.level: r.arrival for r in reversed(above)}
        if policy.queue_age_max_ns > 0 and firsts:
            age = now - min(firsts.values())
            if age > policy.queue_age_max_ns:
                return "queue_age"
        return "none"

    def _retry_after(self, model: Model, reason: str, level: int) -> int:
        if reason in ("queue_full", "queue_age"):
            leaving = sum(r.level <= level for r in model.queue)
            drained = max(model.drain_ns * leaving, model.batch_ns)
            return min(max(drained, MS), 10 * SECOND)
        return SECOND if reason in ("draining", "no_backend") else 0

    def cancel(self, number: int, now: int) -> None:
        if number in self.requests:
            self._finish(self.requests[number], now, "cancelled", "client_cancelled", CANCELLED)

    def fail_all(self, reason: str, now: int) -> None:
        for request in list(self.requests.values()):
            self._finish(request, now, "failed", reason, UNAVAILABLE)

    # -- dispatch --------------------------------------------------------------------------------

    def step(self, now: int) -> None:
        due = [r for r in self.requests.values() if r.deadline <= now]
        for request in sorted(due, key=lambda r: (r.deadline, r.number)):
            reason = "expired_in_flight" if request.dispatched else "expired_in_queue"
            self._finish(request, now, "expired", reason, DEADLINE_EXCEEDED)
        self._expire_sequences(now)
        self._release_given_up(now)
        for model in self.models:
            if model.dirty or model.moment <= now:
                self._run(model, now)
                model.moment = self._next_moment(model, now)
                model.dirty = False
        moments = [r.deadline for r in self.requests.values()] + [m.moment for m in self.models]
        moments += [s.idle_until for m in self.models for s in m.sequences.values()]
        moments += [batch.release_at for batch in self._given_up()]
        soonest = min(moments, default=NEVER)
        if soonest < self.wake or (self.wake <= now and soonest != self.wake):
            self.wake = soonest
            self.actions.append(("wake", soonest))

    def _run(self, model: Model, now: int) -> None:
        self._lose_unserved(model, now)
        for pin in model.pins():
            unserved = model.unserved.get(pin, LONG_AGO)
            if unserved != NEVER and model.has_work(pin) and now >= unserved + UNSERVED_MAX:
                self._fail_pin(model, pin, now)
        self._fail_doomed(model, now)
        for group in model.groups.values():
            if model.members(group.key) and group.ready_at <= now:
                group.ready = True
        if len(model.queue) >= model.policy.hold_requests:
            model.holding = False
        if model.holding:
            return
        while self._dispatch_retry(model, now) or self._dispatch_next(model, now):
            pass

    def _fail_pin(self, model: Model, pin: int, now: int) -> None:
        for request in list(model.queue):
            if request.group is not None and request.group[1] == pin:
                self._finish(request, now, "failed", "no_backend", UNAVAILABLE)
        for batch in [b for b in model.retries if b.group[1] == pin]:
            for request, _, _ in batch.live:
                if not request.answered:
                    self._finish(request, now, "failed", "no_backend", UNAVAILABLE)

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
