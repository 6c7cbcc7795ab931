"""Sequences in the oracle: one backend each, in the order of admission."""

from __future__ import annotations

from tests.property.engine_oracle_records import (
    LONG_AGO,
    NEVER,
    NO_BACKEND,
    TRIES_MAX,
    UNAVAILABLE,
    UNSERVED_ADMIT,
    Batch,
    Group,
    Model,
    Placement,
    Request,
    Sequence,
    after,
)


class Sequencing:
    """Needs the rest of the oracle beside it."""

    def _known(self, model: Model, key: int, start: bool) -> bool:
        if key == 0 or start or model.policy.sequence_idle_ns == 0:
            return False
        sequence = model.sequences.get(key)
        return sequence is not None and (sequence.backend != NO_BACKEND or sequence.lost)

    def _join(self, model: Model, request: Request, key: int, now: int) -> None:
        sequence = model.sequences.setdefault(key, Sequence(key, request.number))
        request.sequence = sequence
        sequence.waiting.append(request)
        sequence.idle_until = NEVER
        self._advance(model, sequence, now)

    def _advance(self, model: Model, sequence: Sequence, now: int) -> None:
        """Lets the first waiting request into its group when it may be sent."""
        if sequence.idle:
            if model.policy.in_use and (sequence.started or sequence.lost):
                sequence.idle_until = after(now, model.policy.sequence_idle_ns)
            else:
                self._forget(model, sequence)
            return
        if not sequence.waiting or sequence.waiting[0].group is not None:
            return
        head = sequence.waiting[0]
        if sequence.lost and not head.start:
            self._doom(model, sequence)
            return
        if sequence.inflight and not (sequence.path and sequence.path == head.path):
            return
        pin = sequence.backend
        wanted = model.placement(head.pin)
        if pin == NO_BACKEND and wanted is not None and wanted.configured:
            pin = head.pin
        head.group = (0, pin, False)
        model.dirty = True
        group = model.groups.setdefault(head.group, Group(head.group))
        if not group.ready or model.members(head.group)[0] is head:
            self._refresh(model, group, now)

    def _step_back(self, model: Model, sequence: Sequence, now: int) -> None:
        if sequence.waiting and sequence.waiting[0].group is not None:
            group = model.groups[sequence.waiting[0].group]
            sequence.waiting[0].group = None
            self._refresh(model, group, now)

    def _sequence_sent(self, model: Model, request: Request, place: Placement, now: int) -> None:
        sequence = request.sequence
        if sequence is None:
            return
        if sequence.again is request:
            sequence.again = None
        else:
            sequence.waiting.remove(request)
            sequence.inflight += 1
        sequence.path = request.path
        self._pin(model, sequence, place)
        if request.start:
            sequence.started, sequence.ended, sequence.lost = True, False, False
        sequence.ended = sequence.ended or request.end
        self._advance(model, sequence, now)

    def _sequence_answered(self, model: Model, request: Request, outcome: str, now: int) -> None:
        sequence = request.sequence
        if sequence is None:
            return
        if request in sequence.waiting:
            sequence.waiting.remove(request)
        if sequence.again is request:
            sequence.again = None
        if request.dispatched:
            sequence.inflight -= 1
        if outcome == "completed" and not sequence.lost:
            sequence.started = True
        if sequence.inflight == 0 and sequence.ended:
            self._unpin(model, sequence)
            self._step_back(model, sequence, now)
            sequence.started = sequence.ended = False
        self._advance(model, sequence, now)

    def _sequence_failed(self, model: Model, batch: Batch, kind: str, now: int) -> bool:
        """Whether the only member goes again."""
        request = batch.members[0][0]
        sequence = request.sequence
        assert sequence is not None
        pin = batch.group[1]
        alone = sequence.inflight == 1 and not sequence.lost
        reachable = pin == NO_BACKEND or self._usable(model.placement(pin))
        if kind == "nothing_ran" and alone and reachable and batch.tries + 1 < TRIES_MAX:
            sequence.again = request
            sequence.path = 0
            self._step_back(model, sequence, now)
            if pin == NO_BACKEND:
                self._unpin(model, sequence)
                sequence.started = False
            return True
        if not sequence.lost:
            self._lose(model, sequence, now)
        return False

    def _pin(self, model: Model, sequence: Sequence, place: Placement) -> None:
        if sequence.backend != place.backend:
            self._unpin(model, sequence)
            sequence.backend = place.backend
            place.sequences.append(sequence)

    def _unpin(self, model: Model, sequence: Sequence) -> None:
        if sequence.backend != NO_BACKEND:
            place = model.placement(sequence.backend)
            assert place is not None
            place.sequences.remove(sequence)
            sequence.backend = NO_BACKEND

    def _lose(self, model: Model, sequence: Sequence, now: int) -> None:
        sequence.lost, sequence.started, sequence.ended = True, False, False
        sequence.path = 0
        self._unpin(model, sequence)
        self._step_back(model, sequence, now)
        if sequence.waiting or sequence.again is not None:
            self._doom(model, sequence)
        if sequence.idle:
            self._advance(model, sequence, now)

    def _doom(self, model: Model, sequence: Sequence) -> None:
        model.dirty = True
        if sequence not in model.doomed:
            model.doomed.append(sequence)

    def _fail_doomed(self, model: Model, now: int) -> None:
        ending = ("failed", "sequence_lost", UNAVAILABLE)
        for sequence in model.doomed:
            if sequence.again is not None:
                self._finish(sequence.again, now, *ending)
            while sequence.lost and sequence.waiting and not sequence.waiting[0].start:
                self._finish(sequence.waiting[0], now, *ending)
        done, model.doomed = model.doomed, []
        for sequence in done:
            if model.sequences.get(sequence.key) is sequence:
                self._advance(model, sequence, now)

    def _lose_unserved(self, model: Model, now: int) -> None:
        for place in model.placements:
            since = model.unserved.get(place.backend, LONG_AGO)
            if place.sequences and since != NEVER and now >= since + UNSERVED_ADMIT:
                self._lose_all(model, place, now)

    def _lose_all(self, model: Model, place: Placement, now: int) -> None:
        for sequence in list(place.sequences):
            self._lose(model, sequence, now)

    def _forget_all(self, model: Model, now: int) -> None:
        for request in list(model.queue):
            if not request.answered and request.group is None:
                self._finish(request, now, "failed", "no_backend", UNAVAILABLE)
        for place in model.placements:
            for sequence in list(place.sequences):
                self._unpin(model, sequence)
                if sequence.idle:
                    self._forget(model, sequence)

    def _forget(self, model: Model, sequence: Sequence) -> None:
        self._unpin(model, sequence)
        del model.sequences[sequence.key]

    def _expire_sequences(self, now: int) -> None:
        for model in self.models:
            for sequence in list(model.sequences.values()):
                if sequence.idle and sequence.idle_until <= now:
                    self._forget(model, sequence)
