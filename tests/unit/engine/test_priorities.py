"""Overload with several priorities: the high ones stay in time."""

from __future__ import annotations

import pytest

from tests.unit.engine.driver import MS, SECOND
from tests.unit.engine.load import Stream, learned, run

pytestmark = pytest.mark.native


def overload(high: float, low: float, backends: int = 4) -> list[Stream]:
    driver = learned(backends, priority_levels=2)
    streams = [Stream(high, {"priority": 1}, 40 * MS), Stream(low, {"priority": 2}, 40 * MS)]
    run(driver, streams, 4 * SECOND)  # finds out what there is room for
    for stream in streams:
        stream.counts.clear()
    run(driver, streams, 4 * SECOND)
    return streams


def test_the_top_class_is_in_time_at_twice_the_capacity() -> None:
    # Four backends do about 2,500 a second.
    high, low = overload(1500, 3500)
    assert high.in_time >= 0.99
    assert low.in_time > 0.1, "what is left goes to the others"
    # What comes above it later cannot be foreseen: some of it is let in and given up.
    assert low.counts["expired_in_queue"] < 0.15 * sum(low.counts.values())


def test_one_class_alone_is_not_shed() -> None:
    high, _ = overload(6400, 1e-9)
    assert high.counts["priority_shed"] == 0
    assert high.in_time > 0.4


def test_without_overload_no_priority_is_shed() -> None:
    high, low = overload(300, 700)
    assert high.in_time == low.in_time == 1.0
