"""The linters and the type checker, as the project configures them, find nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.tidy.sources import ROOT, name, sources


def check(module: str, arguments: Sequence[str]) -> None:
    pytest.importorskip(module.partition(".")[0])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{module}:\n{done.stdout}{done.stderr}"


def test_ruff_check() -> None:
    check("ruff", ["check", "--no-cache", "."])


def test_ruff_format() -> None:
    check("ruff", ["format", "--no-cache", "--diff", "."])


@pytest.mark.timeout(600)
def test_mypy() -> None:
    check("mypy", [])


def test_cython_lint() -> None:
    files = [name(path) for path in sources(".pyx", ".pxd", under="scheduler")]
    check("cython_lint", ["--max-line-length=100", "--no-pycodestyle", *files])


def test_clang_format() -> None:
    files = [name(path) for path in sources(".h", ".cc", under="csrc")]
    check("clang_format", ["--dry-run", "--Werror", *files])
