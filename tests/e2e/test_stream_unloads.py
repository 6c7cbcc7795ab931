"""Unloads and loads while clients keep streams open that have used the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.streams import OpenStream, Request, is_final, repeat_request, sequence_request
from tests.wire.calls import Stub, connected

# A Triton that waits for a stream to end waits until then; a load takes some seconds.
ANSWER_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def stub(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    """Two Tritons that load what they are told to, behind a scheduler."""
    repository = tmp_path_factory.mktemp("unloads")
    models.repeat(repository, instances=1)
    models.sequence(repository)
    with explicit(repository) as one, explicit(repository) as two:
        backends = ["--backend", one.grpc_address, "--backend", two.grpc_address]
        with ServedScheduler(backends) as served, connected(served.address) as stub:
            yield stub


def explicit(repository: Path) -> EmbeddedTriton:
    load = ["--load-model=*"]
    return EmbeddedTriton(repository, model_control_mode="explicit", extra_arguments=load)


def unload(stub: Stub, model: str) -> grpc.Future:
    request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
    return stub.RepositoryModelUnload.future(request, timeout=ANSWER_TIMEOUT_S)


def load(stub: Stub, model: str) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name=model)
    stub.RepositoryModelLoad(request, timeout=ANSWER_TIMEOUT_S)


def state_of(stub: Stub, model: str) -> str:
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=ANSWER_TIMEOUT_S)
    (state,) = {entry.state for entry in index.models if entry.name == model}
    return str(state)


REQUESTS: dict[str, Request] = {
    "repeat": repeat_request(1, "a", wants_empty_final=True),
    "sequence": sequence_request(1, 5, start=True, end=True, request_id="a"),
}


@pytest.mark.parametrize("model", REQUESTS)
def test_an_unload_does_not_wait_for_open_streams_to_end(stub: Stub, model: str) -> None:
    with OpenStream(stub, timeout=STREAM_TIMEOUT_S) as stream:
        for _ in range(2):
            stream.send(REQUESTS[model])
            while not is_final(stream.read()):
                pass
            unload(stub, model).result()
            assert state_of(stub, model) == "UNAVAILABLE"
            stream.send(REQUESTS[model])
            assert "unknown model" in stream.read().error_message
            load(stub, model)
        stream.send(REQUESTS[model])
        while not is_final(stream.read()):
            pass


def test_an_unload_lets_replies_that_are_due_come(stub: Stub) -> None:
    with OpenStream(stub, timeout=STREAM_TIMEOUT_S) as stream:
        stream.send(repeat_request(40, "a", delay_ms=50))
        messages = [stream.read()]
        unloaded = unload(stub, "repeat")
        messages += stream.read_many(39)
        unloaded.result()
    assert [message.error_message for message in messages] == [""] * 40
    load(stub, "repeat")
