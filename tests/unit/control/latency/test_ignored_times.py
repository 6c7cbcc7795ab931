"""What an operator is told of times that the engine ignores, and of jumps of its clock."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from scheduler.control.latency.ignored_times import QUIET_LOOKS, IgnoredTimes
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.latency.test_latencies import KEY, statistics
from tests.unit.control.latency.test_latency_reads import Asked, judged

OTHER = ("other", "1")
NO_JUMPS = {"clock_back_total": 0, "clock_ahead_total": 0}


def look(told: IgnoredTimes, counts: dict[Any, int], kind: str = "too_long", **clock: int) -> None:
    """One reading; counts by (model, backend)."""
    told.take(
        {
            placement: pb.LatencySnapshot(ignored={kind: count})
            for placement, count in counts.items()
        }
    )
    told.take_clock(NO_JUMPS | clock)
    told.tell({KEY, OTHER})


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, dict[str, Any]]]:
    found = [(r.levelno, r.getMessage(), vars(r)["fields"]) for r in caplog.records]
    caplog.clear()
    return found


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("backward", "batches that ended before they began, by the clock"),
        ("zero", "batches that took no time"),
        ("too_long", "batches that took more than an hour"),
        ("prior", "what was said before a batch ran, and makes no sense"),
    ],
)
def test_each_kind_is_said_when_it_begins(
    kind: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = IgnoredTimes()
    look(told, {(KEY, "a:1"): 0}, kind)
    assert lines(caplog) == []
    look(told, {(KEY, "a:1"): 3}, kind)
    fields = {"times": 3, "version": "1", "backend": "a:1"}
    assert lines(caplog) == [
        (logging.WARNING, f"model identity: times are ignored: {text}", fields)
    ]


def test_it_is_said_once_until_it_stops_and_then_how_many_there_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = IgnoredTimes()
    for count in (2, 5, 5, 9):
        look(told, {(KEY, "a:1"): count})
    ((level, _, fields),) = lines(caplog)
    assert (level, fields["times"]) == (logging.WARNING, 2)
    for _ in range(QUIET_LOOKS - 1):
        look(told, {(KEY, "a:1"): 9})
    assert lines(caplog) == []
    look(told, {})
    text = "no more: model identity: times are ignored: batches that took more than an hour"
    assert lines(caplog) == [(logging.INFO, text, {"times": 9, "version": "1"})]
    look(told, {(KEY, "a:1"): 10})
    ((level, _, fields),) = lines(caplog)
    assert (level, fields["times"]) == (logging.WARNING, 1)


def test_backends_of_a_model_are_said_together_and_models_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = IgnoredTimes()
    look(told, {(KEY, "b:1"): 1, (KEY, "a:1"): 2, (OTHER, "a:1"): 4})
    assert [(text.split(":")[0], fields) for _, text, fields in lines(caplog)] == [
        ("model identity", {"times": 3, "version": "1", "backend": "a:1, b:1"}),
        ("model other", {"times": 4, "version": "1", "backend": "a:1"}),
    ]


def test_counts_of_another_data_plane_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    told = IgnoredTimes()
    look(told, {(KEY, "a:1"): 7})
    for _ in range(QUIET_LOOKS):
        look(told, {(KEY, "a:1"): 7})
    caplog.clear()
    look(told, {(KEY, "a:1"): 0})
    assert lines(caplog) == []
    look(told, {(KEY, "a:1"): 2})
    ((_, _, fields),) = lines(caplog)
    assert fields["times"] == 2


def test_models_that_are_no_more_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    told = IgnoredTimes()
    look(told, {(KEY, "a:1"): 7})
    caplog.clear()
    told.tell({OTHER})
    for _ in range(QUIET_LOOKS + 1):
        told.tell({KEY, OTHER})
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("jump", "text"),
    [
        ("clock_back_total", "the clock of the data plane went back"),
        ("clock_ahead_total", "the clock of the data plane went ahead by more than 10 s"),
    ],
)
def test_a_clock_that_jumps_is_said(jump: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    told = IgnoredTimes()
    look(told, {}, **{jump: 1})
    look(told, {}, **{jump: 2})
    ((level, line, fields),) = lines(caplog)
    assert level == logging.WARNING
    assert line.startswith(text)
    assert fields == {"times": 1}


# -- from a reading to the metrics


class Nonsense(Asked):
    """A data plane that ignored times of its one model, and whose clock went back."""

    def page(self) -> dict[str, int]:
        return NO_JUMPS | {"clock_back_total": 1}

    async def snapshot(self, indices: list[int]) -> pb.Snapshot:
        latency = pb.LatencySnapshot(ignored={"backward": 2, "prior": 1})
        return pb.Snapshot(models=[pb.ModelSnapshot(index=indices[0], latencies=[latency])])


def test_what_is_read_reaches_the_log_and_the_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, desired = judged(tmp_path, Nonsense())
    absurd = statistics({1: 4.0, 2: 0.0, 3: 0.0})
    found.priors.offer_statistics("a:1", [absurd])
    caplog.clear()
    asyncio.run(found.read(desired))
    assert len(lines(caplog)) == 3
    assert found.figures() == {}, "nothing was learned"
    assert found.ignored_times() == {
        ("identity", "1", "a:1", "backward"): 2,
        ("identity", "1", "a:1", "prior"): 3,
    }
