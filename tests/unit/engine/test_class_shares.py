"""A fast and a slow model on one executor under overload, simulated: neither is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.simulation.engine import (
    FATES,
    EngineOutcome,
    EngineSettings,
    Fault,
    Level,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from tests.unit.engine.driver import MS, SECOND, Driver
from tests.unit.engine.load import Stream, latency, run

pytestmark = pytest.mark.native

QUICK, SLOW = Latency(0.5, 3.7), Latency(2.5, 12.7)
# Requests/s of both together that one executor serves in time.
GOODPUT = 298.0


def shared(rate_per_s: float, values: tuple[float, float] = (1.0, 1.0)) -> EngineOutcome:
    """Four in five requests are the quick model's; each has the objective of its kind."""
    setups = [
        ModelSetup((Placement(0, 1, 0),), slo_ms=slo_ms, value=value)
        for slo_ms, value in zip((30.0, 80.0), values, strict=True)
    ]
    models = [
        Model(QUICK, 30.0, Arrivals(rate_per_s=0.8 * rate_per_s)),
        Model(SLOW, 80.0, Arrivals(rate_per_s=0.2 * rate_per_s)),
    ]
    scenario = Scenario(models, 1, seed=1, requests=10_000)
    outcome = simulate(scenario, engine(EngineSettings(models=tuple(setups)))).engine
    assert outcome is not None
    return outcome


def attained(outcome: EngineOutcome) -> list[float]:
    return [classes[0].attainment for classes in outcome.classes]


@pytest.mark.parametrize(("times", "least"), [(2.0, 0.74), (3.0, 0.54)])
def test_models_of_one_level_miss_alike(times: float, least: float) -> None:
    quick, slow = attained(shared(times * GOODPUT))
    assert min(quick, slow) > least  # .72 and .46 where the most urgent decides alone
    assert abs(quick - slow) < 0.12


def test_who_is_kept_out_for_other_models_is_told_so() -> None:
    policy = {"rows_max": 32, "load_aware": True, "value": 1.0}
    driver = Driver([(0, 1, True, 0)], **policy)
    driver.engine.configure_model(1, driver.placements, driver.now, **policy)
    for model in (0, 1):
        for rows in range(1, 33):
            assert driver.engine.prime_latency(model, 0, rows, latency(rows), 20)
    driver.step()
    hasty = Stream(600, {"model": 0}, 25 * MS)
    patient = Stream(600, {"model": 1}, 100 * MS)
    run(driver, [hasty, patient], 3 * SECOND, sigma=0.05)
    assert patient.counts["model_share"] > 100
    # Both have the one priority there is.
    assert hasty.counts["priority_shed"] == patient.counts["priority_shed"] == 0


def test_nobody_is_kept_out_without_overload() -> None:
    outcome = shared(0.9 * GOODPUT)
    assert min(attained(outcome)) > 0.99
    assert sum(classes[0].refused for classes in outcome.classes) < 10


def test_models_without_a_value_are_left_as_they_are() -> None:
    quick, slow = attained(shared(2 * GOODPUT, values=(0.0, 0.0)))
    assert slow > quick + 0.15
    assert attained(shared(2 * GOODPUT, values=(1.0, 0.0))) == pytest.approx(
        [quick, slow], abs=0.01
    )


@pytest.mark.parametrize("rate_per_s", [200.0, 400.0])
def test_nobody_is_kept_out_for_an_overload_that_is_over(rate_per_s: float) -> None:
    """The slow model asks for too much for ten seconds, and then for nothing."""
    setups = tuple(
        ModelSetup((Placement(0, 1, 0),), slo_ms=slo_ms, value=1.0) for slo_ms in (30.0, 80.0)
    )
    rates = (400.0,) * 10 + (0.0,) * 20
    models = [
        Model(QUICK, 30.0, Arrivals(rate_per_s=rate_per_s)),
        Model(SLOW, 80.0, Arrivals("series", rates_per_s=rates, step_ms=1000.0)),
    ]
    requests = int(rate_per_s * 30 + 4000)
    settings = EngineSettings(models=setups, keep_fates=True)
    outcome = simulate(Scenario(models, 1, seed=1, requests=requests), engine(settings)).engine
    assert outcome is not None
    fates = zip(outcome.arrivals_ns, outcome.fates, strict=True)
    late = [FATES[fate] for at_ns, fate in fates if 15e9 < at_ns < 30e9]
    assert late.count("in_time") > 0.98 * len(late)


