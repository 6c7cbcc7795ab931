"""The engine and the reference policies side by side: goodput on workloads, as a table of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from scheduler.simulation.goodput import Goodput, search
from scheduler.simulation.scenario import (
    BENTOML,
    ENGINE,
    JUST_ENOUGH,
    NEXUS,
    RAY_SERVE,
    SHEPHERD,
    SYMPHONY,
    Model,
    Policy,
    StaticSettings,
    clockwork,
    engine,
    static,
)
from scheduler.simulation.workloads import Workload, known

REFERENCES: dict[str, Policy] = {
    "static_default": static(),
    "clockwork": clockwork(),
    "nexus": NEXUS,
    "shepherd": SHEPHERD,
    "symphony": SYMPHONY,
    "just_enough": JUST_ENOUGH,
}
# Servers without a known figure.
SERVERS: dict[str, Policy] = {"bentoml": BENTOML, "ray_serve": RAY_SERVE}
POLICIES = {**REFERENCES, **SERVERS, ENGINE: engine()}
# The best static settings of a grid, without and with a queue timeout beside.
TUNED = {"static_tuned": False, "static_timeout": True}
NAMES = ("static_default", *TUNED, *list(POLICIES)[1:])

# What a tuned static batcher is the best of: every pair. The known figures are those of batchers
# without a queue timeout: this grid finds the same within 3 %, and up to 5 % more with timeouts.
GRID_ROWS_MAX = (2, 4, 6, 8, 10, 12, 16, 24, 32)
GRID_DELAY_PART = (0.0, 0.08, 0.16)  # of the objective

LOWEST_PER_S = 20.0


def static_grid(of: Workload | Model, *, timeouts: bool) -> list[StaticSettings]:
    """The settings that tuning tries for a model; with `timeouts` each with a queue timeout, too.

    It leaves just enough time for a full batch.
    """
    most = of.rows_max if isinstance(of, Model) else GRID_ROWS_MAX[-1]
    grid = []
    for rows in [rows for rows in GRID_ROWS_MAX if rows <= most] or [most]:
        holds_ms = of.latency.at(rows)
        if rows > GRID_ROWS_MAX[0] and holds_ms > of.objective_ms:
            continue
        timeout_ms = of.objective_ms - holds_ms
        for part in GRID_DELAY_PART:
            delay_ms = part * of.objective_ms
            grid.append(StaticSettings(rows, delay_ms=delay_ms))
            if timeouts and timeout_ms > delay_ms:
                grid.append(StaticSettings(rows, delay_ms=delay_ms, queue_timeout_ms=timeout_ms))
    return grid


def goodput_of(workload: Workload, name: str, *, seed: int, requests: int) -> Goodput:
    """The goodput of the policy `name` of NAMES."""

    def found(policy: Policy, to_per_s: float = LOWEST_PER_S) -> Goodput:
        return search(
            lambda rate: workload.scenario(rate, seed=seed, requests=requests),
            policy,
            from_per_s=workload.capacity_per_s,
            to_per_s=to_per_s,
        )

    if name not in TUNED:
        return found(POLICIES[name])
    best = Goodput(LOWEST_PER_S, None)
    for settings in static_grid(workload, timeouts=TUNED[name]):
        # Nothing below the best so far is of interest.
        best = max(best, found(static(settings), best.per_s), key=lambda goodput: goodput.per_s)
    return best


@dataclass(frozen=True)
class Compared:
    """One policy on one workload over several seeds, requests/s."""

    workload: str
    policy: str
    goodputs: tuple[Goodput, ...]

    @property
    def per_s(self) -> float:
        return median(goodput.per_s for goodput in self.goodputs)

    @property
    def lowest_per_s(self) -> float:
        return min(goodput.per_s for goodput in self.goodputs)

    @property
    def highest_per_s(self) -> float:
        return max(goodput.per_s for goodput in self.goodputs)

    @property
    def worst_attainment(self) -> float:
        """Of any model in any seed, at the goodput found."""
        found = [goodput.outcome for goodput in self.goodputs if goodput.outcome is not None]
        return min((outcome.worst_attainment for outcome in found), default=0.0)

    @property
    def difference(self) -> float:
        """From the given range, as a part of it: 0.02 is 2 % above its upper end."""
        low, high = known(self.workload, self.policy)
        if self.per_s < low:
            return self.per_s / low - 1
        return max(self.per_s / high - 1, 0.0)


def compare(
    workloads: Mapping[str, Workload],
    policies: Iterable[str],
    seeds: Sequence[int],
    requests: int,
    *,
    jobs: int = 1,
    on_found: Callable[[str, str, int, Goodput], None] = lambda *_: None,
) -> Iterable[Compared]:
    """Every policy on every workload, in order, `jobs` seeds at a time.

    `on_found(workload, policy, seed, goodput)` is called as each is found, in any order and from
    any thread: runs are compiled code that leaves other threads alone.
    """

    def one(letter: str, name: str, seed: int) -> Goodput:
        found = goodput_of(workloads[letter], name, seed=seed, requests=requests)
        on_found(letter, name, seed, found)
        return found

    names = list(policies)
    with ThreadPoolExecutor(jobs) as threads:
        rows = [
            (letter, name, [threads.submit(one, letter, name, seed) for seed in seeds])
            for letter in workloads
            for name in names
        ]
        try:
            for letter, name, found in rows:
                yield Compared(letter, name, tuple(each.result() for each in found))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def table(rows: Sequence[Compared]) -> str:
    """Lines of workload, policy, median, range over seeds, worst model, given, difference."""
    lines = [
        f"{'':2}{'policy':16}{'r/s':>7}{'range':>13}{'worst model':>13}{'given':>12}{'off':>8}"
    ]
    for row in rows:
        low, high = known(row.workload, row.policy)
        given = f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"
        spread = f"{row.lowest_per_s:.0f}-{row.highest_per_s:.0f}"
        lines.append(
            f"{row.workload:2}{row.policy:16}{row.per_s:7.0f}{spread:>13}"
            f"{row.worst_attainment:13.4f}{given:>12}{100 * row.difference:+7.1f}%"
        )
    return "\n".join(lines)
