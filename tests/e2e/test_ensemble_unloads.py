"""An unload with its dependents: the steps that Triton ends go, the others are served on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import Stub, connected, infer_error, infer_request, output, rows

ANSWER_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def repository(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ensembles, of a step that both have and one that only the first has."""
    directory = tmp_path_factory.mktemp("ensembles")
    for step in ("shared", "own"):
        models.identity(directory, step)
    models.ensemble(directory, "first", steps=("shared", "own"))
    models.ensemble(directory, "second", steps=("shared", "shared"))
    return directory


@contextmanager
def serving(repository: Path, *loaded: str) -> Iterator[tuple[EmbeddedTriton, Stub]]:
    load = [f"--load-model={name}" for name in loaded]
    with (
        EmbeddedTriton(repository, model_control_mode="explicit", extra_arguments=load) as triton,
        ServedScheduler(["--backend", triton.grpc_address]) as served,
        connected(served.address) as stub,
    ):
        yield triton, stub


def unload_with_dependents(stub: Stub, model: str) -> None:
    request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
    request.parameters["unload_dependents"].bool_param = True
    stub.RepositoryModelUnload(request, timeout=ANSWER_TIMEOUT_S)


def ready(stub: Stub) -> set[str]:
    request = service_pb2.RepositoryIndexRequest(ready=True)
    index = stub.RepositoryIndex(request, timeout=ANSWER_TIMEOUT_S)
    return {model.name for model in index.models}


def ready_again(stub: Stub) -> set[str]:
    with contextlib.suppress(grpc.RpcError):  # the Triton is not known to be back
        return ready(stub)
    return set()


def check_served(stub: Stub, *names: str) -> None:
    for name in names:
        answer = stub.ModelInfer(infer_request(rows(1), model=name), timeout=ANSWER_TIMEOUT_S)
        np.testing.assert_array_equal(output(answer), rows(1))


def test_steps_of_its_own_go_with_an_ensemble(repository: Path) -> None:
    with serving(repository, "first", "second") as (triton, stub):
        unload_with_dependents(stub, "first")
        assert ready(stub) == {"shared", "second"}
        check_served(stub, "shared", "second")
        for gone in ("first", "own"):
            error = infer_error(stub, infer_request(rows(1), model=gone))
            assert error.code() == grpc.StatusCode.NOT_FOUND
        # A Triton that comes back is told of the ones that are gone, and of no others.
        triton.kill()
        triton.start_ready()
        wait_until(lambda: ready_again(stub) == {"shared", "second"}, "the same models")
        check_served(stub, "shared", "second")


def test_steps_that_were_loaded_by_themselves_stay(repository: Path) -> None:
    with serving(repository, "*") as (_, stub):
        unload_with_dependents(stub, "first")
        assert ready(stub) == {"shared", "own", "second"}
        check_served(stub, "shared", "own", "second")
