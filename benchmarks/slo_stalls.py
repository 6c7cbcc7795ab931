"""What is in time while Triton's host stalls now and then, and once it is over.

All processes of the Triton are stopped for 20 ms after every 60 ms, both in the mean and at random,
as a host does that others use. The load is nine tenths of the goodput that the simulator predicts
for a host without stalls. Ours, the median of its rounds, is compared with the best queue time-out
of Triton's batcher, each run once under the stalls of the first round. What comes after the stalls
is measured from the end of the load's warm-up, 1.5 s, on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import median

from benchmarks.options import say
from benchmarks.results import Figure
from benchmarks.slo_servers import Batcher, Measured, first_problem

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
    during: list[Measured] = []
    after: list[Measured] = []
    before = scheduled(0)
    say(f"  {before.attainment:.3f} in time without")
    for turn in range(rounds):
        with stalls(process_group, turn):
            during.append(scheduled(turn))
        after.append(scheduled(turn))
        say(f"  {during[-1].attainment:.3f} in time, after it {after[-1].attainment:.3f}")
    theirs: list[Measured] = []
    for batcher in batchers:
        with stalls(process_group, 0):
            theirs.append(batched(batcher, 0))
        say(f"  {batcher}: {theirs[-1].attainment:.3f} in time {theirs[-1].problem}")
    ours = median(load.attainment for load in during)
    best, setting = max(zip((load.attainment for load in theirs), map(str, batchers), strict=True))
    problem = first_problem([before, *during, *after, *theirs])
    note = f"in time: {ours:.3f}; by Triton's batcher {best:.3f} ({setting})"
    return [
        Figure.of(FIGURES[0], ours / max(best, LEAST_IN_TIME), problem, note),
        Figure.of(FIGURES[1], median(load.attainment for load in after), problem),
    ]
