"""What a run of the fuzzers says in the end, and keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import Figure, read_results

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parents[2]


def test_the_figure_is_kept_with_seed_and_counts(tmp_path: Path) -> None:
    kept = tmp_path / "results.jsonl"
    given = ["--target", "engine_worlds", "--seconds", "1", "--seed", "3", "--output", str(kept)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, figures = read_results(kept)
    assert (head["seed"], head["benchmarks"]) == (3, ["fuzz engine_worlds"])
    assert head["inputs"]["engine_worlds"] >= 1
    assert figures == {"fuzz_findings": Figure.of("fuzz_findings", 0)}
    assert done.stdout.strip() == figures["fuzz_findings"].to_json()
