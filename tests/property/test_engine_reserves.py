"""Random worlds in which slow models leave executors to one that cannot wait for their batches.

What is held back is not looked at in every turn. So that nothing is forgotten there, the engine is
stepped only where it asked to be, and after events: when no more comes and every batch has ended,
all that was let in must be answered.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import Any

import pytest

from scheduler._native.engine import NEVER, Abandon, Answer, Dispatch, Engine, Wake

pytestmark = pytest.mark.native

MS = 1_000_000
RUN_MS = 1_500
ANSWERED_MS = 120_000
ROWS_MAX = 16


class World:
    """One engine, from some time on a second one that was loaded from it and gets the same events.

    Model 0 is the one that cannot wait.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.engines = [Engine()]
        self.now = 1_000 * MS
        self.plain = False
        self.latency_ms = [(0.5, 2.0)]
        self.plan_mix()
        self.events: list[tuple[int, int, tuple[Any, ...]]] = []
        self.requests: set[int] = set()
        self.queued: dict[int, int] = {}  # handle of a request of a slow model that was not sent
        self.batches: dict[int, Dispatch] = {}
        self.wake = NEVER
        self.held_back = 0  # turns after which a slow model waits though an executor is free
        for model in range(len(self.latency_ms)):
            self.configure(model)
            self.prime(model)
        for backend in range(self.executors):
            self.do("set_backend", backend, True, self.now)
        self.plan_arrivals()
        self.plan_faults()

    def plan_mix(self) -> None:
        random = self.random
        self.executors = random.randint(2, 5)
        # Where nothing fails, is waited for or has priority, all that does not go is held back.
        self.plain = random.random() < 0.3
        self.levels = 1 if self.plain else random.choice([1, 1, 3])
        self.rows_max = 1 if self.plain else random.choice([1, ROWS_MAX])
        for _ in range(random.choice([1, 2, 5, 20])):
            self.latency_ms.append((random.choice([0.5, 10.0]), random.choice([60.0, 100.0])))

    def do(self, call: str, *arguments: Any, **named: Any) -> Any:
        results = [getattr(engine, call)(*arguments, **named) for engine in self.engines]
        assert all(result == results[0] for result in results)
        return results[0]

    def places(self, model: int) -> list[tuple[Any, ...]]:
        return [(backend, 1, True, backend) for backend in range(self.executors)]

    def configure(self, model: int, in_use: bool = True) -> None:
        self.do(
            "configure_model",
            model,
            self.places(model),
            self.now,
            in_use=in_use,
            rows_max=self.rows_max,
            load_aware=True,
            priority_levels=self.levels,
            aging_ns=200 * MS if model % 3 == 1 else 0,
            cancellable=model % 2 == 0,
        )

    def prime(self, model: int) -> None:
        alpha_ms, beta_ms = self.latency_ms[model]
        for backend in range(self.executors):
            for rows in range(1, ROWS_MAX + 1):
                batch_ns = int((alpha_ms * rows + beta_ms) * MS)
                self.do("prime_latency", model, backend, rows, batch_ns, 20)

    def after(self, ms: float, *event: Any) -> None:
        # Of events of one moment, the one that was made first comes first.
        heapq.heappush(self.events, (self.now + int(ms * MS), self.random.getrandbits(40), event))

    def plan_arrivals(self) -> None:
        slow = len(self.latency_ms) - 1
        tight_per_ms = self.random.choice([0.05, 0.3, 0.8]) * self.executors / 5
        slow_per_ms = self.random.choice([0.5, 1.0, 2.0]) * self.executors / 120 / slow
        for model in range(slow + 1):
            # Some are rare: one request, and long after it another one.
            rare = model > 1 and self.random.random() < 0.3
            per_ms = 2 / RUN_MS if rare else slow_per_ms if model else tight_per_ms
            at = self.random.expovariate(per_ms)
            while at < RUN_MS:
                self.after(at, self.submit, model)
                at += self.random.expovariate(per_ms)

    def plan_faults(self) -> None:
        random = self.random
        self.after(random.uniform(0, RUN_MS), self.load_copy)
        if self.plain:
            return
        for _ in range(random.choice([0, 2, 6])):
            at = random.uniform(0, RUN_MS)
            backend = random.randrange(self.executors)
            self.after(at, self.set_backend, backend, False)
            self.after(at + random.choice([1, 50, 400]), self.set_backend, backend, True)
        for _ in range(random.choice([0, 0, 2])):
            at = random.uniform(0, RUN_MS)
            model = random.randrange(len(self.latency_ms))
            self.after(at, self.configure, model, False)
            self.after(at + random.choice([1, 300]), self.configure, model)

    def set_backend(self, backend: int, available: bool) -> None:
        self.do("set_backend", backend, available, self.now)

    def load_copy(self) -> None:
        copy = Engine()
        assert copy.load(self.engines[0].save())
        self.engines.append(copy)

    def submit(self, model: int) -> None:
        random = self.random
        budget_ms = random.choice([400, 1_500, 5_000]) if model else 15
        no_deadline = random.random() < (0.1 if model else 0.02)
        admitted = self.do(
            "submit",
            self.now,
            model=model,
            rows=min(random.choice([1, 1, 1, 3]), self.rows_max) if model else 1,
            signature=random.choice([0, 0, 1]) if model else 0,
            deadline=NEVER if no_deadline else self.now + budget_ms * MS,
            priority=random.randint(1, self.levels),
        )
        if not admitted.handle:
            return
        self.requests.add(admitted.handle)
        if model:
            self.queued[admitted.handle] = model
        if random.random() < 0.1:
            self.after(random.uniform(0, budget_ms), self.cancel, admitted.handle)

    def cancel(self, request: int) -> None:
        if request in self.requests:
            self.do("cancel", request, self.now)

    def complete(self, batch: int) -> None:
        if self.batches.pop(batch, None) is not None:
            self.do("complete", batch, self.now)

    def fail(self, batch: int, kind: str) -> None:
        if self.batches.pop(batch, None) is not None:
            self.do("dispatch_failed", batch, kind, 13, self.now)

    def run_batch(self, sent: Dispatch) -> None:
        self.batches[sent.batch] = sent
        for member in sent.members:
            self.queued.pop(member.request, None)
        alpha_ms, beta_ms = self.latency_ms[sent.model]
        ran_ms = (alpha_ms * sent.rows + beta_ms) * self.random.lognormvariate(0, 0.05)
        fate = self.random.random()
        if fate < 0.03 and not self.plain:
            self.after(ran_ms, self.fail, sent.batch, self.random.choice(["connection", "final"]))
        elif fate < 0.06:
            # It hangs.
            self.after(ran_ms * self.random.choice([3, 30]), self.complete, sent.batch)
        else:
            self.after(ran_ms, self.complete, sent.batch)

    def look(self) -> None:
        taken = [engine.take_actions() for engine in self.engines]
        assert all(actions == taken[0] for actions in taken)
        for action in taken[0]:
            if isinstance(action, Dispatch):
                self.run_batch(action)
            elif isinstance(action, Answer):
                self.requests.remove(action.request)
                self.queued.pop(action.request, None)
            elif isinstance(action, Abandon):
                self.batches.pop(action.batch, None)
            elif isinstance(action, Wake):
                self.wake = action.at
        for engine in self.engines:
            engine.check_invariants()
        assert self.engines[0].requests_inflight == len(self.requests)
        idle = self.executors - len(self.batches)
        self.held_back += self.plain and bool(self.queued) and idle > 0

    def run(self) -> None:
        end = self.now + (RUN_MS + ANSWERED_MS) * MS
        while self.events or self.requests:
            coming = self.events[0][0] if self.events else NEVER
            at = min(coming, self.wake)
            assert at <= end, f"{len(self.requests)} requests are left without an answer"
            self.now = max(self.now, at)
            while self.events and self.events[0][0] <= self.now:
                _, _, (call, *arguments) = heapq.heappop(self.events)
                call(*arguments)
            self.do("step", self.now)
            self.look()


@pytest.mark.parametrize("block", range(4))
def test_what_is_held_back_is_answered(block: int) -> None:
    held_back = 0
    for seed in range(block * 40, block * 40 + 40):
        world = World(seed)
        try:
            world.run()
        except Exception:
            print(f"seed {seed}")
            raise
        held_back += world.held_back
    assert held_back > 0
