"""How soon a backend's end and its return are noticed, by a clock that only plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from scheduler.backends.probe import Answer, CallError, ProbeResult
from scheduler.backends.watch import BackendStatus, BackendWatch
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
