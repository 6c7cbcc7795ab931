"""Everything here runs against the embedded Triton and the whole of `infersched serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def scheduler(triton: EmbeddedTriton) -> Iterator[ServedScheduler]:
    """A scheduler before the Triton of the whole run, without any configuration."""
    with ServedScheduler(["--backend", triton.grpc_address]) as served:
        yield served


@pytest.fixture(scope="session")
def small_repository(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity, a slow model (50 ms), an ensemble of both: a Triton of these starts quickly."""
    repository = tmp_path_factory.mktemp("small")
    models.identity(repository)
    models.slow(repository, per_execution_s=0.05)
    models.ensemble(repository, steps=("identity", "slow"))
    return repository


@pytest.fixture
def tritons(small_repository: Path) -> Iterator[tuple[EmbeddedTriton, EmbeddedTriton]]:
    """Two Tritons of the small repository, for a test to break."""
    with EmbeddedTriton(small_repository) as one, EmbeddedTriton(small_repository) as two:
        yield one, two


@pytest.fixture(scope="session")
def _small_triton(small_repository: Path) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(small_repository) as running:
        yield running


@pytest.fixture
def small_triton(_small_triton: EmbeddedTriton) -> EmbeddedTriton:
    """A Triton of the small repository that a test may kill."""
    if not _small_triton.running:
        _small_triton.start_ready()
    return _small_triton
