"""Who makes room for whom: the policy of residency, by figures."""

from __future__ import annotations

import math
import random

from scheduler.control.residency.policy import (
    Later,
    NoRoom,
    Plan,
    Resident,
    Room,
    Site,
    excess,
    idle,
    plan,
    room_at_s,
)

GIB = 2**30
NOW = 1000.0


def resident(name: str, weight: int, used: float, **more: object) -> Resident:
    return Resident(name, "one", {"gpu": weight}, used, **more)  # type: ignore[arg-type]


def site(weight: int, backend: str = "one", place: str = "gpu", certain: bool = True) -> Site:
    return Site(backend, {place: weight}, certain)


def victims(found: object) -> list[str]:
    assert isinstance(found, Plan), found
    return [victim.name for victim in found.victims]


def budget(size: int) -> dict[str, Room]:
    return {"gpu": Room(budget_bytes=size)}


def test_what_fits_is_loaded_and_nobody_leaves() -> None:
    there = [resident("a", GIB, 1), resident("b", GIB, 2)]
    assert victims(plan([site(2 * GIB)], there, budget(4 * GIB), (), NOW)) == []


def test_the_least_recently_used_leaves_and_no_more_than_needed() -> None:
    there = [resident("a", GIB, 3), resident("b", GIB, 1), resident("c", GIB, 2)]
    assert victims(plan([site(GIB)], there, budget(3 * GIB), (), NOW)) == ["b"]
    assert victims(plan([site(2 * GIB)], there, budget(3 * GIB), (), NOW)) == ["b", "c"]


def test_a_small_one_stays_where_a_larger_one_has_to_leave_anyway() -> None:
    there = [resident("small", GIB, 1), resident("large", 4 * GIB, 2)]
    assert victims(plan([site(4 * GIB)], there, budget(5 * GIB), (), NOW)) == ["large"]


def test_pinned_models_stay() -> None:
    there = [resident("a", GIB, 1, kept=True), resident("b", GIB, 2)]
    assert victims(plan([site(GIB)], there, budget(2 * GIB), (), NOW)) == ["b"]
    found = plan([site(2 * GIB)], there, budget(2 * GIB), (), NOW)
    assert found == NoRoom("gpu", 2 * GIB, GIB, others=False)


def test_a_busy_one_leaves_only_where_no_idle_one_makes_room() -> None:
    there = [resident("a", GIB, 1, busy=True), resident("b", GIB, 2)]
    assert victims(plan([site(GIB)], there, budget(2 * GIB), (), NOW)) == ["b"]
    there = [resident("a", GIB, 1, busy=True)]
    assert victims(plan([site(GIB)], there, budget(GIB), (), NOW)) == ["a"]


def test_one_that_was_only_just_loaded_is_waited_for() -> None:
    there = [resident("a", GIB, 1, protected_until_s=NOW + 5), resident("b", GIB, 2)]
    assert victims(plan([site(GIB)], there, budget(2 * GIB), (), NOW)) == ["b"]
    assert plan([site(2 * GIB)], there, budget(2 * GIB), (), NOW) == Later(NOW + 5)
    assert victims(plan([site(2 * GIB)], there, budget(2 * GIB), (), NOW + 5)) == ["a", "b"]


def test_measured_memory_counts_as_the_budget_does() -> None:
    rooms = {"gpu": Room(free_bytes=GIB, most_bytes=8 * GIB)}
    there = [resident("a", 2 * GIB, 1), resident("b", GIB, 2)]
    assert victims(plan([site(GIB)], there, rooms, (), NOW)) == []
    assert victims(plan([site(3 * GIB)], there, rooms, (), NOW)) == ["a"]
    found = plan([site(5 * GIB)], there, rooms, (), NOW)
    assert found == NoRoom("gpu", 5 * GIB, 4 * GIB, others=True), "others have the rest"
    found = plan([site(9 * GIB)], there, rooms, (), NOW)
    assert found == NoRoom("gpu", 9 * GIB, 4 * GIB, others=False)


