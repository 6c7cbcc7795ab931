"""Settings that do nothing as things are: said once in the log, and shown with the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from scheduler.config import Settings
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from tests.unit.control.triton_answers import pool_of

TRITONS_DELAY = "dynamic_batching { max_queue_delay_microseconds: 500 }"
FIXED = {"batching": "fixed_delay"}


def inert(tmp_path: Path, groups: str = "", **settings: Any) -> list[str]:
    """What does not act on model `m`, by two looks."""
    desired = DesiredState(tmp_path)
    pool = pool_of(({"address": "a:1"}, {"m": groups}))
    for _ in range(2):
        desired.build(pool, Settings.model_validate(settings), Regions(tmp_path))
    return desired.inert["m", "1"]


@pytest.mark.parametrize("settings", [{"models": {"m": FIXED}}, {"defaults": FIXED}])
@pytest.mark.parametrize("groups", ["", "dynamic_batching {}"])
def test_a_fixed_delay_that_nobody_gave_is_told_once(
    tmp_path: Path, groups: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (text,) = inert(tmp_path, groups, **settings)
    assert text.startswith("batching: fixed_delay has no max_queue_delay: ")
    (line,) = [r.getMessage() for r in caplog.records if "fixed_delay" in r.getMessage()]
    assert line == f"model m: {text}"


@pytest.mark.parametrize(
    ("groups", "settings"),
    [
        ("", {}),
        ("", {"models": {"m": {**FIXED, "max_queue_delay": "1ms"}}}),
        ("", {"models": {"m": {**FIXED, "max_queue_delay": 0}}}),
        ("", {"models": {"m": FIXED}, "defaults": {"max_queue_delay": 0}}),
        ("", {"models": {"m": {**FIXED, "preferred_batch_rows": [4]}}}),
        ("", {"models": {"m": {"preferred_batch_rows": [4]}}}),
        ("", {"models": {"m": {"batching": "triton"}}}),
        (TRITONS_DELAY, {"models": {"m": FIXED}}),
        ("sequence_batching {}", {"models": {"m": FIXED}}),
    ],
)
def test_a_delay_that_was_given_or_does_not_matter_is_no_problem(
    tmp_path: Path, groups: str, settings: dict[str, Any]
) -> None:
    assert inert(tmp_path, groups, **settings) == []
