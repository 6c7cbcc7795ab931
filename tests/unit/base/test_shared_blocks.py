"""Shared blocks of csrc/base: nobody's memory is anybody else's, all is bounded and backed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cc_program import build_program, run_program


@pytest.fixture(scope="module", params=["undefined", "address,undefined"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    rooms = ("base/large_blocks.cc", "base/shared_blocks.cc", "base/bytes.cc")
    return build_program(directory, "base/shared_blocks", rooms, sanitize=request.param)


@pytest.mark.parametrize("seed", range(3))
def test_shared_blocks(program: Path, seed: int) -> None:
    run_program(program, seed)
