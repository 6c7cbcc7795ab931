"""PriorityCursor of csrc/engine by itself, under the sanitizers."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cc_program import build_program, run_program


def test_a_level_that_comes_back_is_shed_as_before(tmp_path: Path) -> None:
    """While nothing was left for it, its part of nothing was no number, and it was let in whole."""
    sources = ("engine/queues/priority_cursor.cc",)
    program = build_program(
        tmp_path, "engine/priority_cursors", sources, sanitize="address,undefined"
    )
    run_program(program, 1)
