"""Lets the real pynvml of this process load the tests' library."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.nvml.figures import FILE_VARIABLE, LIBRARY, Figures, build_library


@functools.cache
def library_folder(old: bool = False) -> Path:
    """A folder for LD_LIBRARY_PATH, built once."""
    folder = Path(tempfile.mkdtemp(prefix="infersched-test-nvml-"))
    build_library(folder, old)
    return folder


def load(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    devices: Sequence[dict[str, Any]],
    old: bool = False,
) -> Figures:
    """NVML of the test's process tells these devices until the test ends."""
    figures = Figures.create(folder / "figures", devices)
    monkeypatch.setenv(FILE_VARIABLE, str(figures.path))
    library = ctypes.CDLL(str(library_folder(old) / LIBRARY))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return figures


def unload(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is found, as on a host without a driver."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", missing)
