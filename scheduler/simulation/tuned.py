"""A static batcher as a careful operator sets it up: the best of a grid for one world.

Best is what holds the highest rate with enough requests in time; that setting is kept at every
load. Models that differ first get the same place in the grid, then each the best for itself, in
turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scheduler.simulation.compare import GRID_DELAY_PART, GRID_ROWS_MAX, TUNED, static_grid
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import (
    Model,
    Policy,
    Scenario,
    StaticSettings,
    simulate,
    static,
)
from scheduler.simulation.world import World

# So many kinds of models are tuned by themselves; further ones keep the place best for all.
KINDS_MAX = 8

Settings = tuple[StaticSettings, ...]  # by model


@dataclass(frozen=True)
class Tuned:
    """The setting found for each model, by their names."""

    names: tuple[str, ...]
    settings: Settings

    @property
    def policy(self) -> Policy:
        return static(*self.settings)

    @property
    def records(self) -> list[dict[str, Any]]:
        """As JSON has them."""
        return [
            {
                "name": name,
                "max_batch_size": setting.rows_max,
                "max_queue_delay_ms": round(setting.delay_ms, 4),
                "queue_timeout_ms": setting.queue_timeout_ms and round(setting.queue_timeout_ms, 4),
            }
            for name, setting in zip(self.names, self.settings, strict=True)
        ]

    @property
    def lines(self) -> list[str]:
        """Every setting, with the models that have it where others have another."""
        having: dict[StaticSettings, list[str]] = {}
        for name, setting in zip(self.names, self.settings, strict=True):
            having.setdefault(setting, []).append(name)
        if len(having) == 1:
            return [_told(self.settings[0])]
        return [f"{_together(names)}: {_told(setting)}" for setting, names in having.items()]


def tuned(world: World, name: str, *, seed: int, requests: int) -> Tuned:
    """The best setting of `name`, which is one of TUNED. Raises ValueError."""
    search_of = _Search(world, seed, requests)
    kinds: dict[tuple[object, ...], list[int]] = {}
    for at, model in enumerate(search_of.models):
        kinds.setdefault((model.latency, model.objective_ms, model.rows_max), []).append(at)
    timeouts = TUNED[name]
    if len(kinds) == 1:
        grid = static_grid(search_of.models[0], timeouts=timeouts)
        search_of.try_all([(setting,) * len(search_of.models) for setting in grid])
        return Tuned(world.models, search_of.best)
    search_of.try_all(_common(search_of.models, timeouts=timeouts))
    for places in list(kinds.values())[:KINDS_MAX]:
        own = static_grid(search_of.models[places[0]], timeouts=timeouts)
        kept = search_of.best
        search_of.try_all([_with(kept, places, setting) for setting in own])
    return Tuned(world.models, search_of.best)


class _Search:
    """Keeps the best of what is tried."""

    def __init__(self, world: World, seed: int, requests: int) -> None:
        self._world = world
        self._seed, self._requests = seed, requests
        self._lowest_per_s = world.capacity_per_s / 1000
        self.models: Sequence[Model] = world.at(1.0).models
        self.best: Settings = ()

    def _at(self, rate: float) -> Scenario:
        scenario = self._world.at(rate / self._world.per_s)
        return replace(scenario, seed=self._seed, requests=self._requests)

    def try_all(self, candidates: Sequence[Settings]) -> None:
        """The first one is kept where none is better."""
        found = False
        for settings in candidates:
            # Nothing below the best so far is of interest.
            held = search(
                self._at,
                static(*settings),
                from_per_s=self._world.capacity_per_s,
                to_per_s=self._lowest_per_s,
            )
            if held.outcome is not None and (not found or held.per_s > self._lowest_per_s):
                self.best, self._lowest_per_s, found = settings, held.per_s, True
        if not self.best:
            # No rate holds with any: what has the most in time at the world's own.
            at_one = self._at(self._world.per_s)
            self.best = max(
                candidates, key=lambda settings: simulate(at_one, static(*settings)).in_time_share
            )


def _common(models: Sequence[Model], *, timeouts: bool) -> list[Settings]:
    """The same place in the grid for all, as far as each goes."""
    return [
        tuple(_setting(model, rows, part, timed=timed) for model in models)
        for rows in GRID_ROWS_MAX
        for part in GRID_DELAY_PART
        for timed in ((False, True) if timeouts else (False,))
    ]


def _setting(model: Model, rows: int, part: float, *, timed: bool) -> StaticSettings:
    """Of the model's own grid, of no more rows."""
    grid = static_grid(model, timeouts=timed)
    fewer = [setting.rows_max for setting in grid if setting.rows_max <= rows]
    most = max(fewer, default=grid[0].rows_max)
    delay_ms = part * model.objective_ms
    fitting = [s for s in grid if s.rows_max == most and s.delay_ms == delay_ms]
    return fitting[-1]  # the one with a timeout, where there is one


def _with(settings: Settings, places: Sequence[int], setting: StaticSettings) -> Settings:
    changed = list(settings)
    for at in places:
        changed[at] = setting
    return tuple(changed)


def _told(setting: StaticSettings) -> str:
    timeout = setting.queue_timeout_ms
    return (
        f"up to {setting.rows_max} rows, max_queue_delay {setting.delay_ms:.4g} ms"
        f"{'' if timeout is None else f', queue timeout {timeout:.4g} ms'}"
    )


def _together(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
