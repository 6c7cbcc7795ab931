"""What is done for a backend that came back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.control.plane import ControlPlane


def test_one_act_that_fails_does_not_take_the_others_along(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    def act(name: str, *, fails: bool = False) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def run(address: str) -> None:
            if fails:
                raise ValueError(f"{name} at {address}")
            done.append(name)

        return run

    plane: Any = SimpleNamespace(
        on_rejoin=[act("models"), act("traces", fails=True), act("regions")],
        latencies=SimpleNamespace(joined=act("statistics")),
    )
    asyncio.run(ControlPlane._rejoined(plane, "a:1"))
    assert done == ["models", "regions", "statistics"], "the statistics wait for all others"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "traces at a:1" in str(vars(record))
