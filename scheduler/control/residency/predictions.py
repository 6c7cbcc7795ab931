"""When a model could be ready that nobody has loaded: its own load, those before it on the same
devices, and what it takes until others have left.

All of it as of the last change of the loads: a state that changed with the time would be told to
the data plane again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from scheduler.control.residency.policy import Resident, Room, Site, room_at_s

if TYPE_CHECKING:
    from scheduler.control.residency.loader import Loader

# Of more models than these only the loads themselves are predicted.
PREDICTED_MAX = 128


class Predictions:
    """Reads what the loader knows; changes nothing."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def own_ns(self, name: str, backends: Sequence[str]) -> int:
        """How long the load itself takes, where it is the fastest; 0: not known."""
        known = [self._loader.learned.load_ns(name, backend) for backend in backends or [""]]
        return min([ns for ns in known if ns], default=0)

    def load_ns(self, names: Set[str], absent: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """From the last change until each would be loaded, for those whose loads are known.

        `absent` has the backends that may load them, by now or once they have left.
        """
        own = {name: self.own_ns(name, absent.get(name, ())) for name in names}
        known = {name: ns for name, ns in own.items() if ns}
        where = known.keys() & absent.keys()
        if not where or len(where) > PREDICTED_MAX:
            return known
        residents, now_s = self._loader.residents, self._loader.changed_at_ns / 1e9
        rooms = residents.rooms()
        queue = _Queue(self._loader, absent)
        for name in where:
            sites = residents.sites(name, absent[name])
            ready_ns = queue.ready_ns(name, sites)
            # One that leaves is gone by then.
            there = [resident for resident in queue.there(name) if resident.name != name]
            known[name] = self._after_room(ready_ns, own[name], sites, there, rooms, now_s)
        return known

    def _after_room(
        self,
        ready_ns: int,
        own_ns: int,
        sites: Sequence[Site],
        there: Sequence[Resident],
        rooms: Mapping[str, Room],
        now_s: float,
    ) -> int:
        """Others may have to leave; that they may not yet passes while others are loaded."""
        at_s = room_at_s(sites, there, rooms, now_s)
        if not at_s:
            return ready_ns
        may_leave_ns = int((at_s - now_s) * 1e9)
        return max(ready_ns, may_leave_ns + own_ns) + self._loader.room_ns


class _Queue:
    """When each place is free: a place loads one model at a time, who came first goes first."""

    def __init__(self, loader: Loader, absent: Mapping[str, Sequence[str]]) -> None:
        self._loader = loader
        self._free_ns: dict[str, int] = {}
        self._ready_ns: dict[str, int] = {}  # of those that wait, by name: they wait once
        # Who is there by then: also what is loaded before, which stays for a while. Those that it
        # makes leave count, too, for their room is not free any more.
        self._there = {(r.name, r.backend): r for r in loader.residents.all()}
        self._there_before: dict[str, list[Resident]] = {}  # of those that wait
        for name, loading in loader.loading.items():
            left_ns = max(loading.ready_at_ns - loader.changed_at_ns, 0)
            self._take(loading.places, left_ns)
            for site in loader.residents.sites(name, [loading.backend]):
                self._arrives(name, site, left_ns)
        for name, target in loader.wants:
            if name not in loader.loading:
                self._queue(name, [b for b in absent.get(name, ()) if target in ("", b)])

    def ready_ns(self, name: str, sites: Iterable[Site]) -> int:
        """Of one that is wanted now, or has its place in the queue already."""
        if name in self._ready_ns:
            return self._ready_ns[name]
        return min((ns for ns, _ in self._choices(name, sites)), default=0)

    def there(self, name: str) -> Sequence[Resident]:
        """Who is there when it is the turn of this one."""
        return self._there_before.get(name, [*self._there.values()])

    def _queue(self, name: str, backends: Sequence[str]) -> None:
        choices = self._choices(name, self._loader.residents.sites(name, backends))
        if choices:
            ready_ns, site = min(choices, key=lambda choice: choice[0])
            self._take(site.weights, ready_ns)
            self._ready_ns[name] = min(self._ready_ns.get(name, ready_ns), ready_ns)
            self._there_before.setdefault(name, [*self._there.values()])
            self._arrives(name, site, ready_ns)

    def _arrives(self, name: str, site: Site, ready_ns: int) -> None:
        """It is loaded by then, and protected from then on."""
        if not site.certain:
            return  # nobody is refused for a weight that is only supposed
        loader = self._loader
        key = name, site.backend
        at_s = (loader.changed_at_ns + ready_ns) / 1e9
        until_s = at_s + loader.stays_s(loader.learned.load_ns(*key) / 1e9)
        kept = loader.residents.wanted(name).kind != "on_demand"
        coming = Resident(name, site.backend, site.weights, at_s, kept=kept, coming=True)
        self._there[key] = replace(self._there.get(key, coming), protected_until_s=until_s)

    def _choices(self, name: str, sites: Iterable[Site]) -> list[tuple[int, Site]]:
        load_ns, free_ns = self._loader.learned.load_ns, self._free_ns
        return [
            (
                load_ns(name, site.backend)
                # Of a load whose places are not known the backend is one.
                + max(free_ns.get(place, 0) for place in (*site.weights, site.backend)),
                site,
            )
            for site in sites
        ]

    def _take(self, places: Iterable[str], until_ns: int) -> None:
        for place in places:
            self._free_ns[place] = max(self._free_ns.get(place, 0), until_ns)
