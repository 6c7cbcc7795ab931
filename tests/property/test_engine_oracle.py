"""The compiled engine acts as its plain-Python twin, event by event."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler._native import engine as native
from tests.property.engine_pair import Pair

pytestmark = pytest.mark.native

MS = 1_000_000
# Out-of-memory replies have tests of their own: the oracle has no devices.
KINDS = native.FAILURE_KINDS[:6]


class Swarm:
    """Random events. Every run uses a random subset of the features, so that each meets each."""

    FEATURES = ("deadlines", "delay", "preferred", "mandatory", "priorities", "signatures", "pins",
                "levels", "oversize", "unmergeable", "failures", "storms", "cancels", "outages",
                "reconfigure", "bounds", "reload", "drain", "cancellable",
                "sequences", "paths", "direct", "holds", "unloading")  # fmt: skip

    def __init__(self, random: Random, always: tuple[str, ...] = ()) -> None:
        self.random = random
        share = 0.15 if always else 0.4
        self.features = {*always, *(name for name in self.FEATURES if random.random() < share)}
        self.pair = Pair()
        self.now = 1_000 * MS
        self.backends = random.randint(1, 3)
        self.models = random.randint(1, 2)
        for index in range(self.models):
            self.configure(index)
        for backend in range(self.backends):
            self.pair.set_backend(backend, True, self.now)

    def has(self, feature: str) -> bool:
        return feature in self.features

    def policy(self) -> dict[str, Any]:
        random = self.random
        rows_max = random.choice([1, 2, 4, 7, 16])
        policy: dict[str, Any] = {
            "rows_max": rows_max,
            "merge": random.random() < 0.9,
            "staged_batches_max": random.randint(0, 3),
            "idempotent": random.random() < 0.8,
            "cancellable": self.has("cancellable"),
        }
        sizes = [random.randint(1, 20) for _ in range(random.randint(1, 3))]
        if self.has("preferred"):
            policy["preferred_rows"] = sizes
        if self.has("mandatory"):
            policy["mandatory_rows"] = [random.randint(1, 20) for _ in range(random.randint(1, 3))]
        if self.has("delay"):
            policy["queue_delay_max_ns"] = random.choice([0, MS, 5 * MS])
        if self.has("deadlines"):
            policy["slo_ns"] = random.choice([0, 10 * MS, 100 * MS])
        if self.has("priorities"):
            policy |= {"priority_levels": 3, "default_priority": random.randint(1, 3)}
        if self.has("levels"):
            policy["levels"] = tuple(
                (random.choice([0, 5 * MS, 50 * MS]), random.random() < 0.3)
                for _ in range(random.randint(0, 4))
            )
        if self.has("direct") and random.random() < 0.8:
            policy["direct_max"] = random.choice([1, 2, 5, 100])
        if self.has("sequences"):
            policy["sequence_idle_ns"] = random.choice([0, MS, 20 * MS, 3_000 * MS, 3_000 * MS])
        if self.has("holds"):
            policy["hold_requests"] = random.randint(0, 5)
        if self.has("unloading"):
            policy["admitting"] = random.random() < 0.7
        if self.has("bounds"):
            policy |= {
                "queue_requests_max": random.randint(1, 20),
                "queue_bytes_max": random.choice([200, 1000]),
                "queue_age_max_ns": random.choice([0, 3 * MS]),
            }
        return policy

    def configure(self, index: int) -> None:
        random = self.random
        placed = [b for b in range(self.backends) if random.random() < 0.9] or [0]
        random.shuffle(placed)
        placements = [(b, random.randint(1, 2), random.random() < 0.9) for b in placed]
        policy = self.policy() | {"in_use": random.random() < 0.97}
        self.pair.configure(index, placements, self.now, policy)

    def submit(self) -> None:
        random = self.random
        request: dict[str, Any] = {
            "user": random.randint(1, 1 << 40),
            "model": random.randrange(self.models),
            "rows": random.choice([1, 1, 1, 2, 3]),
            "bytes": random.randint(0, 90),
        }
        if self.has("oversize") and random.random() < 0.2:
            request["rows"] = random.randint(0, 60)
        if self.has("signatures"):
            request["signature"] = random.randint(0, 3)
        if self.has("priorities"):
            request["priority"] = random.randint(0, 4)
        if self.has("deadlines") and random.random() < 0.6:
            request["deadline"] = self.now + random.randint(-1, 30) * MS
            request["arrival"] = self.now - random.randint(0, 2) * MS
        if self.has("unmergeable"):
            request["mergeable"] = random.random() < 0.7
        if self.has("pins") and random.random() < 0.4:
            request["pinned_backend"] = random.randint(0, self.backends)
        if self.has("sequences") and random.random() < 0.7:
            request |= {
                "sequence": random.choice([1, 1, 1, 2, 3, 4]),
                "start": random.random() < 0.3,
                "end": random.random() < 0.15,
            }
        if self.has("paths"):
            request["path"] = random.choice([0, 1, 1, 2])
        self.pair.submit(self.now, **request)

    def reply(self) -> None:
        out = sorted(self.pair.oracle.batches)
        if not out:
            return
        batch = self.random.choice(out[:3])
        failing = 0.6 if self.has("storms") else 0.15
        if self.has("failures") and self.random.random() < failing:
            kinds = KINDS[:4] if self.has("storms") else KINDS
            kind = self.random.choices(kinds, [4, 3, 12, 1, 3, 3][: len(kinds)])[0]
            self.pair.dispatch_failed(batch, kind, self.random.choice([0, 3, 13]), self.now)
        else:
            self.pair.complete(batch, self.now)

    def cancel(self) -> None:
        if self.has("cancels") and self.pair.request_handles:
            # Mostly a live one, sometimes a stale handle.
            live = sorted(self.pair.oracle.requests) or [1]
            numbers = live if self.random.random() < 0.8 else sorted(self.pair.request_handles)
            self.pair.cancel(self.random.choice(numbers), self.now)

    def disturb(self) -> None:
        kind = self.random.randrange(5)
        if kind == 0 and self.has("outages"):
            backend = self.random.randrange(self.backends)
            self.pair.set_backend(backend, self.random.random() < 0.6, self.now)
        elif kind == 1 and self.has("reconfigure"):
            self.configure(self.random.randrange(self.models))
        elif kind == 2 and self.has("reload"):
            self.pair.reload()
        elif kind == 3 and self.has("drain") and self.random.random() < 0.5:
            self.pair.set_draining(self.random.random() < 0.3)
            if self.random.random() < 0.3:
                self.pair.fail_all("draining", self.now)
        elif kind == 4 and self.has("outages"):
            self.now += self.random.choice([300, 900, 5_000]) * MS

    def run(self, events: int) -> Pair:
        for _ in range(events):
            kind = self.random.random()
            if kind < 0.4:
                for _ in range(self.random.choice([1, 1, 2, 8])):
                    self.submit()
            elif kind < 0.65:
                self.reply()
            elif kind < 0.72:
                self.cancel()
            elif kind < 0.78:
                self.disturb()
            else:
                self.now += self.random.choice([0, 1000, MS // 4, MS, 7 * MS])
                self.pair.step(self.now)
        return self.pair


@pytest.mark.parametrize("block", range(20))
def test_acts_as_the_oracle_in_random_runs(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        try:
            Swarm(Random(seed)).run(90)
        except Exception:
            print(f"seed {seed}")
            raise


@pytest.mark.parametrize("block", range(10))
def test_sequences_act_as_in_the_oracle(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        try:
            always = ("sequences", "paths", "direct", "failures", "outages")
            Swarm(Random(seed), always).run(150)
        except Exception:
            print(f"seed {seed}")
            raise


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_acts_as_the_oracle_in_shrinkable_runs(random: Random, events: int) -> None:
    Swarm(random).run(events)
