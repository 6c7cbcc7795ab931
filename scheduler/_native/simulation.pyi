from collections.abc import Mapping, Sequence
from typing import Any

class Scenario:
    def __init__(
        self,
        *,
        executors: int,
        noise_sigma: float,
        seed: int,
        warm_up_ns: int,
        requests: int,
        misses_max: int | None = None,
        straggling: float = 0.0,
        drift_per_s: float = 0.0,
        interval_ns: int = 0,
    ) -> None: ...
    def add_model(
        self,
        arrivals: Mapping[str, Any],
        objective_ns: int,
        rows_max: int,
        *,
        affine_ns: tuple[float, float] | None = None,
        table_ns: Sequence[int] | None = None,
    ) -> None: ...
    def add_setup(
        self,
        models: Sequence[int] | None,
        speed: float,
        failing: float,
        troubles: Sequence[tuple[int, int, float]],
    ) -> None: ...
    def run(self, policy: str, settings: Mapping[str, Any]) -> dict[str, Any]: ...
    def run_engine(self, settings: Mapping[str, Any]) -> dict[str, Any]: ...

class DecisionLoad:
    def __init__(
        self,
        *,
        models: int,
        queue_length: int,
        rows_max: int = 64,
        load_aware: bool = True,
        seed: int = 1,
    ) -> None: ...
    def fill(self) -> None: ...
    def run(self, requests: int) -> bool: ...

def arrival_times(arrivals: Mapping[str, Any], seed: int, count: int) -> list[int]: ...
def staggered_bound(
    objective_ns: int,
    executors: int,
    *,
    affine_ns: tuple[float, float] | None = None,
    table_ns: Sequence[int] | None = None,
) -> float: ...
def uncoordinated(
    objective_ns: int,
    executors: int,
    *,
    affine_ns: tuple[float, float] | None = None,
    table_ns: Sequence[int] | None = None,
) -> float: ...
