"""What is in time while Triton's host stalls now and then, and once it is over.

All processes of the Triton are stopped for 20 ms after every 60 ms, both in the mean and at random,
as a host does that others use. The load is nine tenths of the goodput that the simulator predicts
for a host without stalls. Ours is compared with the best queue time-out of Triton's batcher, which
has the same stalls and as many rounds. What comes after the stalls is measured from the end of the
load's warm-up, 1.5 s, on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import median

from benchmarks.loading import first_problem
from benchmarks.options import say
from benchmarks.results import Figure
from benchmarks.slo_compared import Way, against_the_best, attainment, compared, in_words
from benchmarks.slo_servers import Batcher, Measured

EVERY_S, FOR_S = 0.06, 0.02
LOAD_PART = 0.9
# Of Triton; a ratio to less would be one to nothing.
LEAST_IN_TIME = 0.01
FIGURES = ("slo_stalls_in_time_ratio", "slo_after_stalls_in_time")


@contextlib.contextmanager
def stalls(process_group: int, seed: int) -> Iterator[None]:
    """The processes of the group stand still now and then; not any more once this is left."""
    random = Random(seed)
    over = threading.Event()

    def stall() -> None:
        while not over.wait(random.expovariate(1 / EVERY_S)):
            os.killpg(process_group, signal.SIGSTOP)
            over.wait(random.expovariate(1 / FOR_S))
            os.killpg(process_group, signal.SIGCONT)

    thread = threading.Thread(target=stall, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def figures(
    process_group: int,
    scheduled: Callable[[int], Measured],
    batched: Callable[[Batcher, int], Measured],
    batchers: Sequence[Batcher],
    rounds: int,
) -> list[Figure]:
    """`scheduled` and `batched` offer the load of a turn through the scheduler and to Triton."""
    after: list[Measured] = []
    before = scheduled(0)
    say(f"  {before.attainment:.3f} in time without")

    def ours(turn: int) -> Measured:
        with stalls(process_group, turn):
            during = scheduled(turn)
        after.append(scheduled(turn))
        say(f"  {during.attainment:.3f} in time, after it {after[-1].attainment:.3f}")
        return during

    def theirs(batcher: Batcher, turn: int) -> Measured:
        with stalls(process_group, turn):
            return batched(batcher, turn)

    grids = {"batchers": batchers}
    during, best, problem = against_the_best(ours, theirs, grids, rounds, attainment)
    ((setting, loads),) = best.values()
    problem = first_problem([before, *after]) or problem
    parts = [load.attainment for load in after]
    return [
        compared(
            FIGURES[0],
            Way("in time, the scheduler", [load.attainment for load in during]),
            Way(f"best of {len(batchers)} settings of Triton's batcher ({setting})",
                [load.attainment for load in loads]),
            LEAST_IN_TIME,
            problem,
        ),
        Figure.of(
            FIGURES[1], median(parts), problem,
            f"in time after it: {in_words(parts)}; before it: {before.attainment:.4g}",
        ),
    ]  # fmt: skip
