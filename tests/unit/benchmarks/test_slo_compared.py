"""Ours against the best of Triton's settings: which are the best, and what a figure tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.slo_compared import (
    FINALISTS,
    Way,
    against_the_best,
    compared,
    finalists,
    in_words,
    median_round,
    ranked,
)
from benchmarks.slo_servers import Measured


def as_it_is(value: float) -> float:
    return value


def test_settings_are_ranked_by_the_median_of_their_loads() -> None:
    loads = [("lucky", 0.9), ("steady", 0.5), ("lucky", 0.1), ("steady", 0.6), ("lucky", 0.2)]
    assert ranked(loads, as_it_is) == [("steady", [0.5, 0.6]), ("lucky", [0.9, 0.1, 0.2])]


def test_of_equal_settings_the_one_tried_first_is_the_better() -> None:
    loads = [("b", 0.5), ("a", 0.5), ("c", 0.6)]
    assert [setting for setting, _ in ranked(loads, as_it_is)] == ["c", "b", "a"]


def test_the_best_few_settings_are_compared_again() -> None:
    loads = [("a", 0.1), ("b", 0.4), ("c", 0.3), ("d", 0.2), ("e", 0.5)]
    assert finalists(loads, as_it_is) == ["e", "b", "c"]
    assert FINALISTS == 3


def test_where_there_are_fewer_settings_all_are_compared_again() -> None:
    assert finalists([("a", 0.1), ("b", 0.4)], as_it_is) == ["b", "a"]
    assert finalists([], as_it_is) == []


def test_a_setting_that_was_tried_twice_is_one() -> None:
    loads = [("a", 0.5), ("b", 0.4), ("a", 0.5), ("c", 0.3), ("d", 0.2), ("a", 0.5)]
    assert finalists(loads, as_it_is) == ["a", "b", "c"]


def test_the_value_of_a_load_is_what_it_is_ranked_by() -> None:
    loads = [("even", [0.5, 0.6]), ("uneven", [0.1, 0.99])]
    assert [setting for setting, _ in ranked(loads, min)] == ["even", "uneven"]
    assert [setting for setting, _ in ranked(loads, max)] == ["uneven", "even"]


@pytest.mark.parametrize(
    ("loads", "middle"), [([3.0], 3.0), ([9.0, 1.0, 5.0], 5.0), ([4.0, 2.0], 2.0)]
)
def test_the_median_round_is_one_of_them(loads: Sequence[float], middle: float) -> None:
    assert median_round(loads, as_it_is) == middle


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2213.4, 2251.2, 2230.04], "2230/s (2213, 2251, 2230)"),
        ([22134.4], "22130/s"),
        ([], "nothing"),
    ],
)
def test_rounds_in_words_are_their_median_and_each(values: Sequence[float], words: str) -> None:
    assert in_words(values, "/s") == words


def test_a_figure_is_the_ratio_of_medians_and_tells_the_rates_of_all_rounds() -> None:
    ours, theirs = Way("ours", [20.0, 30.0, 25.0]), Way("Triton's", [10.0, 20.0, 10.0])
    figure = compared("slo_goodput_ratio_grid", ours, theirs, least=1.0, unit="/s")
    assert figure.value == 2.5
    assert figure.note == (
        "ours: 25/s (20, 30, 25); Triton's: 10/s (10, 20, 10); ratio by round: 2, 1.5, 2.5"
    )


def test_a_ratio_to_next_to_nothing_is_one_to_the_least() -> None:
    ours, theirs = Way("ours", [100.0, 100.0]), Way("Triton's", [0.0, 0.1])
    figure = compared("slo_goodput_ratio_grid", ours, theirs, least=2.0)
    assert figure.value == 50
    assert figure.note.endswith("; ratio by round: 50, 50")


def test_a_way_that_was_not_measured_is_no_ratio() -> None:
    ours, theirs = Way("ours", [100.0, 100.0]), Way("Triton's", [])
    figure = compared("slo_goodput_ratio_grid", ours, theirs, 1.0, "it holds at no rate")
    assert not figure.verified
    assert figure.note == "ours: 100 (100, 100); Triton's: nothing; ratio by round: nothing"


def test_a_lost_round_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compared("slo_goodput_ratio_grid", Way("a", [2.0, 2.0]), Way("b", [1.0]), least=1.0)


def test_ours_and_the_best_few_of_each_grid_take_turns_as_often() -> None:
    """Each round has the arrivals of its turn; trying the settings has arrivals of its own."""
    asked: list[tuple[str, int]] = []
    worth = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2, "e": 0.6}

    def load(name: str, turn: int) -> Measured:
        asked.append((name, turn))
        problem = "wrong" if (name, turn) == ("d", 2) else ""
        return Measured(worth.get(name, 0.5), 1, 6, 24, 0, problem)

    ours, best, problem = against_the_best(
        lambda turn: load("ours", turn),
        load,
        {"many": ["a", "b", "c", "d"], "one": ["e"]},
        rounds=2,
        value=lambda measured: measured.attainment,
    )
    tried, turns = asked[:5], asked[5:]
    assert tried == [(setting, 2) for setting in "abcde"]
    assert turns == [(name, turn) for turn in (0, 1) for name in ("ours", "b", "c", "d", "e")]
    assert [measured.attainment for measured in ours] == [0.5, 0.5]
    assert {name: (setting, len(loads)) for name, (setting, loads) in best.items()} == {
        "many": ("b", 2),
        "one": ("e", 2),
    }
    assert problem == "wrong"
