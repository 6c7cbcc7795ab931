"""Binding of the latency model (csrc/engine/latency/model.h says what things mean)."""

from collections.abc import Iterable
from typing import Final, NamedTuple

ROWS_MAX: Final[int]

class Accuracy(NamedTuple):
    observations: int
    predicted: int
    beyond: int
    ignored: int
    drifts: int
    log_ratio_mean: float
    log_ratio_deviation: float

class Size(NamedTuple):
    rows: int
    observations: int
    median_ns: int
    longest_ns: int

class LatencyModel:
    """l(b) of one model, learned. Times are nanoseconds; rows are not negative.

    Numbers that the types of C++ do not hold raise OverflowError; what makes no sense is counted in
    `accuracy.ignored`.
    """

    def __init__(self, attainment: float = 0.99) -> None: ...
    attainment: float
    def prime(self, rows: int, mean_ns: float, count: int) -> None: ...
    def observe(self, rows: int, ran_ns: int, running: float = 1) -> None: ...
    def observe_all(self, rows: Iterable[int], ran_ns: Iterable[int]) -> None:
        """Both of equal length, in order: as many calls without Python in between."""
    @property
    def known(self) -> bool: ...
    def expected(self, rows: int, running: float = 0) -> int: ...
    def bound(self, rows: int) -> int: ...
    def largest_within(self, budget_ns: int, rows_max: int) -> int: ...
    def decide_all(self, budgets_ns: Iterable[int], rows_max: int) -> int:
        """The sum of largest_within over many budgets, without Python in between."""
    @property
    def margin(self) -> float: ...
    def rows_trusted(self, rows_max: int, step: int = 1) -> int: ...
    @property
    def rows_measured(self) -> int: ...
    @property
    def alpha_ns(self) -> float: ...
    @property
    def beta_ns(self) -> float: ...
    def slowdown(self, running: float) -> float: ...
    @property
    def accuracy(self) -> Accuracy: ...
    @property
    def sizes(self) -> list[Size]: ...
    @property
    def memory_bytes(self) -> int: ...
    def save(self) -> bytes: ...
    def load(self, state: bytes) -> bool:
        """False: not a saved state; the model is then of no use."""
