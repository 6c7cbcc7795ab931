"""A control plane before a real Triton; the test plays the data plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from scheduler.backends import triton_install
from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import control_pb2_grpc
from tests import models
from tests.control_plane import ControlPlane, FakeDataPlane
from tests.wire.control_plane.words import Cold, all_ready


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
def triton(repository: Path) -> Iterator[EmbeddedTriton]:
    if triton_install.locate() is None:
        pytest.skip("no tritonserver is installed")
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


@pytest.fixture
def operator(control: ControlPlane) -> Iterator[control_pb2_grpc.ControlStub]:
    with ControlPlane.channel(control.control_address) as channel:
        yield control_pb2_grpc.ControlStub(channel)
