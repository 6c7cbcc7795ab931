"""`batching: triton` against Triton's batcher in plain Python: random blocks, random traffic.

A failure prints the seed; run it alone with INFERSCHED_TRITON_SEED.
"""

from __future__ import annotations

import os
import random

import pytest

from scheduler._native.engine import Answer, Dispatch, Engine, TritonBlock, TritonPolicy, Wake
from tests.property.triton_oracle import NEVER, TritonOracle

MS = 1_000_000
STEPS = 400
SEEDS = [int(os.environ["INFERSCHED_TRITON_SEED"])] if "INFERSCHED_TRITON_SEED" in os.environ else (
    range(60)
)  # fmt: skip


def random_policy(rng: random.Random) -> TritonPolicy:
    return TritonPolicy(
        timeout_ns=rng.choice([0, 0, 3 * MS, 20 * MS]),
        delay_timed_out=rng.random() < 0.4,
        timeout_override=rng.random() < 0.4,
        requests_max=rng.choice([0, 0, 3, 12]),
    )


def random_block(rng: random.Random, rows_max: int) -> TritonBlock:
    sizes = sorted(rng.sample(range(1, rows_max + 1), rng.randint(0, min(3, rows_max))))
    plain = rng.random() < 0.4  # formed ahead of the instances
    levels = 1 if plain else rng.choice([1, 1, 2, 4])
    return TritonBlock(
        preferred_rows=tuple(sizes) or rng.choice([(), (rows_max,)]),
        queue_delay_max_ns=rng.choice([0, 0, 2 * MS, 10 * MS]),
        levels=tuple(TritonPolicy() if plain else random_policy(rng) for _ in range(levels)),
        default_level=rng.randint(1, levels),
    )


class Pair:
    """The engine and the oracle, given the same events at the same times."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.rows_max = rng.choice([1, 4, 8, 16])
        self.instances = rng.choice([1, 1, 2, 3])
        self.block = random_block(rng, self.rows_max)
        self.now = 1_000 * MS
        self.engine = Engine()
        self.policy = {"rows_max": self.rows_max, "triton": self.block}
        self.configure()
        self.engine.set_backend(0, True, self.now)
        self.oracle = TritonOracle(self.block, self.rows_max, self.instances)
        self.handles: dict[int, int] = {}
        self.out: list[int] = []
        self.users = 0
        self.armed = NEVER
        self.actions: list[object] = []

    def configure(self) -> None:
        self.engine.configure_model(0, [(0, self.instances, True)], self.now, **self.policy)

    def submit(self) -> None:
        rng = self.rng
        self.users += 1
        rows, signature = rng.randint(1, min(self.rows_max, 3)), rng.choice([0, 0, 0, 0, 1])
        priority, timeout_ns = rng.randint(0, 5), rng.choice([0, 0, MS, 100 * MS])
        admitted = self.engine.submit(
            self.now, user=self.users, rows=rows, signature=signature, priority=priority,
            timeout_ns=timeout_ns,
        )  # fmt: skip
        taken = self.oracle.enqueue(self.users, self.now, rows, signature, priority, timeout_ns)
        assert bool(admitted.handle) == taken
        if taken:
            self.handles[self.users] = admitted.handle

    def cancel(self) -> None:
        if not self.handles:
            return
        user = self.rng.choice(list(self.handles))
        self.oracle.cancel(user)
        self.engine.cancel(self.handles[user], self.now)

    def complete(self) -> None:
        if self.out:
            self.oracle.executing -= 1
            self.engine.complete(self.out.pop(self.rng.randrange(len(self.out))), self.now)

    def advance(self) -> None:
        wait = self.rng.choice([0, 1, MS, 3 * MS, 30 * MS])
        if self.rng.random() < 0.3 and self.armed != NEVER:
            wait = max(self.armed - self.now, 0)
        self.now += wait

    def reload(self) -> None:
        self.actions += self.engine.take_actions()  # they are not part of the state
        other = Engine()
        assert other.load(self.engine.save())
        self.engine = other

    def step(self) -> None:
        self.engine.step(self.now)
        started, expired = self.oracle.run(self.now)
        batches, timed_out = [], []
        actions, self.actions = self.actions + self.engine.take_actions(), []
        for action in actions:
            if isinstance(action, Dispatch):
                self.out.append(action.batch)
                batches.append([member.user for member in action.members])
            elif isinstance(action, Answer):
                self.handles.pop(action.user)
                if action.outcome == "expired":
                    timed_out.append(action.user)
            elif isinstance(action, Wake):
                self.armed = action.at
        assert (batches, sorted(timed_out)) == (started, expired)
        assert self.armed <= self.oracle.next_moment()
        self.engine.check_invariants()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_engine_batches_as_triton_does(seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair(rng)
    weights = [rng.choice([1, 5, 20]), rng.choice([0, 1]), 4, 5, 0.2, 0.2]
    moves = [pair.submit, pair.cancel, pair.complete, pair.advance, pair.reload, pair.configure]
    for _ in range(STEPS):
        for move in rng.choices(moves, weights, k=rng.choice([1, 1, 4])):
            move()
        pair.step()
    for _ in range(len(pair.handles) + 10):
        pair.now += 600 * MS
        pair.complete()
        pair.step()
    assert not pair.handles
    assert pair.oracle.size() == 0
