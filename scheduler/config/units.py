"""Durations and sizes as a configuration writes them: `5ms`, `64MiB`.

Durations become integer nanoseconds, sizes integer bytes. A duration always carries its unit,
because a bare `5` means milliseconds to one reader and seconds to the next; only `0` stands alone.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_DURATION_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3600 * 1_000_000_000,
}
_SIZE_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")
INT64_MAX = 2**63 - 1


class TooLargeError(ValueError):
    """More than 64 bits hold: what bounds a value names its own bound."""


def parse_duration_ns(value: object) -> int:
    """Nanoseconds of a text such as `5ms`, `1.5s`, `200us`. Raises ValueError with the fix."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("expected a duration such as 5ms, 200us or 1.5s")
    number, unit = _split(str(value), "a duration such as 5ms, 200us or 1.5s")
    unit = unit.replace("µs", "us")
    if not unit:
        if float(number) == 0:
            return 0
        raise ValueError(f"{value} needs a unit: write {value}ms or {value}s")
    if unit not in _DURATION_NS:
        raise ValueError(f"unknown unit {unit!r}; known: {', '.join(_DURATION_NS)}")
    return _scaled(number, _DURATION_NS[unit])


def parse_size_bytes(value: object) -> int:
    """Bytes of a text such as `64MiB` or of a plain number of bytes. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("expected a size such as 64MiB, 1GB or a number of bytes")
    number, unit = _split(str(value), "a size such as 64MiB, 1GB or a number of bytes")
    if unit and unit not in _SIZE_BYTES:
        raise ValueError(f"unknown unit {unit!r}; known: {', '.join(_SIZE_BYTES)}")
    return _scaled(number, _SIZE_BYTES[unit] if unit else 1)


def format_duration(duration_ns: int) -> str:
    """The shortest exact text of a duration: 5_000_000 -> `5ms`."""
    if duration_ns == 0:
        return "0s"
    for unit in ("h", "s", "ms", "us"):
        if duration_ns % _DURATION_NS[unit] == 0:
            return f"{duration_ns // _DURATION_NS[unit]}{unit}"
    return f"{duration_ns}ns"


def format_size(size_bytes: int) -> str:
    """The shortest exact text of a size: 67_108_864 -> `64MiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _SIZE_BYTES[unit] == 0:
            return f"{size_bytes // _SIZE_BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _split(text: str, expected: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        negative = text.startswith("-") and _QUANTITY.fullmatch(text[1:])
        if negative:
            raise ValueError(f"{text} is negative; expected {expected}")
        raise ValueError(f"expected {expected}, got {text!r}")
    return match.group(1), match.group(2)


def _scaled(number: str, factor: int) -> int:
    whole, _, fraction = number.partition(".")
    scaled = int(whole) * factor
    if fraction:
        scaled += int(fraction) * factor // 10 ** len(fraction)
    if scaled > INT64_MAX:
        raise TooLargeError(f"{number} is too large")
    return scaled


Duration = Annotated[int, BeforeValidator(parse_duration_ns), PlainSerializer(format_duration)]
Size = Annotated[int, BeforeValidator(parse_size_bytes), PlainSerializer(format_size)]
