"""Loads that found no memory where the figures had said that there is some: others leave one by one
until it is enough, or nobody is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.control.residency.policy import (
    Later,
    NoRoom,
    Plan,
    Resident,
    Room,
    leaving_next,
)


class Starved:
    """By model and backend, until it is loaded there or others have left."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], str] = {}

    def found_none(self, name: str, backend: str, text: str) -> bool:
        """A load there failed for want of memory, as Triton says. Whether it is worth another try:
        not where it had one just now."""
        if (name, backend) in self._said:
            return False
        self._said[name, backend] = text
        return True

    def ended(self, name: str, backend: str) -> str:
        """It counts no more; what the Triton had said."""
        return self._said.pop((name, backend), "")

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
        if (name, site.backend) not in self._said:
            return found
        first = leaving_next(site, there, now_s)
        if isinstance(first, Resident):
            return Plan(site, (first,))
        if isinstance(first, Later):
            return first
        place, weight = next(iter(site.weights.items()))
        free = rooms.get(place, Room()).free_bytes
        return NoRoom(place, weight, max(free or 0, 0), others=True)
