"""Binding of the scheduling engine, for tests, benchmarks and the simulator."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

NEVER: Final[int]
NO_BACKEND: Final[int]
OWN_EXECUTORS: Final[int]
OUTCOMES: Final[tuple[str, ...]]
REASONS: Final[tuple[str, ...]]
FAILURE_KINDS: Final[tuple[str, ...]]

class Member(NamedTuple):
    request: int
    user: int
    row_begin: int
    rows: int

class Dispatch(NamedTuple):
    batch: int
    model: int
    backend: int
    rows: int
    rows_padded: int
    deadline_ns: int
    members: tuple[Member, ...]

class Answer(NamedTuple):
    request: int
    user: int
    model: int
    outcome: str
    reason: str
    code: int
    batch: int
    backend: int
    queued_ns: int
    predicted_bytes: int = 0
    free_bytes: int = 0
    retry_after_ns: int = 0

class Abandon(NamedTuple):
    batch: int
    model: int
    backend: int

class Wake(NamedTuple):
    at: int

class Admitted(NamedTuple):
    handle: int
    reason: str
    retry_after_ns: int
    code: int
    predicted_ns: int
    budget_ns: int
    predicted_bytes: int = 0
    free_bytes: int = 0

class Level(NamedTuple):
    slo_ns: int = 0
    best_effort: bool = False
    attainment: float = 0.0

class TritonPolicy(NamedTuple):
    timeout_ns: int = 0
    delay_timed_out: bool = False
    timeout_override: bool = False
    requests_max: int = 0

class TritonBlock(NamedTuple):
    preferred_rows: tuple[int, ...] = ()
    queue_delay_max_ns: int = 0
    levels: tuple[TritonPolicy, ...] = ...
    default_level: int = 1
    dynamic: bool = True

class BatchSize(NamedTuple):
    rows: int
    batches: int
    backend_ns: int

class LatencyState(NamedTuple):
    known: bool
    observations: int
    alpha_ns: int
    beta_ns: int
    margin: float
    error_mean: float
    beyond_margin: float
    rows_target: int
    rate_per_s: float
    sizes: tuple[BatchSize, ...]
    ignored: IgnoredTimes

class IgnoredTimes(NamedTuple):
    backward: int
    zero: int
    too_long: int
    prior: int

class MemoryState(NamedTuple):
    known: bool
    base_bytes: float
    bytes_per_row: float
    samples: int
    error: float
    rows_high: int
    rows_limit: int
    rows_cap: int
    added_bytes: int
    out_of_memory: int

class QueueState(NamedTuple):
    requests: int
    rows: int
    bytes: int
    oldest_arrival: int
    inflight_batches: int
    merging: bool

class Engine:
    """One engine with a counters page of its own. Times are int nanoseconds.

    A broken invariant ends the process (`check_invariants`). A placement is (backend, instances,
    ready), (…, executor group) or (…, executor group, devices).
    """

    def configure_model(
        self,
        model: int,
        placements: Iterable[tuple[Any, ...]],
        now: int,
        *,
        in_use: bool = True,
        merge: bool = True,
        rows_max: int = 1,
        preferred_rows: Iterable[int] = (),
        mandatory_rows: Iterable[int] = (),
        queue_delay_max_ns: int = 0,
        priority_levels: int = 1,
        default_priority: int = 1,
        slo_ns: int = 0,
        queue_requests_max: int = 10_000,
        queue_bytes_max: int = 1 << 30,
        queue_age_max_ns: int = 0,
        staged_batches_max: int = 1,
        idempotent: bool = True,
        cancellable: bool = False,
        direct_max: int = 0,
        sequence_idle_ns: int = 0,
        admitting: bool = True,
        hold_requests: int = 0,
        triton: TritonBlock | None = None,
        levels: Iterable[tuple[int, bool]] = (),
        attainment: float = 0.99,
        load_aware: bool = False,
        value: float = 1.0,
        aging_ns: int = 0,
    ) -> None:
        """Placements are (backend, instances, ready)."""
    def set_backend(self, backend: int, available: bool, now: int) -> None: ...
    def set_tenants(self, weights: Iterable[float]) -> None: ...
    def set_device(
        self,
        device: int,
        now: int,
        *,
        free_bytes: int = 0,
        total_bytes: int = 0,
        headroom_bytes: int = 0,
        measured_at: int | None = None,
        known: bool = True,
        fixed: bool = False,
        own_bytes: int = 0,
        own_measured_at: int = 0,
        loads: int = 0,
    ) -> None: ...
    def prime_memory(
        self,
        model: int,
        device: int,
        base_bytes: float,
        bytes_per_row: float,
        rows_high: int = 0,
        fixed: bool = False,
    ) -> bool: ...
    def memory_status(self, model: int, device: int) -> MemoryState: ...
    def device_status(self, device: int) -> tuple[bool, int, int]:
        """(whether a reading has come, free bytes by the last one, reserved bytes)."""

    def set_draining(self, draining: bool) -> None: ...
    def submit(
        self,
        now: int,
        *,
        user: int = 0,
        model: int = 0,
        rows: int = 1,
        signature: int = 0,
        bytes: int = 0,
        row_bytes: int = 0,
        priority: int = 0,
        arrival: int | None = None,
        deadline: int = ...,
        mergeable: bool = True,
        pinned_backend: int = ...,
        sequence: int = 0,
        start: bool = False,
        end: bool = False,
        path: int = 0,
        timeout_ns: int = 0,
        tenant: int = 0,
    ) -> Admitted:
        """Handle 0: refused. Without `arrival` the request arrives now."""
    def cancel(self, request: int, now: int) -> None: ...
    def fail_all(self, reason: str, now: int) -> None: ...
    def complete(self, batch: int, now: int) -> None: ...
    def dispatch_failed(self, batch: int, kind: str, code: int, now: int) -> None:
        """`kind` is one of FAILURE_KINDS, `code` a gRPC status code."""
    def end_path(self, batch: int, now: int) -> None:
        """What follows in the batch's sequence waits for its answer."""
    def step(self, now: int) -> None: ...
    @property
    def needs_step(self) -> bool:
        """Whether events have come since the last step."""
    def take_actions(self) -> list[Dispatch | Answer | Abandon | Wake]:
        """The actions since the last call, in order, and forgets them."""
    def queue_status(self, model: int) -> QueueState: ...
    def model_stats(self, model: int) -> dict[str, Any]:
        """What ModelStatistics shows: counts and sums in ns; `batch_sizes` are BatchSizes."""
    def prime_latency(self, model: int, backend: int, rows: int, mean_ns: int, count: int) -> bool:
        """Says how long batches of `rows` take; False: nonsense, ignored."""
    def latency_status(self, model: int, backend: int) -> LatencyState: ...
    @property
    def requests_inflight(self) -> int: ...
    def check_invariants(self) -> None: ...
    def save(self) -> bytes: ...
    def load(self, state: bytes) -> bool:
        """Into a fresh engine. False: not a saved state; the engine is then of no use."""
    def counters(self, model: int) -> dict[str, Any]:
        """The model's counters; `outcomes` by (outcome, reason), only those not zero."""
    def backend_counters(self, backend: int) -> dict[str, int]: ...
    def clock_jumps(self) -> tuple[int, int]:
        """How often the clock went back, and far ahead of what was due."""
    def run_closed_loop(
        self, requests: int, queue_length: int, signatures: int, budget_ns: int
    ) -> int:
        """Drives `requests` through model 0 without Python; returns the batches completed.

        The queue is kept at `queue_length`: every reply is followed by as many submits as it
        answered. `budget_ns` is each request's time to its deadline, 0 for none.
        """
