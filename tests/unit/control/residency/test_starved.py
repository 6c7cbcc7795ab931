"""Who leaves for a load that found no memory, and how long others wait behind a want."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.policy import Later, NoRoom, Plan, Resident, Site
from scheduler.control.residency.starved import Starved
from scheduler.control.residency.wants import REST, Want

NOW_S = 1000.0
HERE = Site("one", {"gpu": 5})
FOUND = Plan(HERE)


@pytest.fixture
def learned(tmp_path: Path) -> LearnedLoads:
    return LearnedLoads(tmp_path)


@pytest.fixture
def starved(learned: LearnedLoads) -> Starved:
    residents: Any = SimpleNamespace(total_bytes=lambda place: 64)
    return Starved(learned, residents)


def resident(name: str, **wanted: Any) -> Resident:
    return Resident(name, "one", {"gpu": 3}, **wanted)


def test_the_last_try_was_made_alone_before_a_model_is_refused(starved: Starved) -> None:
    """The one that could not leave yet has gone by itself: it may fit now."""
    assert starved.found_none("a", HERE, "no memory", {})
    beside = [resident("b", protected_until_s=NOW_S + 5)]
    assert starved.decided("a", FOUND, beside, {}, NOW_S) == Later(NOW_S + 5)
    assert starved.decided("a", FOUND, [], {}, NOW_S) == FOUND
    assert starved.found_none("a", HERE, "no memory", {}), "it is the first try alone"
    assert isinstance(starved.decided("a", FOUND, [], {}, NOW_S), NoRoom)


def test_a_try_that_nobody_wants_any_more_is_forgotten(starved: Starved) -> None:
    starved.found_none("a", HERE, "no memory", {})
    starved.forget("a")
    assert starved.decided("a", FOUND, [resident("b")], {}, NOW_S) == FOUND


def test_what_is_said_of_one_backend_is_said_of_no_other(starved: Starved) -> None:
    starved.found_none("a", HERE, "no memory", {})
    found = starved.decided("a", FOUND, [], {}, NOW_S)
    assert isinstance(found, NoRoom)
    assert found.backend == "one"


def test_of_two_devices_neither_is_known_to_be_the_full_one(
    starved: Starved, learned: LearnedLoads
) -> None:
    site = Site("one", {"gpu": 5, "gpu-2": 5})
    starved.found_none("a", site, "no memory", {})
    assert isinstance(starved.decided("a", Plan(site), [], {}, NOW_S), NoRoom)
    assert learned.least("a", "one", "gpu", 64) == learned.least("a", "one", "gpu-2", 64) == 0


def test_without_figures_it_is_tried_again_after_a_minute(
    starved: Starved, learned: LearnedLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [NOW_S]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    starved.found_none("a", HERE, "no memory", {})
    assert isinstance(starved.decided("a", FOUND, [], {}, NOW_S), NoRoom)
    assert learned.least("a", "one", "gpu", 64) == math.inf
    clock[0] += 61
    assert learned.least("a", "one", "gpu", 64) == 0


def test_others_wait_behind_one_that_waits_for_a_load_but_not_for_ever() -> None:
    want, later = Want(NOW_S), Later(math.inf, HERE)
    held = [want.holds(later, 1.0, 60.0, NOW_S + second) for second in range(0, 700, 10)]
    assert held[:6] == [True] * 6
    assert not any(held[6 : 6 + 6 * REST])
    assert held[-1], "it has its turn again"


def test_nobody_waits_behind_one_whose_others_leave_much_later() -> None:
    assert not Want(NOW_S).holds(Later(NOW_S + 5, HERE), 1.0, 60.0, NOW_S)
    assert Want(NOW_S).holds(Later(NOW_S + 0.5, HERE), 1.0, 60.0, NOW_S)
