"""Waits for an event, or not for long."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.backends.waiting import set_within


def test_it_ends_with_the_event_or_the_time() -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        assert not await set_within(event, 0.001)
        asyncio.get_running_loop().call_later(0.001, event.set)
        assert await set_within(event, None)
        assert await set_within(event, 0.0)

    asyncio.run(scenario())


def test_a_cancel_that_comes_with_the_event_is_not_lost() -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        waiting = asyncio.ensure_future(set_within(event, 60.0))
        for _ in range(3):  # it waits by now
            await asyncio.sleep(0)
        event.set()
        await asyncio.sleep(0)  # the event has woken it
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())
