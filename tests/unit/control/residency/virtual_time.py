"""An event loop whose time passes at once: where nothing is to be done, its clock moves on to the
next timer. `time.monotonic` tells the same time meanwhile."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest

# Of the loop, while no time passes: more are a task that goes round and round.
TURNS_MAX = 20_000
# Beyond the resolution of the loop's clock, or a timer might never come.
STEP_S = 1e-6


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen again"
        self._turns = 0 if timeout > 0 else self._turns + 1
        assert self._turns < TURNS_MAX, "something goes round without a pause"
        self.now_s += max(timeout, STEP_S)
        return super().select(0)


def run_virtually(work: Coroutine[Any, Any, None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it to its end; what it has started is cancelled then."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    with monkeypatch.context() as patched:
        patched.setattr("time.monotonic", lambda: selector.now_s)
        patched.setattr("time.monotonic_ns", lambda: int(selector.now_s * 1e9))
        try:
            loop.run_until_complete(work)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.close()
