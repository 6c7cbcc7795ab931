"""Models that a Triton serves and does not list in its index."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.probe import Answer, ProbeResult, RpcError, TritonCalls
from scheduler.backends.watch import BackendWatch
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
