"""Random requests of random models: what differs from Triton is meant, and listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.differential.cases import CHUNK
from tests.differential.deliberate import DELIBERATE
from tests.differential.random_run import run

README = Path(__file__).resolve().parents[2] / "README.md"
# Plain calls, a stream, and compressed calls.
REQUESTS = int(os.environ.get("INFERSCHED_DIFFERENTIAL_REQUESTS", 5 * CHUNK))


@pytest.mark.e2e
@pytest.mark.timeout(max(180, REQUESTS // 20))
def test_random_requests_differ_only_where_it_is_meant(needs_triton: None, seed: int) -> None:
    report = run(seed, range(REQUESTS))
    print(report.summary())
    assert not report.unlisted, report.unlisted[0].report(seed)
    assert report.executions < report.executions_unmerged


@pytest.mark.e2e
def test_random_requests_differ_no_more_where_batches_are_as_triton_forms_them(
    needs_triton: None, seed: int
) -> None:
    report = run(seed, range(64), models=3, batching="triton")
    print(report.summary())
    assert not report.unlisted, report.unlisted[0].report(seed)


@pytest.mark.e2e
def test_random_requests_differ_no_more_before_a_pool(needs_triton: None, seed: int) -> None:
    """Plain calls, and those of a stream."""
    report = run(seed, range(CHUNK, 3 * CHUNK), models=3, backends=2)
    print(report.summary())
    assert not report.unlisted, report.unlisted[0].report(seed)
    assert min(report.executions_by_backend[number] for number in range(2)) > 0


@pytest.mark.parametrize("entry", DELIBERATE, ids=lambda entry: entry.name)
def test_the_readme_tells_of_every_difference(entry: object) -> None:
    told = " ".join(README.read_text().split())
    assert entry.readme in told, "the README's list lacks this difference"  # type: ignore[attr-defined]
