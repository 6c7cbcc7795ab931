"""Random worlds in which quick and slow models wait for rows beside each other, near their goodput.

As in test_engine_reserves, the engine is stepped only where it asked to be, and after events, and a
copy that was loaded from a saved state must act as the saved one.
"""

from __future__ import annotations

from typing import Any

import pytest

from scheduler._native.engine import NEVER
from tests.property.test_engine_reserves import MS, ROWS_MAX, RUN_MS, World

pytestmark = pytest.mark.native

ROWS_MEAN = 6  # of the batches by which the load is reckoned


class Mix(World):
    """Models on executors that all or some of them share, and on some of their own."""

    def plan_mix(self) -> None:
        random = self.random
        self.executors = random.choice([1, 1, 2, 3])
        self.levels = random.choice([1, 1, 2])
        self.rows_max = ROWS_MAX
        kinds = [(0.5, 3.5), (1.0, 5.0), (2.5, 12.5)]
        self.latency_ms = [random.choice(kinds) for _ in range(random.choice([1, 2, 3, 5]))]
        # Of each model: from arrival to deadline.
        self.budgets_ms = [random.choice([2, 3, 5]) * (8 * a + b) for a, b in self.latency_ms]
        self.own = [random.random() < 0.25 for _ in self.latency_ms]

    def places(self, model: int) -> list[tuple[Any, ...]]:
        backends = [*range(self.executors)]
        if self.random.random() < 0.2:
            backends = backends[:1]
        return [(b, 1, True, *([] if self.own[model] else [b])) for b in backends]

    def plan_arrivals(self) -> None:
        load = self.random.choice([0.4, 0.7, 1.0, 1.5]) * self.executors / len(self.latency_ms)
        for model, (alpha_ms, beta_ms) in enumerate(self.latency_ms):
            per_ms = load / (alpha_ms + beta_ms / ROWS_MEAN)
            at = self.random.expovariate(per_ms)
            while at < RUN_MS:
                self.after(at, self.submit, model)
                at += self.random.expovariate(per_ms)

    def submit(self, model: int) -> None:
        random = self.random
        budget_ms = self.budgets_ms[model] * random.choice([1, 1, 0.7])
        admitted = self.do(
            "submit",
            self.now,
            model=model,
            rows=random.choice([1, 1, 1, 3]),
            signature=random.choice([0, 0, 1, 2]),
            deadline=NEVER if random.random() < 0.05 else self.now + int(budget_ms * MS),
            priority=random.randint(1, self.levels),
            **({"pinned_backend": 0} if random.random() < 0.1 else {}),
        )
        if not admitted.handle:
            return
        self.requests.add(admitted.handle)
        if random.random() < 0.05:
            self.after(random.uniform(0, budget_ms), self.cancel, admitted.handle)


@pytest.mark.parametrize("block", range(4))
def test_what_waits_for_rows_is_answered(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        try:
            Mix(seed).run()
        except Exception:
            print(f"seed {seed}")
            raise
