"""infersched: a batching inference scheduler in front of Triton Inference Servers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("infersched")
except PackageNotFoundError:  # a checkout that was built in place but never installed
    __version__ = "0+unknown"
