"""What `load_settings` says of a configuration that a test writes."""

from __future__ import annotations

from pathlib import Path

from scheduler.config import ConfigError, load_settings


def problems(tmp_path: Path, text: str) -> str:
    """Empty when it is accepted."""
    path = tmp_path / "infersched.yaml"
    path.write_text(text)
    try:
        load_settings(path, environment={})
    except ConfigError as error:
        return str(error)
    return ""


def check_problem(tmp_path: Path, text: str, problem: str) -> None:
    """It is refused with these words; with none of them, accepted."""
    found = problems(tmp_path, text)
    assert problem in found
    assert bool(problem) == bool(found)
