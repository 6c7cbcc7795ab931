"""What the figures of payloads are made of: rounds in turn, by shared memory and by the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import payload
from benchmarks.loading import LoadResult
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options
from benchmarks.results import GOALS
from benchmarks.serving import Variant
from benchmarks.throughput import Side

OPTIONS = Options(seconds=2.5, rounds=3)
ADDRESSES = ("straight:1", "shared:1", "wire:1")
# Of each round: what one side has, the others have in other parts in the next round.
RATES = {"straight:1": (100, 200, 400), "shared:1": (110, 180, 480), "wire:1": (60, 140, 200)}
# Tails of the small requests in ms: alone and beside large ones, of each round.
TAILS = {"straight:1": (1, 4, 1, 5, 2, 12), "shared:1": (1, 2, 2, 6, 1, 2.5)}


class FakeTriton:
    """Answers loads with the rates and tails above."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self._tails: dict[str, Iterator[float]] = {a: iter(t) for a, t in TAILS.items()}

    def verified_load(self, spec: LoadSpec) -> LoadResult:
        rate, tail_ms = 1.0, 1.0
        if spec.workload == "image" and spec.seconds == OPTIONS.seconds:
            rate = RATES[spec.target][self.measured.count(spec.target)]
            self.measured.append(spec.target)
        if spec.workload == "simple":
            tail_ms = next(self._tails[spec.target])
        latency_ns = {"p50": 1e6, "p99": tail_ms * 1e6}
        return LoadResult(rate, rate, latency_ns, {}, {"ok": 1}, {}, 0.0)


def sides() -> list[Side]:
    return [Side(a.partition(":")[0], a, (Variant("plain"),), {}) for a in ADDRESSES]


def test_each_round_of_large_payloads_is_compared_with_its_own_straight_one() -> None:
    triton: Any = FakeTriton()
    straight, *ways = sides()
    shared, wire = payload.compare_images(triton, straight, ways, OPTIONS)
    assert triton.measured == [*ADDRESSES] * 3
    assert shared.ratios == pytest.approx([1.1, 0.9, 1.2])
    assert wire.ratios == pytest.approx([0.6, 0.7, 0.5])
    assert (shared.ratio, wire.ratio) == (pytest.approx(1.1), pytest.approx(0.6))


def test_the_figures_have_rounds_both_ways_and_the_tail_without_a_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton: Any = FakeTriton()

    def beside_large(_: Any, small: LoadSpec, __: Options) -> tuple[Any, ...]:
        return triton.verified_load(small), triton.verified_load(LoadSpec("large:1")), 1.0, ""

    monkeypatch.setattr(payload, "beside_large", beside_large)
    monkeypatch.setitem(TAILS, "large:1", (1, 1, 1, 1, 1, 1))
    triton.__init__()
    straight, *ways = sides()
    images = payload.compare_images(triton, straight, ways, OPTIONS)
    tails = [payload.tail_ratios(triton, side, OPTIONS) for side in (ways[0], straight)]
    lines = [json.loads(figure.to_json()) for figure in payload.figures(images, tails, OPTIONS)]

    shared, wire, tail = lines
    assert (shared["figure"], shared["value"]) == ("payload_600kb_ratio", 1.1)
    assert (shared["by_round"], shared["round_s"]) == ([1.1, 0.9, 1.2], 2.5)
    assert (wire["figure"], wire["value"]) == ("payload_600kb_wire_ratio", 0.6)
    assert (wire["by_round"], wire["must"]) == ([0.6, 0.7, 0.5], None)
    assert (tail["figure"], tail["value"]) == ("small_p99_beside_16mb_ratio", 2.5)
    assert tail["by_round"] == [2, 3, 2.5]
    assert (tail["straight"], tail["straight_by_round"]) == (5, [4, 5, 6])


def test_what_the_wire_takes_has_no_goal() -> None:
    goal = GOALS["payload_600kb_wire_ratio"]
    assert (goal.must, goal.aim) == (None, None)
