"""What the loads with an objective rest on: their verdict, Triton's settings, the search."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from benchmarks.loading import LoadResult
from benchmarks.slo_goodput import Contender, Load, Search, compare, near_the_best
from benchmarks.slo_servers import Batcher, Measured, measured
from benchmarks.slo_shared import TUNED, UNTUNED, settings, told_of
from benchmarks.slo_stalls import stalls
from benchmarks.slo_triton import (
    AS_IT_COMES,
    GRID,
    QUEUE_SIZES,
    TIMEOUTS,
    Bench,
    Extent,
    goodputs,
    interpolated,
    noise_sigma,
)

REPLY = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[b"1"])
OTHER = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[b"2"])


def load(reply: service_pb2.ModelInferResponse = REPLY, **totals: Any) -> Measured:
    """A load of 100 requests in two seconds of which 90 were in time and one reply was kept."""
    counted: dict[str, Any] = {
        "connections_lost": 0, "sent": 100, "answered": 100, "ok_empty": 0,
        "statuses": {"0": 95, "8": 5}, "first_error": "queue full", **totals,
    }  # fmt: skip
    result = LoadResult(
        requests_per_s=0, rows_per_s=0, latency_ns={"p50": 6e6, "p99": 24e6}, totals=counted,
        window={"due": 100, "good": 90, "duration_ns": 2 * 10**9}, cpu_s={}, load_cpu_s=0,
        samples=[(0, reply.SerializeToString())],
    )  # fmt: skip
    return measured(result, {0: REPLY.SerializeToString()})


def test_refused_requests_count_as_misses_and_are_no_fault() -> None:
    found = load()
    assert (found.attainment, found.in_time_per_s, found.refused) == (0.9, 45.0, 5)
    assert (found.p50_ms, found.p99_ms, found.problem) == (6.0, 24.0, "")


@pytest.mark.parametrize(
    ("totals", "problem"),
    [
        ({"connections_lost": 1}, "connections were lost"),
        ({"answered": 99}, "99 answers to 100 requests"),
        ({"sent": 0, "answered": 0}, "0 answers to 0 requests"),
        ({"ok_empty": 2}, "without a message"),
        ({"statuses": {"0": 99, "13": 1}}, "answers of status 13: queue full"),
    ],
)
def test_a_load_with_faults_is_not_verified(totals: dict[str, Any], problem: str) -> None:
    assert problem in load(**totals).problem


def test_a_wrong_answer_is_not_verified() -> None:
    assert "is not the direct one" in load(OTHER).problem


@pytest.mark.parametrize(
    "batcher",
    [*GRID, *TIMEOUTS, *QUEUE_SIZES, *(b for s in settings() for b in (s.quick, s.heavy))],
)
def test_every_setting_is_a_block_that_triton_knows(batcher: Batcher) -> None:
    block = json_format.ParseDict(batcher.block(), model_config_pb2.ModelDynamicBatching())
    policy = block.default_queue_policy
    assert policy.default_timeout_microseconds == round(batcher.timeout_ms * 1000)
    assert policy.max_queue_size == batcher.queue_max
    assert block.max_queue_delay_microseconds == round(batcher.delay_ms * 1000)
    assert block.priority_levels == (2 if batcher.priorities else 0)
    assert str(batcher).startswith(f"rows {batcher.rows_max}")


ROUGH = Search(seconds=3, resolution=1.04)
FINE = Search(seconds=8, resolution=1.0075)


def answering(limit_per_s: float, problem: str = "") -> Load:
    """A load that holds up to a rate, and has little in time far above it."""

    def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
        beyond = 0.9 if rate_per_s < 1.5 * limit_per_s else 0.3
        attainment = 1.0 if rate_per_s <= limit_per_s else beyond
        return Measured(attainment, rate_per_s, 6, 24, 0, problem)

    return load


@pytest.mark.parametrize("search", [ROUGH, FINE])
@pytest.mark.parametrize("from_per_s", [600, 990, 1000, 1010, 2000, 9000])
def test_a_search_comes_as_near_as_its_resolution(search: Search, from_per_s: float) -> None:
    found, problem = search.goodput(answering(1000), from_per_s)
    assert 1000 / search.resolution <= found * (1 + 1e-9)
    assert found <= 1000
    assert problem == ""


def test_a_search_ends() -> None:
    assert ROUGH.goodput(answering(1000), 2000, to_per_s=1100)[0] == 0
    assert Search(3, 1.04, loads_max=2).goodput(answering(1000), 2000)[0] == 0
    assert Search(3, 1.04, loads_max=2).goodput(answering(5000, "wrong"), 2000) == (2060, "wrong")


def test_every_load_of_a_search_has_arrivals_of_its_own_and_its_time() -> None:
    asked: list[tuple[int, float]] = []

    def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
        asked.append((turn, seconds))
        return answering(1000)(rate_per_s, turn, seconds)

    FINE.goodput(load, 1100, turn=7)
    assert asked == [(turn, FINE.seconds) for turn in range(7, 7 + len(asked))]
    assert len(asked) > 3


def test_settings_near_the_best_are_compared_and_no_others() -> None:
    limits = (1000, 900, 1010, 990, 500, 970)
    grid = [Contender(str(limit), answering(limit)) for limit in limits]
    near = near_the_best(grid, 600, 2000, ROUGH)
    assert {contender.name for contender in near} == {"1000", "1010"}
    assert near_the_best(grid, 2000, 2000, ROUGH) == []


def test_settings_are_searched_from_above_while_nothing_is_known() -> None:
    asked: list[float] = []

    def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
        asked.append(rate_per_s)
        return answering(1000)(rate_per_s, turn, seconds)

    (found,) = near_the_best([Contender("one", load)], 0, 2000, ROUGH)
    assert asked[0] == 2000
    assert 960 < found.about_per_s <= 1000
    assert near_the_best([Contender("none", answering(0))], 0, 2000, ROUGH) == []


def test_all_that_are_compared_are_searched_equally_often_and_in_turns() -> None:
    asked: list[str] = []

    def contender(name: str, limit_per_s: float) -> Contender:
        def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
            if not asked or asked[-1] != name:
                asked.append(name)
            return answering(limit_per_s)(rate_per_s, turn, seconds)

        return Contender(name, load, about_per_s=limit_per_s)

    ours, theirs, other = contender("a", 1000), contender("b", 500), contender("c", 800)
    compare([ours, theirs, other], 3, FINE)
    assert asked == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    for one, limit in ((ours, 1000), (theirs, 500), (other, 800)):
        assert len(one.rates_per_s) == 3
        assert all(0.99 * limit < per_s <= limit for per_s in one.rates_per_s)
        assert one.goodput_per_s == sorted(one.rates_per_s)[1]


def test_what_is_known_of_earlier_rounds_makes_later_ones_short() -> None:
    asked: list[float] = []

    def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
        asked.append(rate_per_s)
        return answering(1000)(rate_per_s, turn, seconds)

    one = Contender("one", load, about_per_s=1100)
    compare([one], 1, FINE)
    first = len(asked)
    compare([one], 4, FINE)
    assert len(one.rates_per_s) == 5
    assert max(asked[first:]) < 1.04 * 1000
    assert len(asked) - first <= 4 * 5


def test_a_round_in_which_nothing_held_makes_the_others_no_longer() -> None:
    asked: list[float] = []

    def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
        asked.append(rate_per_s)
        return answering(0 if turn < 200 else 1000)(rate_per_s, turn, seconds)

    one = Contender("one", load, about_per_s=1000)
    compare([one], 4, FINE)
    disturbed, *others = one.rates_per_s
    assert disturbed == 0
    assert all(0.99 * 1000 < per_s <= 1000 for per_s in others)
    assert min(asked[-10:]) > 900


def test_what_holds_at_no_rate_is_not_compared_and_the_reason_is_told() -> None:
    ours = Contender("ours", answering(1000), about_per_s=1000)
    nothing = Contender("nothing", answering(1000), about_per_s=0)
    compare([ours, nothing], 3, FINE)
    assert len(ours.rates_per_s) == 3
    assert (nothing.rates_per_s, nothing.goodput_per_s) == ([], 0)
    assert nothing.problem == "nothing held at no rate that was tried"


OTHERS = Batcher(12), Batcher(8)


class Ways(Bench):
    """Ours holds up to 1000/s; a batcher up to what is told of it, with a problem of its loads."""

    def __init__(self, limits: dict[Batcher, float], problems: dict[Batcher, str]) -> None:
        self.extent = Extent(grid=OTHERS, rounds=3, rough=ROUGH, fine=FINE)
        self.capacity_per_s = 1000.0
        self._limits, self._problems = limits, problems

    def scheduled(
        self, rate_per_s: float, turn: int = 0, seconds: float = 0.0, warm_up_s: float = 1.5
    ) -> Measured:
        return answering(1000)(rate_per_s, turn, seconds)

    def contender(self, batcher: Batcher) -> Contender:
        limit, problem = self._limits.get(batcher, 0.0), self._problems.get(batcher, "")
        return Contender(str(batcher), answering(limit, problem))


@pytest.mark.parametrize(
    ("limits", "problems", "default", "grid"),
    [
        ({AS_IT_COMES: 400, OTHERS[0]: 500}, {}, 2.5, 2.0),
        ({AS_IT_COMES: 500, OTHERS[0]: 100}, {}, 2.0, 2.0),
        ({OTHERS[0]: 500}, {}, 0.0, 2.0),
        ({AS_IT_COMES: 400, OTHERS[0]: 500}, {AS_IT_COMES: "wrong"}, 0.0, 2.0),
        ({AS_IT_COMES: 500, OTHERS[0]: 100}, {AS_IT_COMES: "wrong"}, 0.0, 0.0),
        ({AS_IT_COMES: 400, OTHERS[0]: 500}, {OTHERS[1]: "wrong"}, 2.5, 0.0),
        ({}, {}, 0.0, 0.0),
    ],
)
def test_a_goodput_ratio_rests_on_what_was_searched_for_it(
    limits: dict[Batcher, float], problems: dict[Batcher, str], default: float, grid: float
) -> None:
    """Where the batcher as it comes holds nowhere, the others are compared all the same."""
    found = goodputs(Ways(limits, problems))
    assert [figure.figure for figure in found] == [
        "slo_goodput_ratio_default", "slo_goodput_ratio_grid",
    ]  # fmt: skip
    assert [figure.value for figure in found] == pytest.approx([default, grid], rel=0.01)


def test_what_the_scheduler_was_told_is_said() -> None:
    assert told_of(UNTUNED) == "slo and priority_levels only"
    assert told_of(TUNED) == (
        'slo and priority_levels, value 1, priorities {"1": {"attainment": 0.6}}'
    )


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_stalls_stop_all_processes_of_a_group_and_leave_them_running() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as process:
        try:
            with stalls(process.pid, seed=1):
                seen = set()
                deadline = time.monotonic() + 20
                while not seen >= {"T", "S"} and time.monotonic() < deadline:
                    seen.add(state(process.pid))
                assert seen >= {"T", "S"}
            while state(process.pid) != "S" and time.monotonic() < deadline + 20:
                pass
            assert state(process.pid) == "S"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_sizes_between_measured_ones_are_interpolated() -> None:
    assert interpolated({1: 6.0, 4: 9.0}, 4) == 9.0
    assert interpolated({1: 6.0, 4: 9.0}, 2) == 7.0


def test_the_noise_is_that_of_the_usual_99_percent_quantile() -> None:
    quantile = math.exp(0.1 * NormalDist().inv_cdf(0.99))
    assert noise_sigma([1.0, quantile, 30.0]) == pytest.approx(0.1)
