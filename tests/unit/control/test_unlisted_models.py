"""Models that a Triton serves and does not list in its index."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.probe import Answer, ProbeResult, RpcError, TritonCalls
from scheduler.backends.watch import PARALLEL_MODEL_READS, BackendWatch
from scheduler.control.cold.loads import Loads
from tests.unit.control.residency.world import ONE, World
from tests.unit.control.test_catalog import MODEL, make_watch
from tests.unit.control.triton_answers import IDENTITY, ScriptedCalls

OTHER = ("other", "1")


def unlisted_identity(**keys: Any) -> tuple[BackendWatch, ScriptedCalls]:
    """As models are whose files came with the call that loaded them."""
    calls = ScriptedCalls(identity=IDENTITY, other=IDENTITY.replace("identity", "other"))
    calls.unlisted.add("identity")
    watch = make_watch(calls, **keys)
    watch.take_probe(calls.answer)
    return watch, calls


def test_a_model_that_is_served_and_not_listed_is_found() -> None:
    watch, calls = unlisted_identity()
    for _ in range(3):
        asyncio.run(watch.refresh())
        assert watch.ready_models == {MODEL, OTHER}
    assert watch.unlisted == {MODEL}
    del calls.states[MODEL]
    asyncio.run(watch.refresh())
    assert watch.ready_models == {OTHER}
    calls.states[MODEL] = "READY"
    asyncio.run(watch.refresh())
    assert watch.ready_models == {OTHER}, "nobody asks for it"
    asyncio.run(watch.refresh(["identity"]))
    assert watch.ready_models == {MODEL, OTHER}


def test_a_triton_that_does_not_tell_what_it_serves_is_served_by_its_index() -> None:
    watch, calls = unlisted_identity()
    calls.tells_served = False
    assert asyncio.run(watch.refresh())
    assert watch.ready_models == {OTHER}
    calls.tells_served = True
    asyncio.run(watch.refresh())
    assert watch.ready_models == {MODEL, OTHER}, "all are asked for until it has told"
    calls.asked_for.clear()
    asyncio.run(watch.refresh())
    assert calls.asked_for == ["identity"]


def test_what_was_known_stays_while_the_triton_does_not_tell() -> None:
    watch, calls = unlisted_identity()
    asyncio.run(watch.refresh())
    calls.tells_served = False
    for _ in range(2):
        assert asyncio.run(watch.refresh())
        assert watch.ready_models == {MODEL, OTHER}
    watch.take_probe(ProbeResult(Answer.UNREACHABLE))
    watch.take_probe(calls.answer)
    asyncio.run(watch.refresh())
    assert watch.ready_models == {OTHER}, "it may be another process"
    assert MODEL in watch.models
    del calls.states[MODEL]
    calls.tells_served = True
    asyncio.run(watch.refresh())
    assert MODEL not in watch.models


def test_a_model_of_the_index_does_not_outlive_it_for_silence() -> None:
    watch, calls = unlisted_identity()
    asyncio.run(watch.refresh())
    calls.tells_served = False
    del calls.states[OTHER]
    asyncio.run(watch.refresh())
    assert watch.ready_models == {MODEL}


@pytest.mark.parametrize("missed", ["the probe", "the question"])
def test_a_loaded_model_that_one_reading_missed_is_asked_for_again(missed: str) -> None:
    watch, calls = unlisted_identity()
    del calls.states[MODEL]
    asyncio.run(watch.refresh())
    calls.states[MODEL] = "READY"
    if missed == "the probe":
        calls.answer = ProbeResult(Answer.LATE)

        async def index() -> service_pb2.RepositoryIndexResponse:
            return await ScriptedCalls(other="").index()

        calls.index, told = index, calls.index  # type: ignore[method-assign]
        assert not asyncio.run(watch.refresh(["identity"]))
        calls.index = told  # type: ignore[method-assign]
        calls.answer = ProbeResult(Answer.READY)
    else:
        calls.tells_served = False
        assert asyncio.run(watch.refresh(["identity"]))
        calls.tells_served = True
    assert watch.ready_models == {OTHER}
    asyncio.run(watch.refresh())
    assert watch.ready_models == {MODEL, OTHER}


@pytest.mark.parametrize("change", ["a load", "an unload"])
def test_who_waits_for_a_model_waits_until_the_triton_has_told_of_it(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.backends.watch.RETRY_PERIOD_S", 0.0)
    watch, calls = unlisted_identity()
    served = {OTHER} if change == "an unload" else {MODEL, OTHER}
    if change == "a load":
        del calls.states[MODEL]
    asyncio.run(watch.refresh())
    calls.states[MODEL] = "READY"
    if change == "an unload":
        del calls.states[MODEL]
    calls.silences = 3
    assert asyncio.run(watch.refresh_within(3600.0, ["identity"]))
    assert watch.ready_models == served


def test_who_waits_for_a_model_is_told_when_the_triton_never_tells() -> None:
    watch, calls = unlisted_identity()
    asyncio.run(watch.refresh())
    calls.tells_served = False
    del calls.states[OTHER]
    assert not asyncio.run(watch.refresh_within(0.0, ["identity"]))
    assert watch.ready_models == {MODEL}, "what it told was read all the same"
    assert asyncio.run(watch.refresh_within(0.0))


def test_silence_is_noticed_though_the_backend_was_away_meanwhile() -> None:
    watch, calls = unlisted_identity()
    answer = calls.served

    async def served(name: str) -> list[tuple[str, str]] | None:
        watch.take_probe(ProbeResult(Answer.UNREACHABLE))
        return await answer(name)

    calls.served = served  # type: ignore[method-assign]
    calls.tells_served = False
    assert not asyncio.run(watch.refresh_within(0.0, ["identity"]))


def test_nobody_waits_for_the_silence_about_models_that_are_listed() -> None:
    watch, calls = unlisted_identity()
    calls.tells_served = False
    assert asyncio.run(asyncio.wait_for(watch.refresh_within(3600.0, ["other"]), 30))
    assert watch.ready_models == {OTHER}


class Crowded(ScriptedCalls):
    """Serves many models that it does not list, and takes its time."""

    def __init__(self) -> None:
        self.names = [f"model{number:02}" for number in range(20)]
        super().__init__(**{n: IDENTITY.replace("identity", n) for n in self.names})
        self.unlisted.update(self.names)
        self.asking = self.asking_max = 0

    async def served(self, name: str) -> list[tuple[str, str]] | None:
        self.asking += 1
        self.asking_max = max(self.asking_max, self.asking)
        await asyncio.sleep(0)
        self.asking -= 1
        return await super().served(name)


def test_a_silent_triton_is_not_asked_for_every_model_that_it_does_not_list() -> None:
    calls = Crowded()
    watch = make_watch(calls)
    watch.take_probe(calls.answer)
    asyncio.run(watch.refresh())
    calls.asked_for.clear()
    asyncio.run(watch.refresh())
    assert sorted(calls.asked_for) == calls.names
    assert calls.asking_max <= PARALLEL_MODEL_READS
    calls.asked_for.clear()
    calls.tells_served = False
    asyncio.run(watch.refresh())
    assert 1 <= len(calls.asked_for) <= PARALLEL_MODEL_READS
    calls.asked_for.clear()
    waited_for = calls.names[-6:]
    asyncio.run(watch.refresh(waited_for))
    assert set(waited_for) <= set(calls.asked_for), "somebody waits for each of these"
    assert len(calls.asked_for) < len(waited_for) + PARALLEL_MODEL_READS
    assert {name for name, _ in watch.ready_models} == set(calls.names)


def test_models_that_clients_sent_with_files_are_asked_for_always(tmp_path: Path) -> None:
    loads = Loads(tmp_path)
    watch, calls = unlisted_identity(sent=lambda: loads.with_files)
    del calls.states[MODEL]
    asyncio.run(watch.refresh())
    calls.states[MODEL] = "READY"
    request = service_pb2.RepositoryModelLoadRequest(model_name="identity")
    request.parameters["config"].string_param = "{}"
    loads.loaded(request, None)
    asyncio.run(watch.refresh())
    assert watch.ready_models == {OTHER}, "it came without files"
    request.parameters["file:1/model.py"].bytes_param = b"x"
    loads.loaded(request, None)
    asyncio.run(watch.refresh())
    assert watch.ready_models == {MODEL, OTHER}


def test_what_was_sent_with_files_is_not_left_to_the_first_request(tmp_path: Path) -> None:
    world = World(tmp_path, (ONE, {}))
    request = service_pb2.RepositoryModelLoadRequest(model_name="identity")
    world.plane.loads.loaded(request, None)
    assert world.residency.loads("identity", ONE)
    request.parameters["file:1/model.py"].bytes_param = b"x"
    world.plane.loads.loaded(request, None)
    assert not world.residency.loads("identity", ONE)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("INVALID_ARGUMENT", []),
        ("NOT_FOUND", []),
        ("UNIMPLEMENTED", []),
        ("UNAVAILABLE", None),
        ("DEADLINE_EXCEEDED", None),
        ("PERMISSION_DENIED", None),
        ("INTERNAL", None),
    ],
)
def test_only_these_codes_say_that_a_model_is_not_served(code: str, found: Any) -> None:
    async def refused(*_: Any) -> Any:
        raise RpcError("a:1", grpc.StatusCode[code], "no")

    calls = TritonCalls("a:1")
    calls.rpc = refused  # type: ignore[method-assign,assignment]
    assert asyncio.run(calls.served("identity")) == found
