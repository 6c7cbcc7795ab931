"""When a model could be ready: its own load, those before it where it goes, and their room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.loader import Loading
from scheduler.control.residency.policy import Resident, Room, Site
from scheduler.control.residency.predictions import PREDICTED_MAX, Predictions
from scheduler.control.residency.residents import Wanted

SECOND = 1_000_000_000
NOW_NS = 1_000 * SECOND
STAYS_S = 3600  # a model, once it is loaded


class Residents:
    """Each model goes to the place that its backend is named after; `rooms` are to be set."""

    def __init__(self) -> None:
        self.there: list[Resident] = []
        self.by_place: dict[str, Room] = {}
        self.pinned: set[str] = set()
        self.uncertain: set[str] = set()

    def wanted(self, name: str) -> Wanted:
        return Wanted("pinned" if name in self.pinned else "on_demand", 0)

    def all(self) -> list[Resident]:
        return self.there

    def rooms(self) -> dict[str, Room]:
        return self.by_place

    def sites(self, name: str, backends: list[str]) -> list[Site]:
        certain = name not in self.uncertain
        return [Site(backend, {f"gpu of {backend}": 10}, certain) for backend in backends]


class World:
    def __init__(self, folder: Path, **load_s: float) -> None:
        """`load_s` by model, on every backend."""
        self.residents = Residents()
        self.loader: Any = SimpleNamespace(
            learned=LearnedLoads(folder),
            residents=self.residents,
            wants={},
            loading={},
            changed_at_ns=NOW_NS,
            room_ns=0,
            stays_s=lambda load_s: max(STAYS_S, load_s),
        )
        for name, seconds in load_s.items():
            self.loader.learned.took(name, "x", int(seconds * SECOND))

    def wants(self, *names: str, target: str = "") -> None:
        self.loader.wants.update(((name, target), None) for name in names)

    def loads(self, name: str, backend: str, left_s: float) -> None:
        ready_ns = NOW_NS + int(left_s * SECOND)
        self.loader.loading[name] = Loading(backend, ready_ns, frozenset({f"gpu of {backend}"}))

    def ready_s(self, **absent: str) -> dict[str, float]:
        """By model; its backends are letters."""
        by_name = {name: [*letters] for name, letters in absent.items()}
        found = Predictions(self.loader).load_ns(by_name.keys(), by_name)
        return {name: ns / SECOND for name, ns in found.items()}


def test_the_own_load_counts_once(tmp_path: Path) -> None:
    world = World(tmp_path, big=120)
    assert world.ready_s(big="a") == {"big": 120}
    world.wants("big")
    assert world.ready_s(big="a") == {"big": 120}, "it waits already"


def test_one_that_was_never_loaded_is_not_predicted(tmp_path: Path) -> None:
    world = World(tmp_path, known=3)
    world.wants("known")
    assert world.ready_s(known="a", new="a") == {"known": 3}


def test_who_came_first_goes_first_on_the_same_device(tmp_path: Path) -> None:
    world = World(tmp_path, first=10, second=20, third=5)
    world.wants("first", "second")
    found = world.ready_s(first="a", second="a", third="a")
    assert found == {"first": 10, "second": 30, "third": 35}


def test_loads_on_other_devices_do_not_count(tmp_path: Path) -> None:
    world = World(tmp_path, big=120, huge=600, small=1)
    world.wants("big")
    world.loads("huge", "c", left_s=500)
    assert world.ready_s(big="a", small="b") == {"big": 120, "small": 1}


def test_what_is_left_of_a_load_under_way_on_the_device_counts(tmp_path: Path) -> None:
    world = World(tmp_path, big=120, small=1)
    world.loads("big", "a", left_s=40)
    assert world.ready_s(small="a") == {"small": 41}
    assert world.ready_s(small="ab") == {"small": 1}, "it can go elsewhere"
    world.loader.changed_at_ns += 100 * SECOND
    assert world.ready_s(small="a") == {"small": 1}, "it takes longer than it was expected to"


def test_wants_spread_over_what_can_load_them(tmp_path: Path) -> None:
    world = World(tmp_path, one=10, two=10, three=10)
    world.wants("one", "two")
    found = world.ready_s(one="ab", two="ab", three="ab")
    assert found == {"one": 10, "two": 10, "three": 20}


def test_one_that_is_wanted_at_one_backend_counts_there_only(tmp_path: Path) -> None:
    world = World(tmp_path, pinned=10, small=1)
    world.wants("pinned", target="b")
    assert world.ready_s(pinned="ab", small="a")["small"] == 1
    assert world.ready_s(pinned="ab", small="b")["small"] == 11


def test_others_have_to_leave_first(tmp_path: Path) -> None:
    world = World(tmp_path, one=10, two=10)
    world.loader.room_ns = 2 * SECOND
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    there = Resident("there", "a", {"gpu of a": 10})
    world.residents.there = [there]
    assert world.ready_s(one="a", two="b") == {"one": 12, "two": 10}


def test_a_protection_passes_while_others_are_loaded(tmp_path: Path) -> None:
    world = World(tmp_path, one=10, before=30)
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    until_s = NOW_NS / SECOND + 25
    world.residents.there = [Resident("there", "a", {"gpu of a": 10}, protected_until_s=until_s)]
    assert world.ready_s(one="a") == {"one": 35}
    world.residents.by_place["gpu of a"] = Room(budget_bytes=20)
    world.loads("before", "a", left_s=30)
    assert world.ready_s(one="a") == {"one": 40}


def test_one_that_is_being_loaded_stays_for_a_while(tmp_path: Path) -> None:
    world = World(tmp_path, one=10)
    world.residents.by_place["gpu of a"] = Room(budget_bytes=20)
    leaving = Resident("leaving", "a", {"gpu of a": 10}, last_used_s=5)
    there = Resident("there", "a", {"gpu of a": 10}, last_used_s=6)
    world.loads("before", "a", left_s=30)
    world.residents.there = [leaving, there]
    assert world.ready_s(one="a") == {"one": 40}, "the other one makes room"
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    world.residents.there = [leaving]
    assert world.ready_s(one="a") == {"one": 30 + STAYS_S + 10}
    world.residents.there = []
    assert world.ready_s(one="a") == {"one": 30 + STAYS_S + 10}
    # The catalog has it already, its load has not ended yet.
    world.residents.there = [Resident("before", "a", {"gpu of a": 10}, last_used_s=7)]
    assert world.ready_s(one="a") == {"one": 30 + STAYS_S + 10}
    world.residents.by_place["gpu of a"] = Room(budget_bytes=20)
    assert world.ready_s(one="a") == {"one": 40}, "there is room for both"


def test_one_that_leaves_is_not_its_own_victim(tmp_path: Path) -> None:
    world = World(tmp_path, one=10)
    world.loader.room_ns = 2 * SECOND
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    world.residents.there = [Resident("one", "a", {"gpu of a": 10})]
    assert world.ready_s(one="a") == {"one": 10}, "it leaves for nobody"
    world.loads("before", "a", left_s=30)
    assert world.ready_s(one="a") == {"one": 30 + STAYS_S + 10 + 2}


def test_one_that_goes_first_stays_for_a_while(tmp_path: Path) -> None:
    world = World(tmp_path, first=10, second=20)
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    world.wants("first", "second")
    found = world.ready_s(first="a", second="a")
    assert found == {"first": 10, "second": 10 + STAYS_S + 20}


def test_one_that_is_pinned_never_makes_room(tmp_path: Path) -> None:
    world = World(tmp_path, one=10)
    world.residents.pinned = {"before"}
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    world.loads("before", "a", left_s=30)
    assert world.ready_s(one="a") == {"one": 40}, "whether it can be loaded is told then"


def test_nobody_is_refused_for_one_whose_weight_is_not_sure(tmp_path: Path) -> None:
    world = World(tmp_path, one=10)
    world.residents.uncertain = {"before"}
    world.residents.by_place["gpu of a"] = Room(budget_bytes=10)
    world.loads("before", "a", left_s=30)
    assert world.ready_s(one="a") == {"one": 40}


def test_of_very_many_only_the_loads_themselves_are_predicted(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(PREDICTED_MAX + 1)]
    world = World(tmp_path, **dict.fromkeys(names, 2))
    world.wants(names[0])
    assert set(world.ready_s(**dict.fromkeys(names, "a")).values()) == {2}
    assert world.ready_s(**dict.fromkeys(names[:-1], "a"))[names[1]] == 4
