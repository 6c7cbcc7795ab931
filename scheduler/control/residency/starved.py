"""Loads that found no memory where the figures had said that there is some: others leave one by one
until it is enough, or nobody is left. What is seen then bounds what the model needs, so that the
others do not leave for it again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.policy import (
    Later,
    NoRoom,
    Plan,
    Resident,
    Room,
    Site,
    leaving_next,
)
from scheduler.control.residency.residents import Residents


@dataclass(frozen=True)
class _Tried:
    text: str  # of the Triton
    free: Mapping[str, int]  # before the load, by place
    beside: bool = False  # others were there that could not leave yet


class Starved:
    """By model and backend, until it is loaded there or others have left."""

    def __init__(self, learned: LearnedLoads, residents: Residents) -> None:
        self._learned, self._residents = learned, residents
        self._tried: dict[tuple[str, str], _Tried] = {}

    def found_none(self, name: str, site: Site, text: str, free: Mapping[str, int]) -> bool:
        """A load there failed for want of memory, as Triton says; so much was free. Whether it is
        worth another try: not where it had one just now."""
        if len(site.weights) == 1:  # of two devices either may be the full one
            for place, free_bytes in free.items():
                self._learn(name, site, place, free_bytes)
        if (name, site.backend) in self._tried:
            return False
        self._tried[name, site.backend] = _Tried(text, free)
        return True

    def ended(self, name: str, backend: str) -> str:
        """It counts no more; what the Triton had said."""
        found = self._tried.pop((name, backend), None)
        return found.text if found is not None else ""

    def forget(self, name: str) -> None:
        """Nobody wants it any more."""
        for key in [key for key in self._tried if key[0] == name]:
            del self._tried[key]

    def decided(
        self,
        name: str,
        found: Plan | Later | NoRoom,
        there: Sequence[Resident],
        rooms: Mapping[str, Room],
        now_s: float,
    ) -> Plan | Later | NoRoom:
        """What the policy has found, or who leaves first."""
        if not isinstance(found, Plan) or found.victims:
            return found
        site = found.site
        key = (name, site.backend)
        tried = self._tried.get(key)
        if tried is None:
            return found
        first = leaving_next(site, there, now_s)
        if isinstance(first, Resident):
            return Plan(site, (first,))
        if isinstance(first, Later):
            self._tried[key] = replace(tried, beside=True)
            return first
        if tried.beside:  # who was there has gone since: alone it was not tried
            del self._tried[key]
            return found
        place, weight = next(iter(site.weights.items()))
        if len(site.weights) == 1:  # of two devices either may be the full one
            self._learn(name, site, place, tried.free.get(place, math.inf))
        free = rooms.get(place, Room()).free_bytes
        return NoRoom(place, weight, max(free or 0, 0), others=True, backend=site.backend)

    def _learn(self, name: str, site: Site, place: str, free_bytes: float) -> None:
        if self._learned.weight(name, site.backend, place)[1]:
            return  # it has fitted into less: others took what was free meanwhile
        total = self._residents.total_bytes(place)
        self._learned.starved(name, site.backend, place, free_bytes, total)
