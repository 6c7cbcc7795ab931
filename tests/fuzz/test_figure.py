"""What runs of the fuzzers say in the end, and keep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import Figure, read_results
from tests.fuzz import __main__ as fuzz
from tests.fuzz.figure import Kept, Target, build_of

pytestmark = pytest.mark.native

ROOT = Path(__file__).resolve().parents[2]
TURN = """\
INFO: seed corpus: files: 400 min: 1b max: 4096b total: 65536b rss: 61Mb
#401	INITED cov: {0} ft: 3327 corp: 398/12Kb exec/s: 0 rss: 61Mb
#512	NEW    cov: {1} ft: 3328 corp: 399/12Kb lim: 9 exec/s: 0 rss: 61Mb L: 2/2 MS: 1 EraseBytes-
#600	REDUCE cov: {1} ft: 3328 corp: 399/12Kb lim: 9 exec/s: 0 rss: 61Mb L: 2/2 MS: 1 EraseBytes-
#900	pulse  cov: {2} ft: 3327 corp: 421/12Kb lim: 9 exec/s: 27341 rss: 70Mb
#1000	DONE   cov: {2} ft: 3327 corp: 421/12Kb lim: 9 exec/s: 27341 rss: 70Mb
stat::number_of_executed_units: 1000
"""


def target(*edges: int, build: str = "abc1234", findings: int = 0) -> Target:
    """After one turn of a thousand inputs."""
    made = Target("codec_reply", build, seconds=2.0, findings=findings)
    made.read(TURN.format(*edges))
    return made


def kept_targets(path: Path) -> dict[str, Any]:
    head, _ = read_results(path)
    targets: dict[str, Any] = head["targets"]
    return targets


def test_a_turn_begins_with_what_the_corpus_covers() -> None:
    turn = target(70, 80, 90)
    assert turn.inputs == 1000
    assert [turn.edges_at(part) for part in (0, 0.55, 1)] == [70, 80, 90]
    turn.read(TURN.format(90, 90, 95))
    assert turn.inputs == 2000
    assert [turn.edges_at(part) for part in (0, 0.5, 1)] == [70, 90, 95]


def test_runs_of_one_build_add_up(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    Kept(path, 3).write([target(70, 80, 90)])
    Kept(path, 5).write([target(90, 90, 95)])
    head, figures = read_results(path)
    kept = head["targets"]["codec_reply"]
    assert (kept["build"], kept["inputs"], kept["seconds"]) == ("abc1234", 2000, 4)
    assert kept["edges"] == [70, 90, 95]
    assert (head["seeds"], head["benchmarks"]) == ([3, 5], ["fuzz codec_reply"])
    assert figures == {"fuzz_findings": Figure.of("fuzz_findings", 0)}


def test_a_run_that_is_kept_after_each_turn_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    Kept(path, 3).write([target(70, 80, 90)])
    again, turn = Kept(path, 5), target(90, 90, 95)
    again.write([turn])
    turn.read(TURN.format(95, 95, 96))
    again.write([turn])
    assert kept_targets(path)["codec_reply"]["inputs"] == 3000
    assert read_results(path)[0]["seeds"] == [3, 5]


@pytest.mark.parametrize(("first", "second"), [("abc1234", "def5678"), ("abc1234+", "abc1234+")])
def test_runs_of_another_build_begin_anew(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "fuzz.jsonl"
    Kept(path, 3).write([target(70, 80, 90, build=first, findings=1)])
    Kept(path, 5).write([target(90, 90, 95, build=second)])
    kept = kept_targets(path)
    assert (kept["codec_reply"]["build"], kept["codec_reply"]["inputs"]) == (second, 1000)
    assert kept["codec_reply"]["findings"] == 0


def test_a_target_whose_turn_has_not_come_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    Kept(path, 3).write([target(70, 80, 90), Target("http2_client", build="def5678")])
    assert list(kept_targets(path)) == ["codec_reply"]


def test_findings_of_all_targets_are_the_figure(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    Kept(path, 3).write([target(70, 80, 90, findings=1)])
    Kept(path, 5).write([target(90, 90, 95, findings=2), Target("http2_client", findings=1)])
    assert read_results(path)[1]["fuzz_findings"].value == 4


def test_long_runs_keep_few_points_of_their_coverage(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    coverage = [(number, 70 + number // 100) for number in range(1, 100_001)]
    Kept(path, 3).write([Target("codec_reply", "abc1234", 100_000, coverage=coverage)])
    kept = Target.from_fields("codec_reply", kept_targets(path)["codec_reply"])
    assert len(kept.coverage) < 50
    assert (kept.coverage[0], kept.coverage[-1]) == ((1, 70), (100_000, 1070))
    exact = 70 + 500
    assert exact / 1.25 <= kept.edges_at(0.5) <= exact


def test_a_build_is_the_commit_of_its_rooms() -> None:
    words = ["git", "log", "-1", "--format=%h", "--", "csrc/http2", "csrc/base"]
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build_of("http2_client").rstrip("+") == asked.stdout.strip()
    assert build_of("http2_client") == build_of("http2_server")


def test_a_world_that_does_not_end_is_a_finding_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*command: object, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(str(command), timeout, output=b"7000000\n7000001\n")

    monkeypatch.setattr(subprocess, "run", run)
    worlds = Target("engine_worlds", "abc1234")
    assert not fuzz.run_worlds(worlds, 1, 7)
    assert worlds.inputs == 2
    assert "again by: python -m tests.property.engine_swarm 7000001" in capsys.readouterr().err


def test_the_figure_is_kept_with_seed_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    given = ["--target", "engine_worlds", "--seconds", "1", "--seed", "3", "--output", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, figures = read_results(path)
    assert (head["seeds"], head["benchmarks"]) == ([3], ["fuzz engine_worlds"])
    assert head["targets"]["engine_worlds"]["inputs"] >= 1
    assert head["targets"]["engine_worlds"]["build"] == build_of("engine_worlds")
    assert figures == {"fuzz_findings": Figure.of("fuzz_findings", 0)}
    assert done.stdout.strip() == figures["fuzz_findings"].to_json()
