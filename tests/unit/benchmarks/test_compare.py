"""`python -m benchmarks.compare`: which files it takes, and what it says of two of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.results import RESULTS_DIRECTORY, Figure, header, read_results, write_results

STUDY = {"benchmark": "goodput", "commit": "1234567", "seeds": [1], "requests": 100}


def line(value: float, **more: Any) -> dict[str, Any]:
    figure = {"figure": "goodput_A_nexus", "value": value, "unit": "requests/s", **more}
    return {**figure, "better": "higher"}


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit status, stdout and stderr of two files."""

    def run(old: Path, new: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare", str(old), str(new)])
        status = compare.main()
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def test_two_studies_of_one_kind_are_compared(tmp_path: Path, compared: Any) -> None:
    old = written(tmp_path / "old.jsonl", STUDY, line(4200, lowest=4100, known_low=4227))
    same = written(tmp_path / "same.jsonl", STUDY, line(4150))
    worse = written(tmp_path / "worse.jsonl", STUDY, line(2000))
    status, out, _ = compared(old, same)
    assert (status, out.splitlines()[-1].split()) == (
        0, ["goodput_A_nexus", "4200", "4150", "-1.2%", "same"],
    )  # fmt: skip
    status, out, _ = compared(old, worse)
    assert (status, out.splitlines()[-1].split()[-1]) == (3, "worse")


def test_files_of_different_kinds_are_not_compared(tmp_path: Path, compared: Any) -> None:
    goodput = written(tmp_path / "goodput.jsonl", STUDY, line(4200))
    noise = written(tmp_path / "noise.jsonl", {**STUDY, "benchmark": "noise"}, line(0.9))
    plain = tmp_path / "plain.jsonl"
    write_results(plain, header(1, ["overload"]), [Figure.of("false_refusals", 0)])
    for old, new in ((goodput, noise), (goodput, plain), (plain, noise)):
        assert compared(old, new)[::2] == (
            2, "compare: the files are of different benchmarks\n",
        )  # fmt: skip


def test_a_study_without_figures_says_which_files_can_be_compared(
    tmp_path: Path, compared: Any
) -> None:
    possible = {**STUDY, "benchmark": "slo_possible"}
    path = written(tmp_path / "possible.jsonl", possible, {"overhead_ms": 0.5, "per_s": {}})
    status, _, error = compared(path, path)
    assert status == 2
    assert f"{path}:2: not a result line: it has no 'figure'; files of `python -m bench" in error


def test_a_note_is_kept_and_left_out_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "noted.jsonl"
    noted = Figure.of("wrong_give_ups", 0.004, note="A: 60 sampled")
    write_results(path, header(1, ["overload"]), [noted, Figure.of("false_refusals", 0)])
    assert read_results(path)[1]["wrong_give_ups"] == noted
    assert ["note" in each for each in path.read_text().splitlines()] == [False, True, False]


def test_every_kept_file_of_figures_can_be_read() -> None:
    # The lines of slo_possible are a table.
    kept = [p for p in RESULTS_DIRECTORY.glob("*.jsonl") if "slo-possible" not in p.name]
    for path in kept:
        head, figures = read_results(path)
        assert (bool(head), bool(figures)) == (True, True), path