def test_a_weight_seen_once_refuses_nobody() -> None:
    there = [resident("a", GIB, 1)]
    found = plan([site(5 * GIB, certain=False)], there, budget(4 * GIB), (), NOW)
    assert victims(found) == ["a"]


def test_a_model_of_unknown_weight_needs_something_left() -> None:
    there = [resident("a", GIB, 1)]
    assert victims(plan([site(0)], there, budget(2 * GIB), (), NOW)) == []
    assert victims(plan([site(0)], there, budget(GIB), (), NOW)) == ["a"]


def test_a_site_where_nobody_has_to_leave_is_chosen() -> None:
    rooms = {"gpu": Room(budget_bytes=GIB), "other": Room(budget_bytes=GIB)}
    sites = [site(GIB), site(GIB, "two", "other")]
    there = [resident("a", GIB, 1)]
    found = plan(sites, there, rooms, (), NOW)
    assert isinstance(found, Plan)
    assert (found.site.backend, found.victims) == ("two", ())


def test_the_emptiest_site_is_chosen_also_where_nothing_is_known_of_it() -> None:
    sites = [site(0), site(0, "two", "other")]
    found = plan(sites, [resident("a", 0, 1)], {}, (), NOW)
    assert isinstance(found, Plan)
    assert found.site.backend == "two"
    rooms = {"gpu": Room(free_bytes=3 * GIB), "other": Room(free_bytes=2 * GIB)}
    found = plan(sites, [resident("a", 0, 1)], rooms, (), NOW)
    assert isinstance(found, Plan)
    assert found.site.backend == "one"


def test_loads_of_one_device_follow_each_other() -> None:
    rooms = budget(4 * GIB)
    assert plan([site(GIB)], [], rooms, {"gpu"}, NOW) == Later(math.inf)
    assert plan([site(GIB)], [], rooms, {"one"}, NOW) == Later(math.inf)
    found = plan([site(GIB), site(GIB, "two", "other")], [], rooms, {"gpu"}, NOW)
    assert isinstance(found, Plan)
    assert found.site.backend == "two"


def test_a_model_on_two_devices_needs_room_on_both() -> None:
    rooms = {"gpu": Room(budget_bytes=2 * GIB), "other": Room(budget_bytes=2 * GIB)}
    there = [
        Resident("a", "one", {"gpu": GIB}, 1),
        Resident("b", "one", {"other": 2 * GIB}, 2),
        Resident("both", "one", {"gpu": GIB, "other": 0}, 3),
    ]
    wanted = Site("one", {"gpu": GIB, "other": GIB})
    assert victims(plan([wanted], there, rooms, (), NOW)) == ["a", "b"]


def test_when_there_is_room_can_be_told_before_it_is_needed() -> None:
    sites = [site(GIB)]
    busy = [resident("a", GIB, 1, protected_until_s=NOW + 5), resident("b", GIB, 2)]
    assert room_at_s(sites, busy, budget(3 * GIB), NOW) == 0, "nobody has to leave"
    assert room_at_s(sites, busy, budget(2 * GIB), NOW) == NOW, "one can at once"
    assert room_at_s(sites, busy[:1], budget(GIB), NOW) == NOW + 5
    assert room_at_s([site(4 * GIB)], busy, budget(GIB), NOW) == 0, "it is refused anyway"
    both = [site(GIB), site(GIB, "two", "other")]
    assert room_at_s(both, busy[:1], budget(GIB), NOW) == 0


def test_what_is_above_the_budget_leaves() -> None:
    there = [resident("a", GIB, 1, kept=True), resident("b", GIB, 2), resident("c", GIB, 3)]
    assert excess(there, budget(3 * GIB), NOW) == ()
    assert [r.name for r in excess(there, budget(2 * GIB), NOW)] == ["b"]
    assert [r.name for r in excess(there, budget(0), NOW)] == ["b", "c"]
    assert excess(there, {"gpu": Room(free_bytes=-GIB)}, NOW) == (), "only budgets do that"


