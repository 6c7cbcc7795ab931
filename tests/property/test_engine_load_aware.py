"""Random events for models that are batched by learned latency and share executors.

There is no twin to compare with: what must hold whatever the policy decides is checked instead, and
that an engine loaded from a saved state acts as the saved one.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from scheduler._native.engine import FAILURE_KINDS, NEVER, Abandon, Answer, Dispatch, Engine, Wake

pytestmark = pytest.mark.native

MS = 1_000_000


class Swarm:
    """One engine, now and then a second one that was loaded from it and gets the same events."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.engines = [Engine()]
        self.now = 1_000 * MS
        self.backends = self.random.randint(1, 4)
        self.models = self.random.randint(1, 5)
        self.groups: dict[tuple[int, int], int] = {}  # (model, backend): executor group
        self.requests: dict[int, int] = {}  # handle: deadline
        self.batches: dict[int, Dispatch] = {}
        self.busy: dict[int, int] = {}  # executor group: batch
        self.wake = NEVER
        for model in range(self.models):
            self.configure(model)
        for backend in range(self.backends):
            self.do("set_backend", backend, True, self.now)

    def do(self, call: str, *arguments: Any, **named: Any) -> Any:
        results = [getattr(engine, call)(*arguments, **named) for engine in self.engines]
        assert all(result == results[0] for result in results)
        return results[0]

    def configure(self, model: int) -> None:
        random = self.random
        placed = [b for b in range(self.backends) if random.random() < 0.8] or [0]
        places: list[tuple[int, ...]] = []
        for backend in placed:
            group = self.groups.get((model, backend), backend)
            if (model, backend) not in self.groups and random.random() < 0.2:
                group = -1
            self.groups[model, backend] = group
            own = group < 0
            ready = random.random() < 0.95
            places.append((backend, random.randint(1, 2), ready, *(() if own else (group,))))
        self.do(
            "configure_model",
            model,
            places,
            self.now,
            rows_max=random.choice([1, 4, 16]),
            mandatory_rows=random.choice([(), (), (2, 8)]),
            load_aware=random.random() < 0.8,
            priority_levels=random.choice([1, 3]),
            slo_ns=random.choice([0, 20 * MS, 60 * MS]),
            levels=random.choice([(), ((0, False, 0.7), (0, True))]),
            aging_ns=random.choice([0, 30 * MS]),
            cancellable=random.random() < 0.3,
        )

    def submit(self) -> None:
        random = self.random
        deadline = self.now + random.randint(1, 80) * MS if random.random() < 0.8 else NEVER
        admitted = self.do(
            "submit",
            self.now,
            model=random.randrange(self.models),
            rows=random.choice([1, 1, 1, 2, 5, 20]),
            signature=random.choice([0, 0, 1]),
            deadline=deadline,
            priority=random.randint(0, 3),
            mergeable=random.random() < 0.95,
            pinned_backend=random.randrange(self.backends)
            if random.random() < 0.1
            else (1 << 32) - 1,
        )
        if admitted.handle:
            self.requests[admitted.handle] = deadline

    def end(self, batch: int) -> None:
        del self.batches[batch]
        self.busy = {group: running for group, running in self.busy.items() if running != batch}

    def reply(self) -> None:
        if not self.batches:
            return
        batch = self.random.choice(sorted(self.batches)[:4])
        if self.random.random() < 0.9:
            self.end(batch)
            self.do("complete", batch, self.now)
            return
        kind = self.random.choice(FAILURE_KINDS)
        # One that was given up holds its executor for a while.
        if kind != "given_up":
            self.end(batch)
        else:
            del self.batches[batch]
        self.do("dispatch_failed", batch, kind, 13, self.now)

    def look(self) -> None:
        """Takes the actions and checks them."""
        taken = [engine.take_actions() for engine in self.engines]
        assert all(actions == taken[0] for actions in taken)
        for action in taken[0]:
            if isinstance(action, Dispatch):
                self.batches[action.batch] = action
                group = self.groups[action.model, action.backend]
                holder = self.busy.get(group)
                if group >= 0:
                    assert holder is None or holder not in self.batches, "one batch at a time"
                    self.busy[group] = action.batch
                assert all(self.requests[m.request] > self.now for m in action.members)
            elif isinstance(action, Answer):
                del self.requests[action.request]
            elif isinstance(action, Abandon):
                self.end(action.batch)
            elif isinstance(action, Wake):
                self.wake = action.at
        for engine in self.engines:
            engine.check_invariants()
        assert self.engines[0].requests_inflight == len(self.requests)

    def turn(self) -> None:
        random = self.random
        kind = random.random()
        if kind < 0.4:
            for _ in range(random.choice([1, 1, 3, 10])):
                self.submit()
        elif kind < 0.7:
            self.reply()
        elif kind < 0.74 and self.requests:
            self.do("cancel", random.choice(sorted(self.requests)), self.now)
        elif kind < 0.76:
            backend = random.randrange(self.backends)
            self.do("set_backend", backend, random.random() < 0.8, self.now)
        elif kind < 0.77:
            self.configure(random.randrange(self.models))
        elif kind < 0.79:
            self.engines = self.engines[:1]
            copy = Engine()
            state = self.engines[0].save()
            assert copy.load(state)
            assert copy.save() == state
            self.engines.append(copy)
        else:
            self.now += random.choice([0, 1000, MS, 3 * MS, 11 * MS])
            self.do("step", self.now)
            self.look()
            earliest = min(self.requests.values(), default=NEVER)
            assert self.wake <= max(earliest, self.now + 1), "a deadline has a wake"
            return
        self.look()

    def drain(self) -> None:
        """All is answered in a bounded number of turns once every backend serves."""
        self.engines = self.engines[:1]
        for backend in range(self.backends):
            self.do("set_backend", backend, True, self.now)
        for _ in range(3_000):
            if not self.requests:
                return
            self.do("step", self.now)
            self.look()
            for batch in sorted(self.batches):
                if batch in self.batches:
                    self.end(batch)
                    self.do("complete", batch, self.now)
            self.look()
            self.now += 5 * MS
        raise AssertionError("requests were forgotten")


@pytest.mark.parametrize("block", range(20))
def test_what_must_hold_holds_in_random_runs(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        try:
            swarm = Swarm(seed)
            for _ in range(150):
                swarm.turn()
            swarm.drain()
        except Exception:
            print(f"seed {seed}")
            raise
