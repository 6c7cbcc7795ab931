"""How soon a backend's end, its return and its models are noticed, by a clock that only plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.probe import Answer, CallError, ProbeResult
from scheduler.backends.watch import FIRST_LOOKS_MAX, BackendStatus, BackendWatch
from scheduler.config.discovery import Discovery
from tests.unit.control.residency.virtual_time import run_virtually
from tests.unit.control.triton_answers import IDENTITY, ScriptedCalls

NOTICED_S = 1.0
SILENT = ProbeResult(Answer.TIMEOUT, "it does not answer")


class PatientCalls(ScriptedCalls):
    """Who is silent takes all the time there is."""

    async def ready(self, timeout_s: float) -> ProbeResult:
        if self.answer is SILENT:
            await asyncio.sleep(timeout_s)
        return await super().ready(timeout_s)

    def _check(self) -> None:
        if self.answer is SILENT:
            raise CallError("DEADLINE_EXCEEDED")
        super()._check()


async def until(condition: Callable[[], bool]) -> float:
    """Seconds until it is so."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() < began_s + 60
        await asyncio.sleep(0.001)
    return time.monotonic() - began_s


@pytest.mark.parametrize("phase_s", [0.0, 0.1, 0.26, 0.49, 0.74])
@pytest.mark.parametrize(
    "end", [ProbeResult(Answer.UNREACHABLE, "refused"), SILENT], ids=["killed", "stopped"]
)
def test_an_end_and_a_return_are_noticed_within_a_second(
    monkeypatch: pytest.MonkeyPatch, end: ProbeResult, phase_s: float
) -> None:
    calls = PatientCalls(identity=IDENTITY)
    watch = BackendWatch("a:1", Discovery(), lambda: None, calls=calls)  # type: ignore[arg-type]

    async def scenario() -> None:
        running = asyncio.create_task(watch.run())
        await until(lambda: watch.model_ready(("identity", "1")))
        await asyncio.sleep(5 + phase_s)
        calls.answer = end
        assert await until(lambda: watch.status is BackendStatus.DOWN) < NOTICED_S
        assert not watch.model_ready(("identity", "1"))
        await asyncio.sleep(5 + phase_s)
        calls.answer = ProbeResult(Answer.READY)
        assert await until(lambda: watch.model_ready(("identity", "1"))) < NOTICED_S
        running.cancel()

    run_virtually(scenario(), monkeypatch)


class UnreadyCalls(ScriptedCalls):
    """Some calls fail at first."""

    def __init__(self, index_failures: int = 0, read_failures: int = 0, **configs: str) -> None:
        super().__init__(**configs)
        self.index_failures = index_failures
        self.read_failures = read_failures  # of the model that is named `step`
        self.ready_failures = 0

    async def index(self) -> service_pb2.RepositoryIndexResponse:
        if self.index_failures:
            self.index_failures -= 1
            raise CallError("UNAVAILABLE")
        return await super().index()

    async def ready(self, timeout_s: float) -> ProbeResult:
        if self.ready_failures:
            self.ready_failures -= 1
            return ProbeResult(Answer.TIMEOUT)
        return await super().ready(timeout_s)

    async def model(
        self, name: str, version: str
    ) -> tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]:
        if name == "step" and self.read_failures:
            self.read_failures -= 1
            raise CallError("UNAVAILABLE")
        return await super().model(name, version)


def watch_of(calls: Any, told: list[bool], period: str) -> BackendWatch:
    """Every change tells whether it is settled what is there."""
    discovery = Discovery.model_validate({"refresh_period": period})
    watch = BackendWatch("a:1", discovery, lambda: told.append(watch.settled), calls=calls)
    return watch


def test_a_first_look_that_fails_is_not_taken_for_no_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = UnreadyCalls(index_failures=3, identity=IDENTITY)
    told: list[bool] = []
    watch = watch_of(calls, told, period="60s")

    async def scenario() -> None:
        running = asyncio.create_task(watch.run())
        assert await until(lambda: watch.settled) < NOTICED_S
        running.cancel()

    run_virtually(scenario(), monkeypatch)
    assert watch.model_ready(("identity", "1")), "settled with what is there"
    assert told == [False, True]


def test_a_backend_that_never_tells_its_models_holds_up_the_others_for_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = UnreadyCalls(index_failures=1 << 30, identity=IDENTITY)
    watch = watch_of(calls, [], period="1s")

    async def scenario() -> None:
        running = asyncio.create_task(watch.run())
        assert 1 < await until(lambda: watch.settled) < 5
        assert calls.index_failures == (1 << 30) - FIRST_LOOKS_MAX
        assert not watch.catalog_read
        before = calls.index_failures
        await asyncio.sleep(10)
        assert before - calls.index_failures <= 10, "then it is asked as often as any"
        running.cancel()

    run_virtually(scenario(), monkeypatch)


ENSEMBLE = """
name: "whole" platform: "ensemble" max_batch_size: 8
ensemble_scheduling { step { model_name: "step" model_version: -1 } }
"""
STEP = """
name: "step" max_batch_size: 8
sequence_batching { max_sequence_idle_microseconds: 5000000 }
"""


def test_an_ensemble_whose_step_was_not_read_is_asked_for_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = UnreadyCalls(read_failures=2, whole=ENSEMBLE, step=STEP)
    watch = watch_of(calls, [], period="60s")

    async def scenario() -> None:
        running = asyncio.create_task(watch.run())
        await until(lambda: watch.model_ready(("whole", "1")))
        whole = lambda: watch.models["whole", "1"]  # noqa: E731
        assert not whole().sequence
        assert await until(lambda: whole().sequence) < NOTICED_S
        running.cancel()

    run_virtually(scenario(), monkeypatch)


def test_a_model_that_cannot_be_read_is_asked_for_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = UnreadyCalls(read_failures=1 << 30, identity=IDENTITY, step=STEP)
    watch = watch_of(calls, [], period="60s")

    async def scenario() -> None:
        running = asyncio.create_task(watch.run())
        await until(lambda: watch.model_ready(("identity", "1")))
        await asyncio.sleep(600)
        assert 10 < (1 << 30) - calls.read_failures < 25
        running.cancel()

    run_virtually(scenario(), monkeypatch)


def test_a_model_that_came_back_as_another_is_read_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is known of it is of the one before: with many models, its turn comes much later."""
    others = {f"other_{number}": IDENTITY for number in range(8)}
    calls = UnreadyCalls(step=STEP, **others)
    watch = watch_of(calls, [], period="60s")

    async def scenario() -> None:
        await watch.refresh()
        calls.states["step", "1"] = "LOADING"
        await watch.refresh()
        calls.configs["step"] = STEP.replace("max_batch_size: 8", "max_batch_size: 4")
        calls.states["step", "1"] = "READY"
        calls.read_failures = 1
        await watch.refresh()
        # Read, but not taken: it may be leaving.
        calls.ready_failures = 1
        assert not await watch.refresh()
        await watch.refresh()
        assert watch.models["step", "1"].config.max_batch_size == 4

    run_virtually(scenario(), monkeypatch)
