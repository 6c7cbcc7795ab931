"""Under any storm of failures, outages and cancels every request gets exactly one answer.

The backends are simulated: they own their slots, run batches for a random time and fail at random.
Nothing of the engine's policy is assumed here, only its truths: one answer for each request, no
more batches out than slots, no answer after the deadline's step, capacity given back at the end.
"""

from __future__ import annotations

import heapq
from collections import Counter
from random import Random
from typing import Any

import pytest

from scheduler._native.engine import (
    FAILURE_KINDS,
    NEVER,
    Abandon,
    Answer,
    Dispatch,
    Engine,
    Wake,
)

pytestmark = pytest.mark.native

MS = 1_000_000
SECOND = 1_000 * MS
# One that cannot be split would end merging for good.
KINDS = tuple(kind for kind in FAILURE_KINDS if kind != "unsplittable")


class Storm:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.engine = Engine()
        self.now = SECOND
        self.backends = random.randint(1, 4)
        self.instances = [random.randint(1, 3) for _ in range(self.backends)]
        self.staged_max = random.randint(0, 3)
        self.rows_max = random.choice([1, 8, 64])
        self.cancellable = random.random() < 0.3
        self.failure_rate = random.choice([0.0, 0.05, 0.5, 0.95])
        self.up = [True] * self.backends
        self.out: dict[int, Dispatch] = {}
        self.replies: list[tuple[int, int]] = []
        self.deadlines: dict[int, int] = {}
        self.answers: Counter[int] = Counter()
        self.admitted: dict[int, int] = {}  # user -> handle
        self.waiting: set[int] = set()
        self.wake = NEVER
        self.configure(random.random() < 0.7)

    def configure(self, idempotent: bool) -> None:
        placements = [(b, n, True) for b, n in enumerate(self.instances)]
        self.engine.configure_model(
            0,
            placements,
            self.now,
            rows_max=self.rows_max,
            staged_batches_max=self.staged_max,
            queue_requests_max=500,
            idempotent=idempotent,
            cancellable=self.cancellable,
            priority_levels=2,
        )
        for backend in range(self.backends):
            self.engine.set_backend(backend, True, self.now)

    def apply(self) -> None:
        for action in self.engine.take_actions():
            if isinstance(action, Dispatch):
                self.dispatched(action)
            elif isinstance(action, Answer):
                self.answers[action.user] += 1
                assert self.answers[action.user] == 1, f"second answer: {action}"
            elif isinstance(action, Abandon):
                # Its reply may have come in the same turn.
                self.out.pop(action.batch, None)
            elif isinstance(action, Wake):
                self.wake = action.at
        self.engine.check_invariants()

    def dispatched(self, batch: Dispatch) -> None:
        assert batch.batch not in self.out
        assert self.up[batch.backend]
        assert batch.rows <= self.rows_max or len(batch.members) == 1
        for member in batch.members:
            assert self.deadlines[member.user] > self.now, "sent after its deadline"
            assert not self.answers[member.user], "sent after its answer"
        self.out[batch.batch] = batch
        there = sum(b.backend == batch.backend for b in self.out.values())
        assert there <= self.instances[batch.backend] + self.staged_max
        takes = self.random.choice([0, MS // 10, MS, 20 * MS])
        heapq.heappush(self.replies, (self.now + takes, batch.batch))

    def submit(self, user: int) -> None:
        random = self.random
        deadline = random.choice([NEVER, self.now + random.randint(1, 60) * MS])
        admitted = self.engine.submit(
            self.now,
            user=user,
            rows=random.choice([1, 1, 1, 5, 150]),
            signature=random.choice([0, 0, 0, user]),
            priority=random.randint(0, 3),
            deadline=deadline,
            mergeable=random.random() < 0.9,
        )
        if admitted.handle:
            self.admitted[user] = admitted.handle
            self.deadlines[user] = deadline
            self.waiting.add(user)

    def reply(self, batch: int) -> None:
        if batch not in self.out:
            return
        dispatch = self.out.pop(batch)
        lost = not self.up[dispatch.backend]
        if lost or self.random.random() < self.failure_rate:
            kind = "connection" if lost else self.random.choice(KINDS)
            self.engine.dispatch_failed(batch, kind, 13, self.now)
        else:
            self.engine.complete(batch, self.now)

    def flip(self, backend: int, up: bool) -> None:
        self.up[backend] = up
        self.engine.set_backend(backend, up, self.now)

    def turn(self, submits: bool) -> None:
        """One loop turn: replies that are due, new requests, trouble, a step."""
        random = self.random
        while self.replies and self.replies[0][0] <= self.now:
            self.reply(heapq.heappop(self.replies)[1])
        if submits:
            for _ in range(random.choice([0, 1, 5, 25])):
                self.submit(len(self.deadlines) + 1)
            if random.random() < 0.2 and self.admitted:
                self.engine.cancel(random.choice([*self.admitted.values()]), self.now)
            if random.random() < 0.05:
                self.flip(random.randrange(self.backends), random.random() < 0.5)
        self.apply()
        self.engine.step(self.now)
        self.apply()
        self.waiting -= self.answers.keys()
        for user in self.waiting:
            assert self.deadlines[user] > self.now, "not answered at its deadline"

    def run(self) -> dict[str, Any]:
        for _ in range(100):
            self.turn(submits=True)
            self.now += self.random.choice([0, MS // 10, MS, 5 * MS])
        for backend in range(self.backends):
            self.flip(backend, True)
        self.turn(submits=False)
        # Only replies and the wakes that the engine asked for move the clock now.
        while (
            self.replies
            or self.engine.requests_inflight
            or self.engine.queue_status(0).inflight_batches
        ):
            reply = self.replies[0][0] if self.replies else NEVER
            assert min(reply, self.wake) != NEVER, "nothing would ever happen again"
            self.now = max(self.now, min(reply, self.wake))
            self.turn(submits=False)
        return self.engine.counters(0)


@pytest.mark.parametrize("seed", range(40))
def test_every_request_is_answered_once_and_every_slot_comes_back(seed: int) -> None:
    storm = Storm(seed)
    counters = storm.run()
    assert storm.answers.keys() == storm.admitted.keys()
    assert storm.out == {}
    ended = sum(counters[name] for name in ("completed", "expired", "cancelled", "failed"))
    assert counters["admitted"] == len(storm.admitted) == ended
    assert counters["in_flight"] == counters["inflight_batches"] == 0
    assert (counters["queued_requests"], counters["queued_bytes"]) == (0, 0)
    for backend in range(storm.backends):
        page = storm.engine.backend_counters(backend)
        assert (page["inflight_batches"], page["inflight_rows"]) == (0, 0)
