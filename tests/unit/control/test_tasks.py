"""Tasks of the control plane that fail are seen."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.control.tasks import watch


async def failing() -> None:
    raise UnicodeError("no name")


def test_a_task_that_fails_is_said_and_ends_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        failed = asyncio.Event()
        well = asyncio.create_task(asyncio.Event().wait())
        watch([well, asyncio.create_task(failing())], failed.set)  # type: ignore[list-item]
        await asyncio.wait_for(failed.wait(), 60)
        well.cancel()
        await asyncio.wait([well])

    asyncio.run(scenario())
    (said,) = caplog.records
    assert "has failed" in said.getMessage()
    assert "no name" in caplog.text or "no name" in str(said.__dict__)
