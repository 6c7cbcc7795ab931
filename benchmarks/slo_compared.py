"""Ours against the best of Triton's settings, alike, and what a figure of that tells.

All settings are tried once. The best of many single loads is so by chance, too: so the best few
are run again, as often and as long as ours, in turns with it, and medians count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median, median_low
from typing import TypeVar

from benchmarks.loading import first_problem
from benchmarks.options import say
from benchmarks.results import Figure, rounded
from benchmarks.slo_servers import Measured

FINALISTS = 3

Setting = TypeVar("Setting")
Load = TypeVar("Load")


def ranked(
    tried: Iterable[tuple[Setting, Load]], value: Callable[[Load], float]
) -> list[tuple[Setting, list[Load]]]:
    """Each setting with its loads, the best by their median first; of equals the first tried."""
    found: dict[Setting, list[Load]] = {}
    for setting, load in tried:
        found.setdefault(setting, []).append(load)
    return sorted(found.items(), key=lambda one: -median(map(value, one[1])))


def finalists(
    tried: Iterable[tuple[Setting, Load]], value: Callable[[Load], float]
) -> list[Setting]:
    """The settings that are worth being run as often as ours, the best first."""
    return [setting for setting, _ in ranked(tried, value)[:FINALISTS]]


def median_round(loads: Sequence[Load], value: Callable[[Load], float]) -> Load:
    """Of two in the middle the lower one."""
    values = [value(load) for load in loads]
    return loads[values.index(median_low(values))]


def against_the_best(
    ours: Callable[[int], Measured],
    theirs: Callable[[Setting, int], Measured],
    grids: Mapping[str, Sequence[Setting]],
    rounds: int,
    value: Callable[[Measured], float],
) -> tuple[list[Measured], dict[str, tuple[Setting, list[Measured]]], str]:
    """Our loads; by grid its best setting with its loads; the first problem of any load.

    `ours` and `theirs` offer the load of a turn. That in which settings are tried is one that no
    round has.
    """
    tried: list[Measured] = []

    def load(setting: Setting, turn: int) -> tuple[Setting, Measured]:
        tried.append(theirs(setting, turn))
        return setting, tried[-1]

    once: dict[str, list[tuple[Setting, Measured]]] = {}
    for name, grid in grids.items():
        for setting in grid:
            once.setdefault(name, []).append(load(setting, rounds))
            say(f"  {setting}: {value(tried[-1]):.4g} in time {tried[-1].problem}")
    near = {name: finalists(loads, value) for name, loads in once.items()}
    our_loads: list[Measured] = []
    again: dict[str, list[tuple[Setting, Measured]]] = {name: [] for name in near}
    for turn in range(rounds):
        our_loads.append(ours(turn))
        for name, settings in near.items():
            again[name] += [load(setting, turn) for setting in settings]
        say(f"  round {turn + 1} of {rounds}: the scheduler {value(our_loads[-1]):.4g} in time")
    best = {name: ranked(loads, value)[0] for name, loads in again.items()}
    return our_loads, best, first_problem(chain(our_loads, tried))


def attainment(load: Measured) -> float:
    return load.attainment


def in_time_per_s(load: Measured) -> float:
    return load.in_time_per_s


# -- what is told ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One of two that are compared, what it reached in each round and what else is told of it."""

    name: str
    by_round: Sequence[float]
    more: str = ""

    def in_words(self, unit: str) -> str:
        told = f"{self.name}: {in_words(self.by_round, unit)}"
        return f"{told}, {self.more}" if self.more else told


def in_words(by_round: Sequence[float], unit: str = "") -> str:
    """The median and, of several, each."""
    if not by_round:
        return "nothing"
    middle, *each = (f"{value:.10g}" for value in rounded([median(by_round), *by_round]))
    return f"{middle}{unit}" + (f" ({', '.join(each)})" if len(each) > 1 else "")


def compared(
    figure: str, ours: Way, theirs: Way, least: float, problem: str = "", unit: str = ""
) -> Figure:
    """The ratio of the medians; its note has what it rests on, and the ratio of each round.

    At least `least` is taken for theirs: a ratio to less would be one to nothing. Both have all
    rounds, or none. Raises ValueError otherwise.
    """
    both = bool(ours.by_round and theirs.by_round)
    rounds = zip(ours.by_round, theirs.by_round, strict=both)
    ratios = rounded(a / max(b, least) for a, b in rounds)
    by_round = ", ".join(f"{ratio:.10g}" for ratio in ratios) or "nothing"
    told = [way.in_words(unit) for way in (ours, theirs)]
    note = "; ".join([*told, f"ratio by round: {by_round}"])
    middle = [median(way.by_round or [0.0]) for way in (ours, theirs)]
    say(f"{note} {problem}")
    return Figure.of(figure, middle[0] / max(middle[1], least), problem, note)
