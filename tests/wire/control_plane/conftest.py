"""A control plane before a real Triton; the test plays the data plane."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import control_pb2_grpc
from tests import models
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.shared_regions import UnregisterRequest, shared_memory
from tests.wire.control_plane.words import (
    START_TIMEOUT_S,
    TIMEOUT_S,
    Cold,
    all_ready,
    model_ready,
    served_by,
    serves_as_written,
)


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    models.identity(directory)
    models.decoupled(directory)
    models.identity(
        directory, "waits", dynamic_batching=models.DynamicBatching((8,), max_queue_delay_us=5000)
    )
    return directory


@pytest.fixture(scope="package")
def triton(needs_triton: None, repository: Path) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(repository) as server:
        yield server


@pytest.fixture
def data_plane() -> Iterator[FakeDataPlane]:
    with FakeDataPlane() as fake:
        yield fake


@pytest.fixture
def control(data_plane: FakeDataPlane, triton: EmbeddedTriton) -> Iterator[ControlPlane]:
    """Connected, with the catalog of a running Triton."""
    if not triton.running:
        triton.start_ready()
    with ControlPlane(data_plane, [triton.grpc_address]) as process:
        data_plane.wait_apply(all_ready, "every model ready")
        yield process


@pytest.fixture
def cold(control: ControlPlane) -> Cold:
    return Cold(control.cold_channel)


@pytest.fixture
def direct(triton: EmbeddedTriton) -> Iterator[Cold]:
    with grpc.insecure_channel(triton.grpc_address) as channel:
        yield Cold(channel)


@pytest.fixture(scope="package")
def explicit_pair(
    needs_triton: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[EmbeddedTriton, EmbeddedTriton]]:
    """Two Tritons that load what they are told to, each from a repository of its own."""
    repositories = [tmp_path_factory.mktemp("explicit") for _ in range(2)]
    for directory in repositories:
        models.identity(directory)
    # The second has no such model.
    models.identity(repositories[0], "lonely")
    one, two = (EmbeddedTriton(r, model_control_mode="explicit") for r in repositories)
    with one, two:
        yield one, two


@pytest.fixture
def pair(explicit_pair: tuple[EmbeddedTriton, EmbeddedTriton]) -> Iterator[list[Cold]]:
    """Stubs of both Tritons, which serve `identity` as it is in their repositories."""
    with contextlib.ExitStack() as stack:
        stubs = []
        for triton in explicit_pair:
            if not triton.running:
                triton.start_ready()
            channel = stack.enter_context(grpc.insecure_channel(triton.grpc_address))
            stubs.append(Cold(channel))
            if not serves_as_written(stubs[-1], "identity"):
                # A load alone would keep an earlier override.
                unload = service_pb2.RepositoryModelUnloadRequest(model_name="identity")
                stubs[-1].RepositoryModelUnload(unload, timeout=START_TIMEOUT_S)
                wait_until(
                    lambda stub=stubs[-1]: not model_ready(stub, "identity"),
                    "identity is unloaded",
                    START_TIMEOUT_S,
                )  # type: ignore[misc]
                load = service_pb2.RepositoryModelLoadRequest(model_name="identity")
                stubs[-1].RepositoryModelLoad(load, timeout=START_TIMEOUT_S)
        yield stubs


@pytest.fixture
def pair_control(
    data_plane: FakeDataPlane,
    explicit_pair: tuple[EmbeddedTriton, EmbeddedTriton],
    pair: list[Cold],
) -> Iterator[ControlPlane]:
    """A control plane before both."""
    with ControlPlane(data_plane, [triton.grpc_address for triton in explicit_pair]) as process:
        data_plane.wait_apply(lambda apply: served_by(apply, "identity") == {0, 1}, "identity")
        yield process


@pytest.fixture
def operator(control: ControlPlane) -> Iterator[control_pb2_grpc.ControlStub]:
    with ControlPlane.channel(control.control_address) as channel:
        yield control_pb2_grpc.ControlStub(channel)


@pytest.fixture
def memory(pair: list[Cold]) -> Iterator[str]:
    """A key; no Triton knows a region before or after."""
    with shared_memory("test") as key:
        yield key
    for stub in pair:
        stub.SystemSharedMemoryUnregister(UnregisterRequest(), timeout=TIMEOUT_S)


@pytest.fixture
def other() -> Iterator[str]:
    """Another key: Triton registers one only once."""
    with shared_memory("other") as key:
        yield key
