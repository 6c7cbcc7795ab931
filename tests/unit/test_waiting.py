"""Waits for an event or a result, or not for long."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.backends.waiting import result_within, set_within


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


async def returned(result: str, after_s: float) -> str:
    await asyncio.sleep(after_s)
    return result


async def raised(error: Exception) -> str:
    raise error


def test_a_result_or_an_error_comes_in_time_or_the_work_is_cancelled() -> None:
    async def scenario() -> None:
        assert await result_within(returned("well", 0.001), 60.0) == "well"
        with pytest.raises(ValueError, match="not so"):
            await result_within(raised(ValueError("not so")), 60.0)
        work = asyncio.create_task(returned("late", 60.0))
        with pytest.raises(asyncio.TimeoutError):
            await result_within(work, 0.001)
        assert work.cancelled()

    asyncio.run(scenario())


def test_a_cancel_that_comes_with_the_result_is_not_lost() -> None:
    async def scenario() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(result_within(future, 60.0))
        for _ in range(3):  # it waits by now
            await asyncio.sleep(0)
        future.set_result("well")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())


def test_a_cancel_ends_the_work_first() -> None:
    async def scenario() -> None:
        work = asyncio.create_task(returned("late", 60.0))
        waiting = asyncio.ensure_future(result_within(work, 60.0))
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert work.cancelled()

    asyncio.run(scenario())
