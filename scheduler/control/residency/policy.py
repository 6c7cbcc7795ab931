"""Which models make room so that another one can be loaded: the policy alone, without I/O.

A *place* is a device, or a backend whose devices are not known. What a model takes there is its
weight; 0 stands for one that is not known yet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Room:
    """What a place has for weights; None: not known, or not bounded."""

    budget_bytes: int | None = None  # for all weights together
    free_bytes: int | None = None  # measured, less the headroom
    most_bytes: int | None = None  # that can ever be free, less the headroom


@dataclass(frozen=True)
class Resident:
    """A model that is loaded on a backend, with the steps that leave with an ensemble."""

    name: str
    backend: str
    weights: Mapping[str, int]  # by place
    last_used_s: float = 0.0
    protected_until_s: float = 0.0  # it has only just been loaded
    busy: bool = False  # it has queued or running requests: it is drained before it is unloaded
    kept: bool = False  # pinned, or others need it, or its Triton is busy with it
    coming: bool = False  # it is being loaded, and may not have taken all of its weight yet
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A backend that can load the wanted model, and what it takes there by place."""

    backend: str
    weights: Mapping[str, int]
    # Whether the weights have been seen often enough to refuse the model for them.
    certain: bool = True
    # By place what it was seen to need at least; inf: more than there can be.
    least: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Unload these, then load there."""

    site: Site
    victims: tuple[Resident, ...] = ()


@dataclass(frozen=True)
class Later:
    """Nothing can be done now; at `at_s` a protection ends, or (inf) when something changes."""

    at_s: float = math.inf
    site: Site | None = field(default=None, compare=False)  # where it is going to be loaded


@dataclass(frozen=True)
class NoRoom:
    """Not even all that may leave makes room enough on any device."""

    place: str
    need_bytes: int
    free_bytes: int  # that there could be for it
    others: bool  # who have it are no models of ours: it may come free
    backend: str = ""  # the only one that it is said of


@dataclass
class _Choice:
    victims: list[Resident] = field(default_factory=list)
    later_s: float = 0.0
    no_room: NoRoom | None = None


def plan(
    sites: Sequence[Site],
    residents: Sequence[Resident],
    rooms: Mapping[str, Room],
    locked: Collection[str],
    now_s: float,
) -> Plan | Later | NoRoom:
    """Where to load a model, and who makes room for it.

    `locked` are places where another load is under way. The site that costs the least wins: one
    that needs nobody to leave, then one whose leavers are idle, then the fewest bytes, then the
    emptiest.
    """
    best: tuple[tuple[object, ...], Plan | Later] | None = None
    refusals: list[NoRoom] = []
    moving: Site | None = None
    for site in sites:
        choice = _choose(site, residents, rooms, now_s)
        if choice.no_room is not None:
            if choice.no_room.others and not locked_free(site, locked):
                moving = moving or site  # what is free there is of a load under way
            refusals.append(choice.no_room)
            continue
        waits = bool(choice.later_s) or not locked_free(site, locked)
        cost = (
            bool(choice.victims),
            waits,
            any(victim.busy for victim in choice.victims),
            sum(sum(victim.weights.values()) for victim in choice.victims),
            -_spare(site, residents, rooms),
            sum(resident.backend == site.backend for resident in residents),
            site.backend,
        )
        if best is None or cost < best[0]:
            later = Later(choice.later_s or math.inf, site)
            best = cost, later if waits else Plan(site, tuple(choice.victims))
    if best is not None:
        return best[1]
    if moving is not None:
        return Later(site=moving)
    if refusals:
        return max(refusals, key=lambda refusal: (refusal.others, refusal.free_bytes))
    return Later()


def room_at_s(
    sites: Sequence[Site],
    residents: Sequence[Resident],
    rooms: Mapping[str, Room],
    now_s: float,
) -> float:
    """From when on others may leave for a model; 0: nobody has to. For what is predicted."""
    choices = [_choose(site, residents, rooms, now_s) for site in sites]
    possible = [choice for choice in choices if choice.no_room is None]
    if any(not choice.victims for choice in possible):
        return 0.0
    return min((max(choice.later_s, now_s) for choice in possible), default=0.0)


def excess(
    residents: Sequence[Resident], rooms: Mapping[str, Room], now_s: float
) -> tuple[Resident, ...]:
    """Who leaves because the weights of a place are above its budget."""
    leaving: dict[tuple[str, str], Resident] = {}
    for place, room in rooms.items():
        if room.budget_bytes is None:
            continue
        there = [r for r in residents if place in r.weights]
        gone = sum(r.weights[place] for r in leaving.values() if place in r.weights)
        lacking = sum(r.weights[place] for r in there) - gone - room.budget_bytes
        for resident in _in_order(there, now_s, protected=False):
            if lacking <= 0:
                break
            key = (resident.name, resident.backend)
            if key not in leaving and resident.weights[place]:
                leaving[key] = resident
                lacking -= resident.weights[place]
    return tuple(leaving.values())


def idle(residents: Iterable[Resident], idle_since_s: float, now_s: float) -> tuple[Resident, ...]:
    """Who leaves because nobody has used it for long."""
    return tuple(
        r
        for r in residents
        if not (r.kept or r.busy) and r.last_used_s <= idle_since_s and r.protected_until_s <= now_s
    )


def locked_free(site: Site, locked: Collection[str]) -> bool:
    """Whether no other load is under way at the site."""
    return not any(place in locked for place in (*site.weights, site.backend))


def _spare(site: Site, residents: Sequence[Resident], rooms: Mapping[str, Room]) -> float:
    """What the site has left, at its fullest place."""
    left = [_left(place, residents, rooms.get(place, Room())) for place in site.weights]
    return min(left, default=math.inf)


def _left(place: str, residents: Sequence[Resident], room: Room) -> float:
    taken = sum(resident.weights.get(place, 0) for resident in residents)
    by_budget = math.inf if room.budget_bytes is None else room.budget_bytes - taken
    return min(by_budget, math.inf if room.free_bytes is None else _free(place, residents, room))


def _free(place: str, residents: Sequence[Resident], room: Room) -> int:
    """What no model has or takes soon."""
    coming = sum(resident.weights.get(place, 0) for resident in residents if resident.coming)
    return (room.free_bytes or 0) - coming


def _choose(
    site: Site, residents: Sequence[Resident], rooms: Mapping[str, Room], now_s: float
) -> _Choice:
    choice = _Choice()
    for place, weight in site.weights.items():
        there = [r for r in residents if place in r.weights and r not in choice.victims]
        room = rooms.get(place, Room())
        need = max(weight, 1)  # of unknown weight: there must be something left
        most = _most(place, there, room)
        least = site.least.get(place, 0)
        if least > most or math.isinf(least) or (need > most and (site.certain or most <= 0)):
            need = need if math.isinf(least) else max(need, int(least))
            known = 0 if math.isinf(most) else int(most)
            choice.no_room = _no_room(place, need, there, room, known)
            return choice
        need = min(need, int(most)) if most < math.inf else need
        freed_already = sum(v.weights.get(place, 0) for v in choice.victims)
        lacking = need - _left(place, residents, room) - freed_already
        _make_room(choice, place, lacking, there, now_s)
    return choice


def _most(place: str, there: Sequence[Resident], room: Room) -> float:
    """What the place could have for a model if all left that may."""
    most = math.inf
    if room.budget_bytes is not None:
        most = room.budget_bytes - sum(r.weights[place] for r in there if r.kept)
    if room.most_bytes is not None:
        most = min(most, room.most_bytes - sum(r.weights[place] for r in there if r.kept))
    if room.free_bytes is not None:
        leaving = [r for r in there if not r.kept]
        # Of one whose weight is not known it is not known what it leaves.
        known = all(r.weights[place] for r in leaving)
        if known:
            # One that is coming may have all of its weight by now: no more is taken off.
            most = min(most, room.free_bytes + sum(r.weights[place] for r in leaving))
    return most


def _no_room(place: str, need: int, there: Sequence[Resident], room: Room, most: int) -> NoRoom:
    kept = sum(r.weights[place] for r in there if r.kept)
    bounds = [b - kept for b in (room.budget_bytes, room.most_bytes) if b is not None]
    return NoRoom(place, need, max(most, 0), others=not bounds or need <= min(bounds))


def _make_room(
    choice: _Choice, place: str, lacking: float, there: Sequence[Resident], now_s: float
) -> None:
    """Adds who leaves this place, or when that can be said."""
    if lacking <= 0:
        return
    found: list[Resident] = []
    # One that is protected goes last, and not yet.
    for resident in _in_order(there, now_s, protected=True):
        if lacking - sum(r.weights[place] for r in found) <= 0:
            break
        found.append(resident)
    freed = sum(r.weights[place] for r in found)
    for resident in reversed(found[:-1]):
        if resident.weights[place] and freed - resident.weights[place] >= lacking:
            found.remove(resident)
            freed -= resident.weights[place]
    waits = [r.protected_until_s for r in found if r.protected_until_s > now_s]
    choice.later_s = max([choice.later_s, *waits])
    choice.victims += found


def _in_order(there: Iterable[Resident], now_s: float, protected: bool) -> list[Resident]:
    """Those that may leave, the first to go first: idle ones, the least recently used first."""
    found = [r for r in there if not r.kept and (protected or r.protected_until_s <= now_s)]
    return sorted(
        found,
        key=lambda r: (r.protected_until_s > now_s, r.busy, r.last_used_s, r.name, r.backend),
    )


def leaving_next(
    site: Site, residents: Sequence[Resident], now_s: float
) -> Resident | Later | None:
    """Who leaves the site though nobody had to by the figures: a load found no memory there.

    None: nobody is left.
    """
    there = [r for r in residents if r.weights.keys() & site.weights.keys()]
    found = _in_order(there, now_s, protected=True)
    if not found:
        return None
    first = found[0]
    return Later(first.protected_until_s, site) if first.protected_until_s > now_s else first
