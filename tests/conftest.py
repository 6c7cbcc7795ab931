"""What every test shares: the checkout's own Triton, and reproducible seeds."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The make targets install Triton here; a caller's own directory goes first.
os.environ.setdefault("INFERSCHED_TRITON_DIR", str(ROOT / ".tools" / "triton"))


def pytest_report_header() -> list[str]:
    return [
        f"seed: {run_seed()} (INFERSCHED_TEST_SEED)",
        f"triton: {os.environ['INFERSCHED_TRITON_DIR']}",
        f"native modules: {os.environ.get('INFERSCHED_NATIVE_DIR', 'in place')}",
    ]


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
