"""Backends that are some way off, as the unit tests of the head start drive them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler._native.engine import Answer, Dispatch
from tests.unit.engine.driver import MS, SECOND, Driver

SLO = 60 * MS


def holds(rows: int) -> int:
    return 1 * MS * rows + 5 * MS


@dataclass
class Sent:
    batch: Dispatch
    at: int
    freed_at: int | None = None  # when an instance was free for it


@dataclass
class Far:
    """One model's backends, `wire` away; what waits at one is run in order by its instances."""

    driver: Driver
    wire: int
    takes: Callable[[Dispatch, int], int] = lambda batch, start: holds(batch.rows)
    rejected: Callable[[Dispatch], bool] = lambda batch: False
    early: list[int] = field(default_factory=list)  # how long before an instance was free
    sent: list[Sent] = field(default_factory=list)
    idle: int = 0  # of the instances, between batches
    out_max: int = 0  # batches at one backend
    answers: list[tuple[int, Answer]] = field(default_factory=list)
    out: dict[int, list[Sent]] = field(default_factory=dict)  # by backend
    _free_at: dict[int, list[int]] = field(default_factory=dict)
    _events: list[tuple[int, int, Dispatch]] = field(default_factory=list)
    _wakes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for backend, instances, *_ in self.driver.placements:
            self.out[backend] = []
            self._free_at[backend] = [self.driver.now] * instances

    def run(self, per_s: int, duration: int, objective: int = SLO) -> None:
        """Requests at even distances, until all are answered. The counts begin anew."""
        self.early, self.sent, self.answers = [], [], []
        self.idle = self.out_max = 0
        driver = self.driver
        ends = driver.now + duration
        arrival = driver.now
        while driver.now < ends or self._events:
            while self._events and self._events[0][0] <= driver.now:
                self._reply(heapq.heappop(self._events)[2])
            if arrival <= driver.now < ends:
                driver.engine.submit(driver.now, deadline=driver.now + objective)
                arrival += SECOND // per_s
            self.step()
            moments = [arrival] if arrival < ends else []
            wakes = [at for at in self._wakes if at > driver.now]
            driver.now = min(
                [*moments, *(at for at, _, _ in self._events[:1]), *wakes], default=ends
            )

    def step(self) -> None:
        for batch in self.driver.step():
            self._take(batch)
        self._wakes = self.driver.wakes()[-1:] or self._wakes
        self.answers += [(self.driver.now, a) for a in self.driver.actions if isinstance(a, Answer)]
        self.driver.actions.clear()

    def usual(self) -> int:
        return sorted(self.early)[len(self.early) // 2] if self.early else 0

    def _take(self, batch: Dispatch) -> None:
        now = self.driver.now
        free_at = self._free_at[batch.backend]
        out = self.out[batch.backend]
        sent = Sent(batch, now, now if len(out) < len(free_at) else None)
        out.append(sent)
        self.out_max = max(self.out_max, len(out))
        instance = free_at.index(min(free_at))
        start = max(now + self.wire, free_at[instance])
        self.idle += start - free_at[instance] if self.sent else 0
        self.sent.append(sent)
        free_at[instance] = start + self.takes(batch, start)
        heapq.heappush(self._events, (free_at[instance] + self.wire, batch.batch, batch))

    def _reply(self, batch: Dispatch) -> None:
        out = self.out[batch.backend]
        out[:] = [sent for sent in out if sent.batch is not batch]
        for sent in out[: len(self._free_at[batch.backend])]:
            if sent.freed_at is None:
                sent.freed_at = self.driver.now
                self.early.append(self.driver.now - sent.at)
        if self.rejected(batch):
            self.driver.fail(batch, "rejected", 3)
        else:
            self.driver.complete(batch)
