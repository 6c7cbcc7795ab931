"""What replies and failures do in the oracle, and how a request ends."""

from __future__ import annotations

from tests.property.engine_oracle_batches import Batching
from tests.property.engine_oracle_records import (
    BISECT_COST,
    GIVEN_UP_MIN,
    INTERNAL,
    LONG_AGO,
    NEVER,
    NO_BACKEND,
    OK,
    STATS_ROWS_MAX,
    SUSPECT_FAILURE,
    SUSPECT_UNMERGED,
    SUSPECTS_MAX,
    TRIES_MAX,
    UNAVAILABLE,
    UNMERGED,
    Batch,
    Model,
    Request,
    averaged,
)


class Replies(Batching):
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
            if request.group is not None:
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
        model.stats.answered(outcome, reason, request.rows, queued_ns)
        self.actions.append(
            ("answer", request.number, request.user, request.model, outcome, reason, code, batch,
             backend, queued_ns)
        )  # fmt: skip
        self._sequence_answered(model, request, outcome, now)

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

    # -- replies ---------------------------------------------------------------------------------

    def _leave(self, model: Model, batch: Batch, now: int) -> None:
        place = model.placement(batch.backend)
        assert place is not None
        place.out.remove(batch)
        place.promote(now)
        self.batches.pop(batch.number, None)
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
        started = batch.dispatched_at if batch.started_at == NEVER else batch.started_at
        model.stats.executed(min(batch.rows, STATS_ROWS_MAX), now - started)
        if batch.started_at != NEVER and now > batch.started_at:
            ran = now - batch.started_at
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
                model.stats.sums["queue_ns"] += max(started - request.arrival, 0)
                model.stats.sums["backend_ns"] += now - started
                model.stats.last_answer = now
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
        if kind == "given_up" and not model.policy.cancellable:
            self._give_up(model, batch, code or INTERNAL, now)
            return
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

    def _give_up(self, model: Model, batch: Batch, code: int, now: int) -> None:
        place = model.placement(batch.backend)
        assert place is not None
        started = now if batch.started_at == NEVER else batch.started_at
        batch.release_at = max(started + place.batch_ns, now + GIVEN_UP_MIN)
        del self.batches[batch.number]
        live, batch.members = self._detach(batch), []
        for request, _, _ in live:
            self._finish(request, now, "failed", "backend_error", code, batch.number, batch.backend)

    def _given_up(self) -> list[Batch]:
        places = [place for model in self.models for place in model.placements]
        return [b for place in places for b in place.out if b.release_at != NEVER]

    def _release_given_up(self, now: int) -> None:
        for batch in self._given_up():
            if batch.release_at <= now:
                self._leave(self.models[batch.model], batch, now)

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
        if not model.policy.in_use and kind not in ("final", "given_up"):
            reason, code = "no_backend", UNAVAILABLE
        elif kind in ("nothing_ran", "connection") and live[0][0].sequence is not None:
            reason, code = "sequence_lost", UNAVAILABLE
            if self._sequence_failed(model, batch, kind, now):
                fails = False
                self._retry(model, batch, live, batch.tries + 1, batch.backend)
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
                    self._finish(request, now, "failed", reason, code, batch.number, batch.backend)

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

    def _bisect(self, model: Model, failed: Batch, live: list[tuple[Request, int, int]]) -> bool:
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
