"""Bounded waits that never lose a cancel.

`asyncio.wait_for` of Python 3.11 and before forgets that it is cancelled when what it waits for
comes at the same time: a loop around it would never end, nor would a time-out around that loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def set_within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether the event is set, at the latest after the time-out."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=timeout_s)
    finally:
        waiting.cancel()
    return bool(done)


async def result_within(work: Awaitable[Result], timeout_s: float) -> Result:
    """What the work returns or raises. After the time-out, and when this is cancelled, the work is
    cancelled and has ended. Raises TimeoutError.
    """
    future = asyncio.ensure_future(work)
    try:
        await asyncio.wait({future}, timeout=timeout_s)
    finally:
        if not future.done():
            future.cancel()
            await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # or it would be told as one that nobody has seen
    if future.cancelled():
        raise asyncio.TimeoutError
    return future.result()
