"""The bar that `infersched profile` shows while it measures: on a terminal only, and to its end."""

from __future__ import annotations

import io
import sys

import pytest

from scheduler.cli.profile import _progress
from scheduler.profiling.measure import Plan, total_batches

PLAN = Plan(sizes=(1, 2, 4), repeats=7, warm_up=2, in_flight=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, batches: int) -> str:
    """What stands on stderr after so many batches of PLAN."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", stderr)
    with _progress(PLAN) as on_batch:
        for _ in range(batches):
            on_batch()
    return stderr.getvalue()


def test_the_bar_counts_every_batch_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = total_batches(PLAN)
    assert whole == 3 * (7 + 2)
    text = shown(monkeypatch, Terminal(), whole)
    assert "measuring" in text
    assert "100%" in text
    text = shown(monkeypatch, Terminal(), whole // 3)
    assert "33%" in text
    assert "100%" not in text


def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), total_batches(PLAN)) == ""
