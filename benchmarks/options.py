"""What every benchmark can be told, and how it talks to the reader."""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Of the benchmark slo_triton: all but the sweep have figures.
SLO_PARTS = ("prediction", "goodput", "overload", "stalls", "sweep", "two")


@dataclass(frozen=True)
class Options:
    """`seconds` is the measured window of one load; a figure is the median of `rounds`.

    `short`: the smallest run that still takes every step; its figures mean nothing.
    `parts` of a benchmark that has some, all of them when empty.
    """

    seconds: float = 3.0
    rounds: int = 3
    seed: int = 1
    pool: int = 1024
    connections: int = 4
    short: bool = False
    parts: tuple[str, ...] = ()


def say(text: str) -> None:
    """Progress and raw figures go to stderr: stdout has the JSON lines only."""
    print(text, file=sys.stderr, flush=True)
