"""Executors that have had a load for seconds, so that batches wait for rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from scheduler._native.engine import Dispatch, Engine, Wake
from tests.unit.engine.driver import MS, SECOND

QUICK, SLOW = 0, 1
# (ns of a row, ns of a batch without rows)
ALPHA_BETA = {QUICK: (MS // 2, 7 * MS // 2), SLOW: (5 * MS // 2, 25 * MS // 2)}
RATE = {QUICK: 480, SLOW: 100}  # a second, of two streams that ask for batches of 8 rows or more
OBJECTIVE = {QUICK: 30 * MS, SLOW: 80 * MS}


def latency(kind: int, rows: int) -> int:
    alpha, beta = ALPHA_BETA[kind]
    return alpha * rows + beta


class Loaded:
    """Executors that have had the load of both kinds for seconds, so that batches are awaited."""

    def __init__(
        self,
        kinds: Sequence[int],
        executors: int,
        shared: bool,
        held_by: Sequence[Sequence[int]] | None = None,
        factor: Callable[[Dispatch], float] = lambda batch: 1,
        **policy: Any,
    ) -> None:
        """`kinds`: of each model. Where there is one model, signature 1 is slow to be due.

        `held_by`: the executors of each model; None: all of them. `factor`: on what a batch
        takes.
        """
        self.engine = Engine()
        self.now = SECOND
        self.kinds = kinds
        self.factor = factor
        self.running: list[tuple[int, int]] = []
        self.actions: list[Any] = []
        for model, kind in enumerate(kinds):
            held = range(executors) if held_by is None else held_by[model]
            places = [(e, 1, True, e) if shared else (e, 1, True) for e in held]
            policy = {"rows_max": 32, "load_aware": True} | policy
            self.engine.configure_model(model, places, self.now, **policy)
            for backend in held:
                for rows in range(1, 33):
                    self.engine.prime_latency(model, backend, rows, latency(kind, rows), 20)
        for backend in range(executors):
            self.engine.set_backend(backend, True, self.now)

    def warm(self, streams: Sequence[tuple[float, dict[str, Any]]]) -> None:
        """Streams of requests at even distances for two seconds, and what they left is served."""
        arrivals = [(self.now + i, i) for i in range(len(streams))]
        ends = self.now + 2 * SECOND
        while arrivals or self.engine.requests_inflight:
            due = [at for at, _ in arrivals[:1]] + [at for at, _ in self.running[:1]]
            due += [a.at for a in self.actions[-1:]]
            self.now = max(self.now, min(due))
            if arrivals and arrivals[0][0] <= self.now:
                at, i = heapq.heappop(arrivals)
                per_s, request = streams[i]
                self.submit(**request)
                if at < ends:
                    heapq.heappush(arrivals, (at + int(SECOND / per_s), i))
            self.run()
        self.now += MS

    def submit(self, count: int = 1, budget: int | None = None, **request: Any) -> None:
        deadline: dict[str, Any] = {} if budget is None else {"deadline": self.now + budget}
        for _ in range(count):
            self.engine.submit(self.now, **deadline, **request)

    def step(self) -> list[Dispatch]:
        self.engine.step(self.now)
        self.engine.check_invariants()
        taken = self.engine.take_actions()
        self.actions = [a for a in taken if isinstance(a, Wake)] or self.actions
        return [a for a in taken if isinstance(a, Dispatch)]

    def run(self) -> list[Dispatch]:
        """The batches that go now; what has ended by now is replied."""
        while self.running and self.running[0][0] <= self.now:
            self.engine.complete(heapq.heappop(self.running)[1], self.now)
        batches = self.step()
        for batch in batches:
            takes = round(latency(self.kinds[batch.model], batch.rows) * self.factor(batch))
            heapq.heappush(self.running, (self.now + takes, batch.batch))
        return batches


def two_models(executors: int = 1, **policy: Any) -> Loaded:
    """A quick and a slow model; nothing runs or waits."""
    loaded = Loaded((QUICK, SLOW), executors, shared=True, **policy)
    loaded.warm(
        [
            (executors * RATE[kind], {"model": kind, "budget": OBJECTIVE[kind]})
            for kind in (QUICK, SLOW)
        ]
    )
    return loaded


def sent(batches: Sequence[Dispatch]) -> list[tuple[int, int]]:
    return [(batch.model, batch.rows) for batch in batches]
