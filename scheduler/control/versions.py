"""Names and versions of models in requests, read as Triton reads them."""

from __future__ import annotations

import re

import grpc

from scheduler.control.cold.errors import ColdError

_STOL = re.compile(r"\s*([+-]?[0-9]+)")
_INT64 = range(-(2**63), 2**63)


def until_nul(text: str) -> str:
    """A text as C reads it: up to its first NUL."""
    return text.partition("\0")[0]


def parse_version(text: str) -> str:
    """The version as Triton's `stol` reads it, "" for the default one. Raises ColdError."""
    if not text:
        return ""
    match = _STOL.match(text)
    if match is None or int(match.group(1)) not in _INT64:
        raise _refused(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    if int(match.group(1)) < 0:
        raise _refused(
            f"invalid model version specified '{text}' , version should be an integral value > 0"
        )
    return str(int(match.group(1)))


def _refused(text: str) -> ColdError:
    return ColdError(grpc.StatusCode.INVALID_ARGUMENT, until_nul(text))
