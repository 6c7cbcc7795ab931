"""What holds of the latency model whatever it is told."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler._native.latency import LatencyModel

HOUR = 3600 * 1_000_000_000
SIZES = st.one_of(st.integers(1, 8), st.integers(1, 64), st.integers(1, 5000))
TIMES = st.one_of(
    st.integers(1, 100), st.integers(1_000_000, 30_000_000), st.integers(1, HOUR), st.just(HOUR)
)
OBSERVED = st.tuples(st.just("observe"), SIZES, TIMES, st.integers(0, 20))
PRIMED = st.tuples(st.just("prime"), SIZES, TIMES, st.integers(0, 50))
NONSENSE = st.tuples(st.just("observe"), st.just(0), st.integers(-HOUR, 0), st.just(1))
RETARGETED = st.tuples(st.just("attainment"), st.just(1), st.just(1), st.integers(0, 100))
STEPS = st.lists(st.one_of(OBSERVED, OBSERVED, PRIMED, NONSENSE, RETARGETED), max_size=120)
# Many batches of few sizes: windows fill, drifts are found.
RUNS = st.lists(
    st.tuples(
        SIZES,
        st.integers(1_000_000, 30_000_000),
        st.integers(1, 80),
        st.sampled_from([1, 1.4, 2, 3]),
    ),
    max_size=12,
)
PROBES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 1000, 4095, 4096, 4097, 9999]

Step = tuple[str, int, int, int]
Run = tuple[int, int, int, float]


def take(model: LatencyModel, step: Step) -> None:
    kind, rows, ns, number = step
    if kind == "observe":
        model.observe(rows, ns, number)
    elif kind == "prime":
        model.prime(rows, float(ns), number)
    else:
        model.attainment = number / 100


def learned(runs: list[Run], steps: list[Step]) -> LatencyModel:
    model = LatencyModel()
    for rows, ns, count, running in runs:
        for _ in range(count):
            model.observe(rows, ns, running)
    for step in steps:
        take(model, step)
    return model


def answers(model: LatencyModel) -> list[object]:
    return [
        *(model.bound(b) for b in PROBES),
        *(model.expected(b, n) for b in PROBES for n in (0, 1, 1.5, 3)),
        *(model.largest_within(10**k, 5000) for k in range(13)),
        (model.margin, model.alpha_ns, model.beta_ns, model.rows_trusted(5000)),
        (model.known, model.attainment, model.accuracy, model.sizes),
    ]


@settings(deadline=None)
@given(RUNS, STEPS)
def test_larger_batches_take_longer_and_less_per_row(runs: list[Run], steps: list[Step]) -> None:
    model = learned(runs, steps)
    assert model.margin >= 1
    known_to = min(max(40, model.rows_measured + 3), 5010)
    rows = sorted({*range(known_to), *PROBES})
    # Their neighbours do not overrule these.
    well_known = {size.rows for size in model.sizes if size.observations >= 16}
    for number in (0, 1, 4):
        expected = [model.expected(b, number) for b in rows]
        assert expected == sorted(expected)
        if number == 0:
            bound = [model.bound(b) for b in rows]
            assert bound == sorted(bound)
            assert all(e <= b for e, b in zip(expected, bound, strict=True))
        assert all(e > 0 for e in expected[1:]) == model.known
        per_row = [e / b for e, b in zip(expected, rows, strict=True) if b > 0]
        for b, here, after in zip(rows[1:], per_row, per_row[1:], strict=False):
            if b not in well_known:
                assert after <= here * (1 + 1e-5) + 2 / b


@settings(deadline=None)
@given(RUNS, STEPS, st.integers(-5, 3 * HOUR), st.integers(0, 6000))
def test_largest_within_is_what_it_says(
    runs: list[Run], steps: list[Step], budget_ns: int, rows_max: int
) -> None:
    model = learned(runs, steps)
    largest = model.largest_within(budget_ns, rows_max)
    assert 0 <= largest <= rows_max
    if largest > 0:
        assert model.bound(largest) <= budget_ns
    if largest < rows_max and budget_ns >= 0:
        assert model.bound(largest + 1) > budget_ns


@settings(deadline=None)
@given(RUNS, STEPS, st.integers(0, 6000))
def test_no_batch_is_much_larger_than_one_measured(
    runs: list[Run], steps: list[Step], rows_max: int
) -> None:
    model = learned(runs, steps)
    largest = model.rows_measured
    assert model.rows_trusted(rows_max) == min(rows_max, largest + max(1, largest // 10))


@settings(deadline=None)
@given(RUNS, STEPS, STEPS)
def test_a_loaded_model_answers_and_learns_as_the_saved_one(
    runs: list[Run], before: list[Step], after: list[Step]
) -> None:
    model = learned(runs, before)
    saved = model.save()
    loaded = LatencyModel(0.7)
    loaded.observe(3, 5)
    assert loaded.load(saved)
    assert loaded.save() == saved
    assert answers(loaded) == answers(model)
    for step in after:
        take(model, step)
        take(loaded, step)
    assert answers(loaded) == answers(model)
    assert loaded.save() == model.save()


@settings(deadline=None)
@given(RUNS, STEPS, STEPS)
def test_asking_changes_nothing(runs: list[Run], before: list[Step], after: list[Step]) -> None:
    asked = learned(runs, before)
    answers(asked)
    for step in after:
        take(asked, step)
        answers(asked)
    assert answers(asked) == answers(learned(runs, before + after))


@settings(deadline=None)
@given(RUNS, st.data())
def test_damaged_states_are_told(runs: list[Run], data: st.DataObject) -> None:
    saved = learned(runs, []).save()
    at = data.draw(st.integers(0, len(saved) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    damaged = saved[:at] + bytes([saved[at] ^ bit]) + saved[at + 1 :]
    assert not LatencyModel().load(damaged)
    assert not LatencyModel().load(saved[:at])


@settings(deadline=None)
@given(RUNS, STEPS)
def test_every_number_stays_finite_and_counts_add_up(runs: list[Run], steps: list[Step]) -> None:
    model = learned(runs, steps)
    seen = model.accuracy
    assert all(map(math.isfinite, (*seen, model.margin, model.alpha_ns, model.beta_ns)))
    assert model.alpha_ns >= 0
    assert model.beta_ns >= 0
    assert seen.beyond <= seen.predicted <= seen.observations
    told = sum(count for _, _, count, _ in runs) + sum(kind == "observe" for kind, *_ in steps)
    primed_wrongly = sum(kind == "prime" and rows < 1 for kind, rows, *_ in steps)
    assert seen.observations + seen.ignored == told + primed_wrongly
    assert sum(size.observations for size in model.sizes) <= seen.observations
