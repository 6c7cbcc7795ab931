"""Bounded waits that never lose a cancel."""

from __future__ import annotations

import asyncio


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether the event is set, at the latest after the time-out.

    `asyncio.wait_for` of Python 3.11 and before forgets that it is cancelled when the event comes
    at the same time: a loop around it would never end.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=timeout_s)
    finally:
        waiting.cancel()
    return bool(done)
