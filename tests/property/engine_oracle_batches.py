"""How the oracle queues, forms and dispatches batches."""

from __future__ import annotations

from typing import Any

from tests.property.engine_oracle_records import (
    ANSWER_MARGIN_MIN,
    BISECT_TENTHS_MAX,
    LONG_AGO,
    NEVER,
    NO_BACKEND,
    PASSED_OVER_MAX,
    UNSERVED_ADMIT,
    UNSERVED_MAX,
    Batch,
    Group,
    Model,
    Placement,
    Request,
)
from tests.property.engine_oracle_sequences import Sequencing


class Batching(Sequencing):
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

    def _ready_at(self, model: Model, key: tuple[int, int, bool], members: list[Request]) -> int:
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
        return min(
            waited, lead.deadline - model.batch_ns - max(model.batch_ns // 4, ANSWER_MARGIN_MIN)
        )

    # -- dispatch --------------------------------------------------------------------------------

    def _usable(self, place: Placement) -> bool:
        return place.configured and place.ready and self.available.get(place.backend, False)

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
        spread: bool = False,
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
            if len(place.out) >= place.slots:
                if stage_with < 0 or model.policy.direct_max:
                    continue
                half = 2 * stage_with >= model.policy.full and stage_with >= place.rows_out
                if merging and not (stage_with >= model.policy.full or half):
                    continue
                at = place.stage_at(model.policy.staged_batches_max)
                if at > now:
                    blocked_until = min(blocked_until, at)
                    continue
            free.append(place)

        def cost(place: Placement) -> tuple[int, int, int]:
            expected = (place.rows_out + rows) * place.ns_per_row // place.instances
            if model.policy.direct_max:
                expected = len(place.out)
            return len(place.sequences) if spread else 0, expected, place.rows_out

        return min(free, key=cost, default=None), blocked_until

    def _choose_for_retry(self, model: Model, batch: Batch, now: int) -> tuple[Any, int]:
        rows = sum(rows for _, _, rows in batch.live)
        spread = any(r.sequence is not None for r, _, _ in batch.live)
        return self._choose(model, batch.group[1], now, rows, avoid=batch.avoid, spread=spread)

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
        spread = model.members(group.key)[0].sequence is not None
        return self._choose(
            model, pin, now, rows, stage_with=waiting, merging=merging, spread=spread
        )

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
        if not batch.group[2]:
            self._sequence_sent(model, batch.members[0][0], place, now)

    def _next_moment(self, model: Model, now: int) -> int:
        moments = [NEVER]
        for pin in model.pins():
            if not model.has_work(pin):
                continue
            unserved = model.unserved.get(pin, LONG_AGO)
            if unserved != NEVER:
                moments.append(unserved + UNSERVED_MAX)
                continue
            moments += [
                group.ready_at
                for group in model.groups.values()
                if group.key[1] == pin and not group.ready and model.members(group.key)
            ]
            lead, again = self._lead_group(model, pin), self._first_retry(model, pin)
            if lead is not None:
                moments.append(self._choose_for_group(model, lead, now)[1])
            if again is not None:
                moments.append(self._choose_for_retry(model, again, now)[1])
        moments += [
            model.unserved[place.backend] + UNSERVED_ADMIT
            for place in model.placements
            if place.sequences and model.unserved.get(place.backend, NEVER) != NEVER
        ]
        return min(moments)
