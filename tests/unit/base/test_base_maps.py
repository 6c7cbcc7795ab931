"""Maps and arrays of csrc/base against the standard containers, under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cc_program import build_program, run_program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("maps")
    return build_program(directory, "base/base_maps", sanitize="address,undefined")


@pytest.mark.parametrize("seed", range(5))
def test_the_maps_agree_with_their_twins(program: Path, seed: int) -> None:
    run_program(program, seed)
