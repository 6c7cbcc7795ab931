"""The linters and the type checker, as the project configures them, find nothing."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, name, sources


def check(tool: str, arguments: Sequence[str]) -> None:
    command = Path(sysconfig.get_path("scripts")) / tool
    if not command.exists():
        pytest.skip(f"no {tool} in this environment: install the extra `dev`")
    done = subprocess.run(
        [str(command), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{tool}:\n{done.stdout}{done.stderr}"


def test_ruff_check() -> None:
    check("ruff", ["check", "--no-cache", "."])


def test_ruff_format() -> None:
    check("ruff", ["format", "--no-cache", "--diff", "."])


@pytest.mark.timeout(600)
def test_mypy() -> None:
    check("mypy", [])


def test_cython_lint() -> None:
    files = [name(path) for path in sources(".pyx", ".pxd", under="scheduler")]
    check("cython-lint", ["--max-line-length=100", "--no-pycodestyle", *files])


def test_clang_format() -> None:
    files = [name(path) for path in sources(".h", ".cc", under="csrc")]
    check("clang-format", ["--dry-run", "--Werror", *files])
