"""What loads took is learned from few of them and kept over restarts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scheduler.control.residency.learned_loads import FILE_NAME, LEAST_KEPT_S, MIB, LearnedLoads

GIB = 2**30
SECOND = 1_000_000_000


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    learned = LearnedLoads(tmp_path)
    assert learned.load_ns("a", "one") == 0
    assert learned.weight("a", "one", "gpu") == (0, False)
    assert learned.places("a", "one") == ()


def test_times_and_weights_are_kept(tmp_path: Path) -> None:
    learned = LearnedLoads(tmp_path / "new")
    learned.took("a", "one", 4 * SECOND)
    learned.weighed("a", "one", {"gpu": GIB, "none": 0})
    learned.store()
    again = LearnedLoads(tmp_path / "new")
    assert again.load_ns("a", "one") == 4 * SECOND
    assert again.weight("a", "one", "gpu") == (GIB, False)
    assert again.places("a", "one") == ("gpu",)


def test_another_backend_is_taken_for_the_same(tmp_path: Path) -> None:
    learned = LearnedLoads(tmp_path)
    learned.took("a", "one", 4 * SECOND)
    learned.weighed("a", "one", {"gpu": GIB})
    assert learned.load_ns("a", "two") == 4 * SECOND
    assert learned.weight("a", "two", "other") == (GIB, False)
    assert learned.load_ns("b", "one") == 0


def test_one_odd_sample_does_not_count(tmp_path: Path) -> None:
    learned = LearnedLoads(tmp_path)
    for weight in (GIB, 30 * GIB, GIB):
        learned.weighed("a", "one", {"gpu": weight})
    assert learned.weight("a", "one", "gpu") == (GIB, True)
    for _ in range(2):
        learned.weighed("a", "one", {"gpu": 2 * GIB})
    assert learned.weight("a", "one", "gpu") == (2 * GIB, True), "another model of that name"


def test_longer_loads_are_believed_sooner_than_shorter_ones(tmp_path: Path) -> None:
    learned = LearnedLoads(tmp_path)
    learned.took("a", "one", 2 * SECOND)
    learned.took("a", "one", 4 * SECOND)
    risen = learned.load_ns("a", "one")
    learned.took("a", "one", risen - SECOND)
    assert risen > 3 * SECOND
    assert learned.load_ns("a", "one") > risen - SECOND // 2


@pytest.mark.parametrize("text", ["", "{", '{"format": "other"}', '{"loads": [{"model": 1}]}'])
def test_a_file_that_cannot_be_used_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    learned = LearnedLoads(tmp_path)
    learned.took("a", "one", SECOND)
    learned.store()
    assert LearnedLoads(tmp_path).load_ns("a", "one") == SECOND


def test_a_directory_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    learned = LearnedLoads(tmp_path / "file" / "below")
    learned.took("a", "one", SECOND)
    learned.store()
    assert learned.load_ns("a", "one") == SECOND


def test_what_a_model_needs_at_least_is_known_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    loads = LearnedLoads(tmp_path)
    loads.starved("a", "one", "gpu", 5 * MIB, 64 * MIB)
    loads.starved("a", "one", "gpu", 3 * MIB, 64 * MIB)
    assert loads.least("a", "one", "gpu", 64 * MIB) == 6 * MIB
    assert loads.least("a", "one", "gpu", 32 * MIB) == 0, "another device"
    assert loads.least("a", "two", "gpu", 64 * MIB) == 0
    now[0] += LEAST_KEPT_S
    assert loads.least("a", "one", "gpu", 64 * MIB) == 0, "others may have had the memory"
    loads.starved("a", "one", "gpu", math.inf, 0)
    assert loads.least("a", "one", "gpu", 0) == math.inf
    loads.fits("a", "one")
    assert loads.least("a", "one", "gpu", 0) == 0