@pytest.mark.parametrize("kind", ["hang", "failing", "refusing"])
@pytest.mark.parametrize("rate_per_s", [100.0, 800.0])
def test_a_model_that_fails_does_not_keep_its_neighbour_out(kind: str, rate_per_s: float) -> None:
    """It shares one of the two executors of the other."""
    setups = (
        ModelSetup((Placement(0, 1, 0), Placement(1, 1, 1)), slo_ms=40.0, value=1.0),
        ModelSetup((Placement(2, 1, 1),), slo_ms=40.0, value=1.0),
    )
    models = [
        Model(QUICK, 40.0, Arrivals(rate_per_s=rate_per_s)),
        Model(QUICK, 40.0, Arrivals(rate_per_s=50.0)),
    ]
    fault = Fault(kind, 3_000.0, 60_000.0, backend=2)
    requests = int((rate_per_s + 50) * 20)
    settings = EngineSettings(models=setups, faults=(fault,))
    outcome = simulate(Scenario(models, 3, seed=1, requests=requests), engine(settings)).engine
    assert outcome is not None
    assert attained(outcome)[0] > 0.92  # .60 to .92 where its misses count


def test_who_floods_a_model_takes_nothing_from_a_small_tenant_of_another() -> None:
    def small(values: float) -> float:
        setups = tuple(
            ModelSetup(
                (Placement(0, 1, 0),),
                slo_ms=slo_ms,
                value=values,
                classes=(RequestClass(tenant=t),),
            )
            for slo_ms, t in ((40.0, 2), (80.0, 1))
        )
        models = [
            Model(QUICK, 40.0, Arrivals(rate_per_s=20.0)),
            Model(SLOW, 80.0, Arrivals(rate_per_s=2_000.0)),
        ]
        settings = EngineSettings(models=setups, tenants=(1.0, 1.0, 1.0))
        outcome = simulate(Scenario(models, 1, seed=1, requests=40_000), engine(settings)).engine
        assert outcome is not None
        return attained(outcome)[0]

    assert small(1.0) > 0.9 * small(0.0)


def test_misses_weigh_by_value() -> None:
    quick, slow = attained(shared(2 * GOODPUT, values=(1.0, 4.0)))
    assert slow > 0.9
    assert quick < slow - 0.1
    quick, slow = attained(shared(2 * GOODPUT, values=(2.0, 1.0)))
    assert quick > slow + 0.05


def unanswered(values: tuple[float, float], times: float) -> list[float]:
    """The parts of both models that were not answered, be it late: what `value` weighs."""
    classes = [kinds[0] for kinds in shared(times * GOODPUT, values).classes]
    return [1 - (kind.in_time + kind.late) / kind.offered for kind in classes]


@pytest.mark.parametrize("value", [1.0, 2.0, 4.0])
def test_what_is_missed_is_as_the_values_are(value: float) -> None:
    quick, slow = unanswered((value, 1.0), 2.0)
    assert quick / slow == pytest.approx(1 / value, abs=0.08)
    quick, slow = unanswered((1.0, value), 2.0)
    assert slow / quick == pytest.approx(1 / value, abs=0.08)


@pytest.mark.parametrize(("times", "enough"), [(2.0, 16.0), (3.0, 4.0)])
def test_a_value_acts_until_every_other_request_of_the_other_model_is_refused(
    times: float, enough: float
) -> None:
    quick, slow = unanswered((enough, 1.0), times)
    assert quick > 1.5 * slow / enough
    assert 0.4 < slow < 0.5  # all but these are in time: nothing else is refused of it
    assert unanswered((1e6, 1.0), times) == pytest.approx([quick, slow], abs=0.02)


