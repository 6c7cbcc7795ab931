"""When the backends are asked about the data plane's shared memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scheduler.control import payload_memory
from scheduler.control.payload_memory import PayloadMemory
from tests.unit.control.test_executors import pool_of


class CountedLooks(PayloadMemory):
    """Every look is counted and finds that the backend has no region now."""

    def __init__(self, pool: Any) -> None:
        super().__init__(pool, lambda: None)
        self.looks = 0

    async def _ensure(self, *_: object) -> None:
        self.looks += 1


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> CountedLooks:
    async def local(host: str) -> bool:
        return True

    monkeypatch.setattr(payload_memory, "is_local", local)
    monkeypatch.setattr(payload_memory, "RETRY_PERIOD_S", 3600.0)
    return CountedLooks(pool_of(({"address": "a:1"}, {"identity": ""})))


async def settle(memory: PayloadMemory, tasks: int) -> None:
    """Until only those are left that wait for their time."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(memory._tasks) == tasks


def test_a_backend_is_polled_once_however_often_it_is_looked_at(memory: CountedLooks) -> None:
    async def run() -> None:
        memory.segment("/key", 1 << 20)
        await settle(memory, 1)
        for number in range(10):
            memory.lost("a:1", f"region-{number}")
            memory.look_at_all()
            await settle(memory, 1)
        assert memory.looks == 11
        await memory.close()

    asyncio.run(run())


def test_who_has_left_registers_nothing_any_more(memory: CountedLooks) -> None:
    async def run() -> None:
        memory.segment("/key", 1 << 20)
        await memory.leave()
        memory.segment("/key", 1 << 20)
        memory.look_at_all()
        await settle(memory, 0)
        assert memory.looks == 0
        assert memory.key == ""

    asyncio.run(run())


def test_backends_that_are_gone_are_forgotten(memory: CountedLooks) -> None:
    async def run() -> None:
        memory.segment("/key", 1 << 20)
        memory.lost("a:1", "region")
        memory._say("a:1", "no")
        await settle(memory, 1)
        memory._pool.watches.clear()
        memory.look_at_all()
        assert (memory._lost, memory._locks, memory._said) == ({}, {}, set())
        await memory.close()

    asyncio.run(run())