def test_what_nobody_uses_leaves_after_a_while() -> None:
    there = [
        resident("a", GIB, 1),
        resident("b", GIB, 90),
        resident("c", GIB, 1, kept=True),
        resident("d", GIB, 1, busy=True),
        resident("e", GIB, 1, protected_until_s=NOW + 1),
    ]
    assert [r.name for r in idle(there, 50, NOW)] == ["a"]


def test_random_plans_keep_the_budget_and_touch_nobody_that_must_stay() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    outcomes = set()
    for _ in range(3000):
        there = [
            resident(
                f"m{number}",
                draw.randint(0, 4),
                draw.randint(0, 9),
                busy=draw.random() < 0.3,
                kept=draw.random() < 0.2,
                protected_until_s=draw.choice([0, NOW + 1]),
            )
            for number in range(draw.randint(0, 6))
        ]
        limit, weight = draw.randint(1, 12), draw.randint(1, 8)
        found = plan([site(weight)], there, budget(limit), (), NOW)
        outcomes.add(type(found))
        kept = sum(r.weights["gpu"] for r in there if r.kept)
        if isinstance(found, NoRoom):
            assert kept + weight > limit
            continue
        assert kept + weight <= limit
        if isinstance(found, Later):
            free = [r for r in there if not r.kept and r.protected_until_s <= NOW]
            left = sum(r.weights["gpu"] for r in there if r not in free)
            assert left + weight > limit, "those that need no protection were enough"
            continue
        assert isinstance(found, Plan)
        assert not any(r.kept or r.protected_until_s > NOW for r in found.victims)
        left_over = sum(r.weights["gpu"] for r in there if r not in found.victims)
        assert left_over + weight <= limit
        for victim in found.victims:
            assert left_over + weight + victim.weights["gpu"] > limit or not victim.weights["gpu"]
    assert outcomes == {Plan, Later, NoRoom}


def test_one_that_was_seen_to_need_more_than_there_can_be_makes_nobody_leave() -> None:
    rooms = {"gpu": Room(free_bytes=GIB, most_bytes=8 * GIB)}
    there = [resident("a", 2 * GIB, 1)]
    wanted = Site("one", {"gpu": 0}, False, {"gpu": 3 * GIB})
    assert victims(plan([wanted], there, rooms, (), NOW)) == [], "it may be enough"
    wanted = Site("one", {"gpu": 0}, False, {"gpu": 3 * GIB + 1})
    found = plan([wanted], there, rooms, (), NOW)
    assert found == NoRoom("gpu", 3 * GIB + 1, 3 * GIB, others=True)
    wanted = Site("one", {"gpu": 0}, False, {"gpu": math.inf})
    assert plan([wanted], there, {}, (), NOW) == NoRoom("gpu", 1, 0, others=True)


def test_what_a_model_that_is_coming_has_taken_already_refuses_nobody() -> None:
    """Of the free memory its whole weight is kept for it; how much of that is gone nobody knows."""
    coming = resident("x", 40 * GIB, 0, kept=True, coming=True)
    for taken in (0, 20, 38, 40):
        rooms = {"gpu": Room(free_bytes=(80 - taken) * GIB, most_bytes=80 * GIB)}
        assert isinstance(plan([site(30 * GIB)], [coming], rooms, {"gpu"}, NOW), Later)
        assert victims(plan([site(30 * GIB)], [coming], rooms, (), NOW)) == []
        found = plan([site(41 * GIB)], [coming], rooms, (), NOW)
        assert isinstance(found, NoRoom)
        assert found.free_bytes == 40 * GIB


def test_nobody_is_refused_for_what_a_load_under_way_takes() -> None:
    """One that is loaded by us is no resident yet."""
    rooms = {"gpu": Room(free_bytes=GIB // 2, most_bytes=8 * GIB)}
    assert plan([site(GIB)], [], rooms, {"gpu"}, NOW) == Later()
    assert isinstance(plan([site(GIB)], [], rooms, (), NOW), NoRoom)
    assert isinstance(plan([site(9 * GIB)], [], rooms, {"gpu"}, NOW), NoRoom), "it never fits"
