"""What waits for more rows beside a batch that takes the executor: it goes first or is late."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement, RequestClass
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate
from tests.unit.engine.driver import MS
from tests.unit.engine.loaded import OBJECTIVE, QUICK, RATE, SLOW, Loaded, latency, sent, two_models

pytestmark = pytest.mark.native

CHECKED = engine(EngineSettings(check_truths=True))


def test_a_batch_that_would_be_late_behind_another_goes_first_though_it_waits_for_rows() -> None:
    loaded = two_models()
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert sent(loaded.run()) == [(QUICK, 3)]
    loaded.now += latency(QUICK, 3)
    assert sent(loaded.run()) == [(SLOW, 12)]


def test_what_is_in_time_behind_another_batch_goes_on_waiting() -> None:
    loaded = two_models()
    loaded.submit(3, latency(SLOW, 12) * 2, model=QUICK)
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert sent(loaded.run()) == [(SLOW, 12)]


def test_a_lower_level_goes_on_waiting() -> None:
    loaded = two_models(priority_levels=2)
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK, priority=2)
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW, priority=1)
    assert sent(loaded.run()) == [(SLOW, 12)]


def test_it_waits_before_a_lower_level_while_its_own_has_what_it_asks_for() -> None:
    loaded = Loaded((QUICK, SLOW), 1, shared=True, priority_levels=2)
    levels = {QUICK: 1, SLOW: 2}
    requests = [
        {"model": m, "budget": OBJECTIVE[m], "priority": level} for m, level in levels.items()
    ]
    loaded.warm([(RATE[request["model"]] / 2, request) for request in requests])
    loaded.submit(1, **requests[QUICK])
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, **requests[SLOW])
    assert [batch.model for batch in loaded.run()] == [SLOW]


def test_however_many_wait_that_are_in_time() -> None:
    others = 9
    loaded = Loaded((QUICK, SLOW, *[QUICK] * others), 1, shared=True)
    loose = 10 * OBJECTIVE[QUICK]
    rates = {QUICK: RATE[QUICK] / 2, SLOW: RATE[SLOW] / 2}
    streams = [(rates[m], {"model": m, "budget": OBJECTIVE[m]}) for m in (QUICK, SLOW)]
    models = range(2, 2 + others)
    loaded.warm([*streams, *[(200, {"model": m, "budget": loose}) for m in models]])
    for model in models:
        loaded.submit(1, loose, model=model)
    loaded.now += MS // 10
    loaded.submit(1, OBJECTIVE[QUICK], model=QUICK)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert sent(loaded.run()) == [(QUICK, 1)]


@pytest.mark.parametrize("seed", range(4))
def test_of_many_signatures_the_most_urgent_one_goes_first(seed: int) -> None:
    random = Random(seed)
    loaded = Loaded((SLOW,), 1, shared=False)
    count = 14
    loaded.warm([(60, {"signature": s, "budget": 200 * MS}) for s in range(count)])
    budgets = [random.randint(40, 60) for _ in range(count)]
    for signature, budget in enumerate(budgets):
        loaded.submit(1, budget * MS, signature=signature)
    first = loaded.run()
    loaded.submit(32, 400 * MS, signature=count)
    batches = first + loaded.run()
    assert batches[0].deadline_ns == loaded.now + min(budgets) * MS


def test_what_is_due_later_goes_on_waiting() -> None:
    loaded = two_models()
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    loaded.submit(12, latency(SLOW, 12) + 15 * MS, model=SLOW)
    assert sent(loaded.run()) == [(SLOW, 12)]


@pytest.mark.parametrize(("rows", "first"), [(8, (SLOW, 12)), (32, (QUICK, 3))])
def test_what_waits_is_late_only_if_no_other_executor_is_free_in_time(
    rows: int, first: tuple[int, int]
) -> None:
    """Another executor runs a batch of so many rows of the slow model."""
    loaded = two_models(executors=2)
    loaded.submit(rows, 4 * OBJECTIVE[SLOW], model=SLOW, pinned_backend=0)
    assert sent(loaded.run()) == [(SLOW, rows)]
    # 32.5 and 92.5 ms; a quick batch that waits must start within 23.
    loaded.now += 12 * MS
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert sent(loaded.run()) == [first]


@pytest.mark.parametrize(
    ("quick_on", "first"),
    [
        pytest.param((0, 1), (QUICK, 3), id="the same executors"),
        pytest.param((1,), (SLOW, 12), id="one of them only"),
    ],
)
def test_what_waits_goes_first_among_models_of_the_same_executors_only(
    quick_on: tuple[int, ...], first: tuple[int, int]
) -> None:
    """Models whose executors overlap in part do not look at what the others wait for.

    The rule is inside one domain: the models of the very same executors.
    """
    loaded = Loaded((QUICK, SLOW), 2, shared=True, held_by=(quick_on, (0, 1)))
    loaded.warm([(2 * RATE[m], {"model": m, "budget": OBJECTIVE[m]}) for m in (QUICK, SLOW)])
    loaded.submit(32, 4 * OBJECTIVE[SLOW], model=SLOW, pinned_backend=0)
    assert sent(loaded.run()) == [(SLOW, 32)]
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert sent(loaded.run()) == [first]


def test_signatures_of_a_model_with_an_executor_of_its_own_go_by_the_same_rule() -> None:
    loaded = Loaded((SLOW,), 1, shared=False)
    budgets = [3 * OBJECTIVE[QUICK], 400 * MS]
    loaded.warm([(60, {"signature": s, "budget": b}) for s, b in enumerate(budgets)])
    loaded.submit(1, 60 * MS, signature=0)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(32, 400 * MS, signature=1)
    (batch,) = loaded.run()
    assert batch.rows == 1
    loaded.now += latency(SLOW, 1)
    assert sent(loaded.run()) == [(0, 32)]


def test_what_failed_goes_before_what_waits() -> None:
    loaded = two_models()
    loaded.submit(12, 4 * OBJECTIVE[SLOW], model=SLOW)
    (failed,) = loaded.run()
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    assert loaded.run() == []
    loaded.engine.dispatch_failed(failed.batch, "reset", 14, loaded.now)
    assert sent(loaded.step()) == [(SLOW, 12)]


def test_what_nothing_can_take_now_ends_no_wait() -> None:
    """After a failure the slow model is sent nothing for a while."""
    loaded = two_models()
    loaded.submit(12, 4 * OBJECTIVE[SLOW], model=SLOW)
    (failed,) = loaded.step()
    loaded.engine.dispatch_failed(failed.batch, "connection", 14, loaded.now)
    assert loaded.step() == []
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    assert loaded.step() == []


def test_what_has_no_objective_goes_behind_what_waits() -> None:
    loaded = two_models()
    loaded.submit(3, OBJECTIVE[QUICK], model=QUICK)
    assert loaded.run() == []
    loaded.submit(12, model=SLOW)
    assert sent(loaded.run()) == [(QUICK, 3)]


@pytest.mark.parametrize("budgets", [(25, 21), (21, 25)])
def test_of_signatures_that_wait_the_most_urgent_one_goes_first(budgets: tuple[int, int]) -> None:
    loaded = Loaded((QUICK, SLOW), 1, shared=True)
    quick = {"model": QUICK, "budget": OBJECTIVE[QUICK]}
    streams = [(RATE[QUICK] / 2, quick | {"signature": signature}) for signature in range(2)]
    loaded.warm([*streams, (RATE[SLOW], {"model": SLOW, "budget": OBJECTIVE[SLOW]})])
    for signature, budget in enumerate(budgets):
        loaded.submit(1, budget * MS, model=QUICK, signature=signature)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, OBJECTIVE[SLOW], model=SLOW)
    (batch,) = loaded.run()
    assert batch.deadline_ns == loaded.now + min(budgets) * MS


@pytest.mark.parametrize("budgets", [(20, 25), (25, 20)])
def test_of_models_that_wait_the_most_urgent_one_goes_first(budgets: tuple[int, int]) -> None:
    loaded = Loaded((QUICK, QUICK, SLOW), 1, shared=True)
    rates = (RATE[QUICK] / 2, RATE[QUICK] / 2, RATE[SLOW])
    kinds = enumerate(zip(rates, loaded.kinds, strict=True))
    loaded.warm([(rate, {"model": m, "budget": OBJECTIVE[kind]}) for m, (rate, kind) in kinds])
    for model, budget in enumerate(budgets):
        loaded.submit(1, budget * MS, model=model)
    assert loaded.run() == [], "more rows are awaited"
    loaded.submit(12, OBJECTIVE[SLOW], model=2)
    assert sent(loaded.run()) == [(budgets.index(20), 1)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_quick_model_is_in_time_beside_a_slow_one_at_a_load_that_one_executor_bears(
    seed: int,
) -> None:
    """.987 to .989 where what waits for rows lets the slow batches go first."""
    kinds = ((Latency(0.5, 3.7), 30.0, 0.8), (Latency(2.5, 12.7), 80.0, 0.2))
    models = [Model(of, slo, Arrivals(rate_per_s=305 * part)) for of, slo, part in kinds]
    scenario = Scenario(models, 1, seed=seed, requests=20_000)
    outcome = simulate(scenario, CHECKED if seed == 1 else engine())
    assert outcome.attainment > 0.992


@pytest.mark.parametrize(
    ("requests_per_s", "high_least", "low_least"),
    [
        pytest.param(350, 0.99, 0.91, id="less than there is room for"),
        pytest.param(600, 0.97, 0.4, id="twice what there is room for"),
    ],
)
def test_a_level_goes_before_a_lower_one_as_far_as_it_is_asked_for(
    requests_per_s: float, high_least: float, low_least: float
) -> None:
    """Always: .88 of the low ones at the lighter load; never: .91 of the high ones at the other."""
    light = requests_per_s < 400
    classes = (
        ((RequestClass(1, 1),), (RequestClass(1, 2),))
        if light
        else ((RequestClass(0.3, 1), RequestClass(0.7, 2)),) * 2
    )
    parts = (0.9, 0.1) if light else (0.8, 0.2)
    latencies = (Latency(0.5, 3.7), Latency(2.5, 12.7))
    objectives = (30.0, 80.0)
    setups = tuple(
        ModelSetup((Placement(0, 1, 0),), kinds, slo_ms=slo, priority_levels=2)
        for kinds, slo in zip(classes, objectives, strict=True)
    )
    models = [
        Model(latency, slo, Arrivals(rate_per_s=requests_per_s * part))
        for latency, slo, part in zip(latencies, objectives, parts, strict=True)
    ]
    high, low = [], []
    for seed in (1, 2, 3):
        scenario = Scenario(models, 1, noise_sigma=0.03, seed=seed, requests=12_000)
        found = simulate(scenario, engine(EngineSettings(models=setups))).engine
        assert found is not None
        high.append(found.classes[0][0].attainment)
        low.append(min(kinds[-1].attainment for kinds in found.classes))
    assert mean(high) > high_least
    assert mean(low) > low_least
