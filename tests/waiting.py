"""How tests wait: for a condition, with a bound that a loaded machine keeps, too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

WAIT_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.01

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value], what: str, timeout_s: float = WAIT_TIMEOUT_S
) -> Value:
    """Polls until the condition is true; returns its value. Fails with `what` after the bound."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(_POLL_INTERVAL_S)
    return value
