"""Tenants that compete for the executors get device time by their weights."""

from __future__ import annotations

import struct
from statistics import median

import pytest

from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import Stream, learned, run

pytestmark = pytest.mark.native

# Eight backends do about 6,500 requests a second in 40 ms.
BACKENDS, BUDGET = 8, 40 * MS


def compete(rates: list[float], weights: list[float], sigma: float = 0) -> list[Stream]:
    driver = learned(BACKENDS)
    driver.engine.set_tenants(weights)
    streams = [Stream(rate, {"tenant": tenant + 1}, BUDGET) for tenant, rate in enumerate(rates)]
    run(driver, streams, 2 * SECOND, sigma)
    return streams


def test_a_tenant_below_its_share_is_not_pushed_out() -> None:
    in_time = []
    for per_s in (380, 400, 420):
        flood, small = compete([12_000, per_s], [1, 1, 1])
        in_time.append(small.in_time)
    assert median(in_time) > 0.95
    assert flood.counts["tenant_quota"] > 0
    flood, small = compete([12_000, 400], [1])
    assert small.in_time < 0.7, "as one tenant they share what there is by what they ask for"


def test_weights_divide_what_all_want() -> None:
    even = compete([12_000, 12_000], [1, 1, 1])
    assert 0.85 < even[0].counts["in_time"] / even[1].counts["in_time"] < 1.18
    uneven = compete([12_000, 12_000], [1, 2, 1])
    assert uneven[0].counts["in_time"] / uneven[1].counts["in_time"] > 1.4


def test_a_larger_demand_is_no_larger_share() -> None:
    large, small = compete([24_000, 6_000], [1, 1, 1], sigma=0.03)
    assert large.counts["in_time"] / small.counts["in_time"] < 2
    large, small = compete([24_000, 6_000], [1], sigma=0.03)
    assert large.counts["in_time"] / small.counts["in_time"] > 3


def test_a_tenant_alone_is_never_over_its_share() -> None:
    (alone,) = compete([12_000], [1, 1])
    assert alone.counts["tenant_quota"] == 0


def test_who_waits_for_nothing_is_not_over_its_share_however_short_its_deadline() -> None:
    driver = learned(1, staged_batches_max=0)
    driver.engine.set_tenants([1, 1, 1])
    driver.step()
    driver.submit(1, tenant=1, rows=32, deadline=driver.now + SECOND)
    driver.step()
    for user in range(20):
        driver.submit(2 + user, tenant=1, rows=8, deadline=driver.now + SECOND)
    hasty = {"rows": 30, "deadline": driver.now + BUDGET}
    assert driver.refusal(tenant=2, **hasty) == "predicted_late"
    assert driver.refusal(tenant=1, **hasty) == "tenant_quota"


def test_tenants_cost_no_throughput() -> None:
    one = compete([12_000, 12_000], [1])
    two = compete([12_000, 12_000], [1, 1, 1])
    assert sum(s.counts["in_time"] for s in two) > 0.95 * sum(s.counts["in_time"] for s in one)


def test_without_deadlines_a_tenant_over_its_share_goes_behind() -> None:
    driver = learned(1, queue_requests_max=100_000)
    driver.engine.set_tenants([1, 1, 1])
    driver.step()
    driver.submit(88_888, tenant=2)
    driver.submit_many(range(10_000), tenant=1)
    driver.submit(99_999, tenant=2)
    for _ in range(200):
        for batch in driver.step():
            driver.after(MS).complete(batch)
        if 99_999 in driver.answers():
            break
    assert driver.answers()[99_999] == ("completed", "none")
    assert len(driver.answers()) < 6_000


def test_who_filled_a_queue_is_told_that_it_is_over_its_share() -> None:
    driver = learned(1, queue_requests_max=50)
    driver.engine.set_tenants([1, 1, 1])
    driver.step()
    driver.submit(tenant=2)
    for _ in range(49):
        driver.submit(tenant=1)
    refused = driver.engine.submit(driver.now, tenant=1)
    assert refused.reason == "tenant_quota"
    assert refused.retry_after_ns > 0
    assert driver.refusal(tenant=2) == "queue_full"


def test_alone_a_tenant_is_told_that_the_queue_is_full() -> None:
    driver = learned(1, queue_requests_max=50)
    driver.engine.set_tenants([1, 1, 1])
    driver.step()
    for _ in range(50):
        driver.submit(tenant=1)
    assert driver.refusal(tenant=1) == "queue_full"


def test_a_request_that_was_held_back_until_its_tenant_counted_no_more_has_a_share() -> None:
    """A sequence's second request comes into the queue when the first was answered, late here."""
    driver = Driver(1, direct_max=100, sequence_idle_ns=60 * SECOND)
    driver.engine.set_tenants([1, 1, 1])
    driver.step()
    driver.submit(1, tenant=1, sequence=5, start=True)
    (first,) = driver.step()
    driver.submit(2, tenant=1, sequence=5)
    for user in range(3, 33):
        driver.after(100 * MS)
        driver.submit(user, tenant=2)
        for batch in driver.step():
            driver.complete(batch)
    driver.complete(first)
    for batch in driver.step():
        driver.complete(batch)
    assert driver.answers()[2] == ("completed", "none")
    not_a_number = struct.pack("<Q", 0xFFF8 << 48)
    assert not_a_number not in driver.engine.save()