def test_a_model_that_nothing_can_help_takes_nothing_from_the_others() -> None:
    def good(rate_of_hopeless: float) -> float:
        """In time of a model beside one whose objective is below what a single row takes."""
        setups = [
            ModelSetup((Placement(0, 1, 0),), slo_ms=slo_ms, value=1.0) for slo_ms in (60.0, 14.0)
        ]
        models = [
            Model(SLOW, 60.0, Arrivals(rate_per_s=400.0)),
            Model(SLOW, 14.0, Arrivals(rate_per_s=rate_of_hopeless)),
        ]
        settings = EngineSettings(models=tuple(setups))
        outcome = simulate(Scenario(models, 1, seed=1, requests=5_000), engine(settings)).engine
        assert outcome is not None
        return attained(outcome)[0]

    assert 0.4 < good(0.1) < 0.9
    assert good(100.0) > 0.95 * good(0.1)


def with_tops(
    part: float, times: float, requests: int = 12_000, seed: int = 1
) -> list[tuple[float, float]]:
    """Of both models, the top and the low class in time where the top is to be up to `part`."""
    setups = tuple(
        ModelSetup(
            (Placement(0, 1, 0),),
            classes=(RequestClass(0.3, priority=1), RequestClass(0.7, priority=2)),
            slo_ms=slo_ms,
            value=1.0,
            priority_levels=2,
            default_priority=2,
            levels=(Level(attainment=part),),
        )
        for slo_ms in (30.0, 80.0)
    )
    models = [
        Model(QUICK, 30.0, Arrivals(rate_per_s=0.8 * times * GOODPUT)),
        Model(SLOW, 80.0, Arrivals(rate_per_s=0.2 * times * GOODPUT)),
    ]
    scenario = Scenario(models, 1, seed=seed, requests=requests)
    outcome = simulate(scenario, engine(EngineSettings(models=setups))).engine
    assert outcome is not None
    return [(top.attainment, low.attainment) for top, low in outcome.classes]


@pytest.mark.parametrize("part", [0.8, 0.9])
def test_a_level_is_in_time_up_to_its_part_and_the_rest_is_for_those_below(part: float) -> None:
    for top, low in with_tops(part, 2.0):
        assert part - 0.03 < top < part + 0.05
        assert low > 0.45


def test_levels_are_served_alike_while_the_part_is_reached_so() -> None:
    for top, low in with_tops(0.6, 2.0):
        assert top > 0.72
        assert low > 0.72


def test_a_level_leads_again_when_the_load_asks_for_it() -> None:
    """At three times the goodput the part is no longer reached by being served alike."""
    for top, low in with_tops(0.7, 3.0):
        assert 0.65 < top < 0.75
        assert 0.2 < low < top


def test_all_is_in_time_without_overload_whatever_the_part() -> None:
    for top, low in with_tops(0.6, 0.85):
        assert min(top, low) > 0.98


def test_a_model_alone_holds_the_part_of_its_levels_too() -> None:
    setup = ModelSetup(
        (Placement(0, 1),),
        classes=(RequestClass(0.5, priority=1), RequestClass(0.5, priority=2)),
        slo_ms=40.0,
        priority_levels=2,
        levels=(Level(attainment=0.8),),
    )
    scenario = Scenario([Model(QUICK, 40.0, Arrivals(rate_per_s=3_000.0))], 1, seed=1)
    outcome = simulate(
        replace(scenario, requests=20_000), engine(EngineSettings(models=(setup,)))
    ).engine
    assert outcome is not None
    ((top, low),) = outcome.classes
    assert 0.77 < top.attainment < 0.84
    assert low.attainment > 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_part_that_is_reached_alike_is_found_to_be_at_higher_load_too(seed: int) -> None:
    """Short dips do not make the level lead: that would cost more than it needs."""
    for top, low in with_tops(0.5, 2.5, requests=20_000, seed=seed):
        assert top > 0.5
        assert low > 0.6  # .26 to .38 while the level leads
