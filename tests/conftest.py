"""What every test shares: the embedded Triton, reproducible seeds, and markers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.backends import triton_install
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models

ROOT = Path(__file__).resolve().parents[1]

# The make targets install Triton here; a caller's own directory goes first.
os.environ.setdefault("INFERSCHED_TRITON_DIR", str(ROOT / ".tools" / "triton"))

# Continuous integration sets it: tests that need a Triton are errors without one.
REQUIRE_TRITON_VARIABLE = "INFERSCHED_REQUIRE_TRITON"

# A test module that drives the compiled modules belongs to `make test-asan`.
NATIVE_SIGNS = ("scheduler._native", "scheduler.dataplane", "tests.dataplane")
NATIVE_DIRECTORIES = ("property", "differential", "wire")


def drives_native_modules(path: Path) -> bool:
    if directory_of(path) in NATIVE_DIRECTORIES:
        return True
    source = path.read_text()
    return any(sign in source for sign in NATIVE_SIGNS)


# Folders in the order in which workers take their files: tests of the first wait for servers, those
# of the last are short, so that all workers end together.
DIRECTORIES_IN_PARALLEL = ("e2e", "wire", "differential", "property", "fuzz", "unit", "tidy")


def pytest_configure() -> None:
    """Workers inherit the one seed of the run, which its header tells."""
    run_seed()


def directory_of(path: Path) -> str:
    """The folder of a test file below `tests`."""
    return path.relative_to(ROOT / "tests").parts[0]


def place_in_parallel(path: Path) -> int:
    return DIRECTORIES_IN_PARALLEL.index(directory_of(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path not in slow, place_in_parallel(item.path)))
    native = {path: drives_native_modules(path) for path in {item.path for item in items}}
    for item in items:
        if native[item.path]:
            item.add_marker(pytest.mark.native)
        if "triton" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)


def pytest_report_header() -> list[str]:
    return [
        f"seed: {run_seed()} (INFERSCHED_TEST_SEED)",
        f"triton: {os.environ['INFERSCHED_TRITON_DIR']}",
        f"native modules: {os.environ.get('INFERSCHED_NATIVE_DIR', 'in place')}",
    ]


@pytest.fixture(scope="session", autouse=True)
def schedulers_of_other_tests_are_not_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The stand-ins of GPUs have the same UUIDs in many tests, which may run side by side."""
    directory = str(tmp_path_factory.mktemp("schedulers"))
    os.environ.setdefault("INFERSCHED_DEVICE_MEMORY__SCHEDULERS_DIRECTORY", directory)


def run_seed() -> int:
    """The seed of this run's random tests; set INFERSCHED_TEST_SEED to repeat one."""
    return int(os.environ.setdefault("INFERSCHED_TEST_SEED", str(random.randrange(2**31))))


@pytest.fixture(scope="session")
def seed() -> int:
    return run_seed()


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random source that starts from the run's seed in every test."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def needs_triton() -> None:
    """For what starts a tritonserver: skips where none is, or fails if one is required."""
    if triton_install.locate() is None:
        give_up = pytest.fail if os.environ.get(REQUIRE_TRITON_VARIABLE) else pytest.skip
        give_up("no embedded Triton: make setup installs it")


@pytest.fixture(scope="session")
def triton_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with every model of `tests.models.write_all`."""
    repository = tmp_path_factory.mktemp("repository")
    models.write_all(repository)
    return repository


@pytest.fixture(scope="session")
def triton(needs_triton: None, triton_repository: Path) -> Iterator[EmbeddedTriton]:
    """A Triton that serves them for the whole run; do not stop it."""
    with EmbeddedTriton(triton_repository) as running:
        yield running
