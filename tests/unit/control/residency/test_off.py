"""Models on demand are switched off by a reload while something is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler.backends.pool import BackendPool
from scheduler.config import Settings
from scheduler.control.residency.on_demand import ModelResidency
from scheduler.control.residency.policy import Resident
from scheduler.control.steered import NOTHING_STEERED, Steered
from tests.unit.control.triton_answers import pool_of

ONE, TWO = "127.0.0.1:1", "127.0.0.1:2"
CPU = "instance_group { kind: KIND_CPU }"
BOUND_S = 60


def residency_of(folder: Path, pool: BackendPool) -> ModelResidency:
    plane: Any = SimpleNamespace(
        pool=pool,
        settings=Settings.model_validate({"residency": {"mode": "on_demand"}}),
        refresh_state=lambda: None,
        desired=SimpleNamespace(model_index={}),
        counters=SimpleNamespace(valid=False),
        devices=SimpleNamespace(current={}),
        looked_around=False,
    )
    return ModelResidency(plane, folder)


def switch_off(residency: ModelResidency) -> None:
    plane: Any = residency._plane
    plane.settings = Settings()
    residency.look()


def test_calls_that_wait_for_a_load_go_on(tmp_path: Path) -> None:
    residency = residency_of(tmp_path, pool_of())
    loader = residency.loader

    async def scenario() -> None:
        running = asyncio.create_task(loader.run())
        loader.want("a")
        waiting = asyncio.create_task(loader.next_end("a", BOUND_S * 10))
        while not loader._waiting:
            await asyncio.sleep(0)
        assert not running.done()
        switch_off(residency)
        await asyncio.wait_for(waiting, BOUND_S)
        running.cancel()
        assert not loader.wants

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ([ONE], Steered(refusing=frozenset("a"))),
        ([ONE, TWO], Steered(leaving=frozenset({("a", ONE)}))),
    ],
)
def test_an_unload_that_has_begun_is_ended_without_new_requests(
    tmp_path: Path, backends: list[str], expected: Steered
) -> None:
    residency = residency_of(tmp_path, pool_of(*(({"address": b}, {"a": CPU}) for b in backends)))
    switch_off(residency)
    assert residency.steered() == NOTHING_STEERED
    residency.loader.leaving["a", ONE] = Resident("a", ONE, {ONE: 1})
    assert residency.steered() == expected
