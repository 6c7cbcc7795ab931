"""Under any storm a sequence is served in order, by one backend, and nothing of it runs twice.

The backends are simulated as in test_engine_storm; they keep what a sequence batcher would: which
request of a sequence came last. Nothing of the engine's policy is assumed but what engine.h says.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from scheduler._native.engine import NEVER, Answer, Dispatch, Engine, Wake

pytestmark = pytest.mark.native

MS = 1_000_000
SECOND = 1_000 * MS
UNAVAILABLE, INTERNAL = 14, 13


@dataclass
class Sent:
    number: int
    sequence: int
    start: bool
    end: bool
    path: int
    backend: int = -1
    tries: int = 0
    in_doubt: bool = False  # it may have run, or did
    path_ended: bool = False


class SequenceStorm:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.engine = Engine()
        self.now = SECOND
        self.backends = random.randint(1, 4)
        self.direct = random.choice([0, 1, 3, 1000])
        self.failure_rate = random.choice([0.0, 0.05, 0.3])
        self.wake = NEVER
        self.requests: dict[int, Sent] = {}
        self.handles: dict[int, int] = {}
        self.answers: Counter[int] = Counter()
        self.lost = 0
        self.out: dict[int, tuple[Dispatch, Sent]] = {}
        self.replies: list[tuple[int, int]] = []
        self.last: dict[int, int] = {}  # by sequence: the last request that was sent
        self.home: dict[int, int] = {}  # by sequence: where its latest start went
        self.quiet: dict[int, int] = {}  # by sequence: its last answer
        self.idle_ns = random.choice([5 * MS, 500 * MS, 5 * SECOND])
        placements = [(backend, random.randint(1, 2), True) for backend in range(self.backends)]
        self.engine.configure_model(
            0,
            placements,
            self.now,
            rows_max=8,
            priority_levels=3,
            direct_max=self.direct,
            sequence_idle_ns=self.idle_ns,
        )
        for backend in range(self.backends):
            self.engine.set_backend(backend, True, self.now)

    def dispatched(self, batch: Dispatch) -> None:
        (member,) = batch.members
        request = self.requests[member.user]
        assert not request.in_doubt, "ran twice"
        assert not self.answers[request.number], "sent after its answer"
        again = request.tries > 0
        assert again or request.number > self.last.get(request.sequence, 0), "out of order"
        self.last[request.sequence] = max(request.number, self.last.get(request.sequence, 0))
        for _, other in self.out.values():
            if other.sequence == request.sequence and not self.answers[other.number]:
                assert not again, "a later request overtook it"
                assert request.path == other.path != 0, "sent before the answer"
                assert not other.path_ended, "sent by another path before the answer"
                assert request.start or other.backend == batch.backend, "in two places"
        if request.start:
            self.home[request.sequence] = batch.backend
        elif self.now - self.quiet.get(request.sequence, 0) >= self.idle_ns:
            self.home.pop(request.sequence, None)  # forgotten
        else:
            assert self.home.get(request.sequence, batch.backend) == batch.backend, "moved"
        if request.end:
            self.home.pop(request.sequence, None)
        request.backend = batch.backend
        request.tries += 1
        request.in_doubt = True
        request.path_ended = False
        self.out[batch.batch] = (batch, request)
        takes = self.random.choice([0, MS // 10, MS, 20 * MS])
        heapq.heappush(self.replies, (self.now + takes, batch.batch))

    def answered(self, answer: Answer) -> None:
        self.answers[answer.user] += 1
        assert self.answers[answer.user] == 1, f"second answer: {answer}"
        request = self.requests[answer.user]
        self.quiet[request.sequence] = self.now
        assert answer.outcome != "completed" or answer.backend == request.backend
        if answer.reason == "sequence_lost":
            assert (answer.outcome, answer.code) == ("failed", UNAVAILABLE)
            self.lost += 1
            self.home.pop(request.sequence, None)

    def apply(self) -> None:
        for action in self.engine.take_actions():
            if isinstance(action, Dispatch):
                self.dispatched(action)
            elif isinstance(action, Answer):
                self.answered(action)
            elif isinstance(action, Wake):
                self.wake = action.at
        self.engine.check_invariants()

    def is_busy(self, sequence: int) -> bool:
        unanswered = (self.requests[n] for n in self.handles if not self.answers[n])
        return any(request.sequence == sequence for request in unanswered)

    def submit(self) -> None:
        random = self.random
        number = len(self.requests) + 1
        start, end = random.random() < 0.2, random.random() < 0.1
        request = Sent(number, random.randint(1, 6), start, end, path=random.randint(0, 2))
        quiet_ns = self.now - self.quiet.get(request.sequence, 0)
        if quiet_ns >= self.idle_ns and not self.is_busy(request.sequence):
            self.home.pop(request.sequence, None)  # forgotten
        self.requests[number] = request
        admitted = self.engine.submit(
            self.now,
            user=number,
            sequence=request.sequence,
            start=start,
            end=end,
            path=request.path,
            priority=random.randint(0, 3),
            deadline=random.choice([NEVER, NEVER, self.now + random.randint(1, 60) * MS]),
        )
        if admitted.handle:
            self.handles[number] = admitted.handle

    def reply(self, batch: int) -> None:
        _, request = self.out.pop(batch)
        if self.random.random() >= self.failure_rate:
            self.engine.complete(batch, self.now)
            return
        kind = self.random.choice(["nothing_ran", "connection", "rejected", "final", "given_up"])
        request.in_doubt = kind != "nothing_ran"
        if request.start and not request.in_doubt:
            self.home.pop(request.sequence, None)
        self.engine.dispatch_failed(batch, kind, INTERNAL, self.now)

    def end_path(self) -> None:
        """Of all that is out by one path: what comes now goes by another."""
        ended = self.random.randint(1, 2)
        for batch, request in [*self.out.values()]:
            if request.path == ended:
                request.path_ended = True
                self.engine.end_path(batch.batch, self.now)
                self.engine.end_path(batch.batch, self.now)

    def turn(self, submits: bool) -> None:
        random = self.random
        while self.replies and self.replies[0][0] <= self.now:
            self.reply(heapq.heappop(self.replies)[1])
            self.apply()
        if submits:
            for _ in range(random.choice([0, 1, 5])):
                self.submit()
            if random.random() < 0.2 and self.handles:
                self.engine.cancel(random.choice([*self.handles.values()]), self.now)
            if random.random() < 0.1:
                self.end_path()
            if random.random() < 0.03:
                backend = random.randrange(self.backends)
                self.engine.set_backend(backend, random.random() < 0.5, self.now)
        self.apply()
        self.engine.step(self.now)
        self.apply()

    def run(self) -> None:
        for _ in range(200):
            self.turn(submits=True)
            self.now += self.random.choice([0, MS // 10, MS, 5 * MS, 400 * MS])
        for backend in range(self.backends):
            self.engine.set_backend(backend, True, self.now)
        self.turn(submits=False)
        while self.replies or self.engine.requests_inflight or self.wake != NEVER:
            reply = self.replies[0][0] if self.replies else NEVER
            assert min(reply, self.wake) != NEVER, "nothing would ever happen again"
            self.now = max(self.now, min(reply, self.wake))
            self.turn(submits=False)


@pytest.mark.parametrize("seed", range(40))
def test_a_sequence_is_served_in_order_by_one_backend(seed: int) -> None:
    storm = SequenceStorm(seed)
    storm.run()
    assert storm.answers.keys() == storm.handles.keys()
    assert storm.out == {}
    counters = storm.engine.counters(0)
    assert counters["in_flight"] == counters["inflight_batches"] == counters["queued_requests"] == 0


def test_the_storms_lose_sequences() -> None:
    storms = [SequenceStorm(seed) for seed in range(10)]
    for storm in storms:
        storm.run()
    assert sum(storm.lost for storm in storms) > 20
