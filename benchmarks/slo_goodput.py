"""The highest rate that a way to a model serves in time, and the comparison of several ways.

All that are compared are searched equally often, in turns, with long loads and to the same
resolution, and their medians count. Which settings of a large grid are worth that is found by one
search of each that comes near the best, with shorter loads. What holds at no rate is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.loading import first_problem
from benchmarks.options import say
from benchmarks.slo_servers import Measured

ATTAINMENT = 0.99
LEAST_PER_S = 20.0
# Between rates that are tried one after the other: two more tries are within the finer resolution.
# Far below the goal there is no need for small steps.
STEP = 1.03
FAR_STEP = STEP**5
FAR_BELOW = 0.8
# Settings are searched that hold so much of the best one's rate, and compared that reach so much.
WORTH_A_SEARCH = 0.97
WORTH_COMPARING = 0.95
COMPARED_MAX = 2

# Offers a rate for some seconds, with arrivals of the turn.
Load = Callable[[float, int, float], Measured]


@dataclass(frozen=True)
class Search:
    """How closely the highest rate is looked for."""

    seconds: float  # of one load
    resolution: float  # of the lowest rate that did not hold to the highest that did
    loads_max: int = 25

    def goodput(
        self, load: Load, from_per_s: float, to_per_s: float = LEAST_PER_S, turn: int = 0
    ) -> tuple[float, str]:
        """The highest rate of which ATTAINMENT was in time; 0 when none from `to_per_s` on was.

        At most `loads_max` rates are tried, and the highest that held until then counts. Each load
        has arrivals of its own, from `turn` on. The text is a problem of a load.
        """
        tries: list[Measured] = []

        def attained(rate_per_s: float) -> float:
            tries.append(load(rate_per_s, turn + len(tries), self.seconds))
            return tries[-1].attainment

        held, missed = 0.0, float("inf")
        rate = from_per_s
        while len(tries) < self.loads_max and missed > self.resolution * held:
            attainment = attained(rate)
            if attainment >= ATTAINMENT:
                held = rate
            else:
                missed = rate
            if held == 0:
                rate = missed / (STEP if attainment > FAR_BELOW else FAR_STEP)
                if rate < to_per_s:
                    break
            elif missed == float("inf"):
                rate = held * STEP
            else:
                rate = (held * missed) ** 0.5
        return held, first_problem(tries)


@dataclass
class Contender:
    """One way to the model, and what is known of it: 0 is nothing."""

    name: str
    load: Load
    about_per_s: float = 0.0
    rates_per_s: list[float] = field(default_factory=list)  # found by the rounds of a comparison
    problem: str = ""

    @property
    def goodput_per_s(self) -> float:
        return median(self.rates_per_s) if self.rates_per_s else 0.0

    def search(
        self, search: Search, from_per_s: float, to_per_s: float = LEAST_PER_S, turn: int = 0
    ) -> float:
        found, problem = search.goodput(self.load, from_per_s, to_per_s, turn)
        self.problem = self.problem or problem
        return found


def near_the_best(
    contenders: Sequence[Contender], best_per_s: float, top_per_s: float, search: Search
) -> list[Contender]:
    """Those of many that are worth comparing, at most COMPARED_MAX; what each reaches about.

    Where no best is known yet, `best_per_s` 0, a search begins at `top_per_s`.
    """
    for contender in contenders:
        wanted = best_per_s * WORTH_A_SEARCH
        contender.about_per_s = contender.search(
            search, wanted or top_per_s, max(wanted, LEAST_PER_S)
        )
        found = contender.about_per_s
        said = f"about {found:.0f}/s" if found else "below the best"
        say(f"  {contender.name}: {said} {contender.problem}")
        best_per_s = max(best_per_s, found)
    near = [c for c in contenders if c.about_per_s >= max(best_per_s * WORTH_COMPARING, 1)]
    return sorted(near, key=lambda c: -c.about_per_s)[:COMPARED_MAX]


def compare(contenders: Sequence[Contender], rounds: int, search: Search) -> None:
    """What each reaches in `rounds` searches, in turns, each first once.

    They begin above what is known: below the highest rate there may be some that do not hold. A
    contender of which nothing is known holds nowhere: it is not compared, that is its problem.
    """
    able = [contender for contender in contenders if contender.about_per_s]
    for contender in contenders:
        if not contender.about_per_s:
            reason = f"{contender.name} held at no rate that was tried"
            contender.problem = contender.problem or reason
            say(f"  {reason}: it is not compared")
    for turn in range(rounds):
        first = turn % max(len(able), 1)
        for contender in (*able[first:], *able[:first]):
            known = max(contender.rates_per_s, default=0.0)
            begin = STEP * known or STEP**2 * contender.about_per_s
            per_s = contender.search(search, begin, turn=100 * (turn + 1))
            contender.rates_per_s.append(per_s)
            say(f"  round {turn + 1} of {rounds}: {contender.name} {per_s:.0f}/s")
