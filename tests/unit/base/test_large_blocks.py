"""Large blocks of csrc/base: nothing is lost or shared, and what is kept is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cc_program import build_program, run_program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without AddressSanitizer, under which no block is kept."""
    directory = tmp_path_factory.mktemp("blocks")
    rooms = ("base/large_blocks.cc", "base/shared_blocks.cc", "base/bytes.cc")
    return build_program(directory, "base/large_blocks", rooms, sanitize="undefined")


@pytest.mark.parametrize("seed", range(3))
def test_blocks_serve_buffers(program: Path, seed: int) -> None:
    run_program(program, seed)
