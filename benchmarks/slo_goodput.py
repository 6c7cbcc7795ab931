"""The highest rate that a way to a model serves in time, and the comparison of several ways.

All that are compared are searched equally often, in turns, and their medians count. Which settings
of a large grid are worth that is found by one search of each that comes near the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.options import say
from benchmarks.slo_servers import Measured, first_problem

ATTAINMENT = 0.99
LEAST_PER_S = 20.0
SEARCH_STEP = 0.96
# A search begins so much above what is known before.
FROM_ABOVE = 1.1
# Settings are searched that hold so much of the best one's rate, and compared that reach so much.
WORTH_A_SEARCH = 0.97
WORTH_COMPARING = 0.95
COMPARED_MAX = 3

# Offers a rate, with arrivals of the turn.
Load = Callable[[float, int], Measured]


def goodput(
    load: Load, from_per_s: float, to_per_s: float = LEAST_PER_S, turn: int = 0, searches: int = 25
) -> tuple[float, str]:
    """The first rate, coming down, that holds twice in a row; 0 when none above `to_per_s` does.

    The rate half a step above it counts when it holds twice, too. At most `searches` rates are
    tried. Each load of a search has arrivals of its own. The text is a problem of its loads.
    """
    problems: list[str] = []

    def holds(rate_per_s: float) -> tuple[bool, float]:
        tries: list[Measured] = []
        while len(tries) < 2 and all(one.attainment >= ATTAINMENT for one in tries):
            tries.append(load(rate_per_s, turn + len(tries)))
        problems.append(first_problem(tries))
        worst = min(one.attainment for one in tries)
        return worst >= ATTAINMENT, worst

    rate, tried = from_per_s, 0
    while tried < searches and rate >= to_per_s:
        held, attainment = holds(rate)
        tried += 1
        if held:
            above = rate / SEARCH_STEP**0.5
            better = tried > 1 and holds(above)[0]
            return (above if better else rate), next(filter(None, problems), "")
        # Far below the goal there is no need for small steps.
        rate *= SEARCH_STEP if attainment > 0.8 else SEARCH_STEP**4
    return 0.0, next(filter(None, problems), "")


@dataclass
class Contender:
    """One way to the model, and what is known of it: 0 is nothing."""

    name: str
    load: Load
    about_per_s: float = 0.0
    goodput_per_s: float = 0.0
    problem: str = ""

    def search(self, from_per_s: float, to_per_s: float, turn: int, searches: int) -> float:
        """Of one search; begins higher where the first rate holds."""
        found = 0.0
        for _ in range(searches):
            found, problem = goodput(self.load, from_per_s, to_per_s, turn, searches)
            self.problem = self.problem or problem
            if found < from_per_s:
                break
            from_per_s *= FROM_ABOVE
        return found


def near_the_best(
    contenders: Sequence[Contender], from_per_s: float, best_per_s: float, searches: int
) -> list[Contender]:
    """Those of many that are worth comparing, at most COMPARED_MAX; what each reaches about."""
    for contender in contenders:
        wanted = max(best_per_s * WORTH_A_SEARCH, LEAST_PER_S)
        first = contender.load(wanted, 7)
        contender.problem = first.problem
        if first.attainment >= ATTAINMENT:
            contender.about_per_s = contender.search(
                max(from_per_s, wanted), wanted, turn=0, searches=searches
            )
        found = contender.about_per_s
        said = f"about {found:.0f}/s" if found else "below the best"
        say(f"  {contender.name}: {said} {contender.problem}")
        best_per_s = max(best_per_s, found)
    near = [c for c in contenders if c.about_per_s >= max(best_per_s * WORTH_COMPARING, 1)]
    return sorted(near, key=lambda c: -c.about_per_s)[:COMPARED_MAX]


def compare(contenders: Sequence[Contender], rounds: int, searches: int) -> None:
    """Sets what each reaches: the median of `rounds` searches, in turns, each first once."""
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        first = turn % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            top = FROM_ABOVE * max(contender.about_per_s, LEAST_PER_S)
            per_s = contender.search(top, LEAST_PER_S, turn=10 * (turn + 1), searches=searches)
            found[contender.name].append(per_s)
            say(f"  round {turn + 1} of {rounds}: {contender.name} {per_s:.0f}/s")
    for contender in contenders:
        contender.goodput_per_s = median(found[contender.name])
        rates = ", ".join(f"{per_s:.0f}" for per_s in found[contender.name])
        say(f"  {contender.name}: {contender.goodput_per_s:.0f}/s ({rates}) {contender.problem}")
