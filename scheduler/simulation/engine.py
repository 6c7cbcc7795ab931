"""What the engine is told in a run, what its backends do to it, and what is counted of it.

Times are ms of the simulation. The engine is configured as in a server; rates and latencies it
learns by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MS = 1_000_000
NEVER_NS = 0x7FFFFFFFFFFFFFFF
FAULT_MS_MAX = 9.2e12  # that fits in ns

# As in C++, in order.
FAULTS = (
    "slow",
    "down",
    "hang",
    "failing",
    "refusing",
    "cancels",
    "clock_jump",
    "nonsense",
    "draining",
    "removed",
    "unplaced",
    "instances",
)
FAILURES = (
    "nothing_ran",
    "connection",
    "rejected",
    "unsplittable",
    "final",
    "given_up",
    "out_of_memory",
    "unavailable",
    "reset",
)
FATES = (
    "uncounted",
    "in_time",
    "late",
    "refused",
    "expired",
    "failed",
    "cancelled",
    "unanswered",
)

# gRPC's.
UNAVAILABLE = 14


@dataclass(frozen=True)
class RequestClass:
    """A kind of requests of a model; `share` is in proportion to the model's other classes."""

    share: float = 1.0
    priority: int = 0  # 0: the model's default
    # What its clients ask for, from arrival; None: the model's; infinite: they do not.
    objective_ms: float | None = None
    tenant: int = 0
    rows: int = 1
    signatures: int = 1  # evenly spread; only equal ones share a batch
    row_bytes: int = 0  # of the tensors of a row; 0: those of the model's rows are all alike

    def native(self) -> dict[str, Any]:
        asked = self.objective_ms
        objective_ns = 0
        if asked is not None:
            if not asked > 0:
                raise ValueError("an objective must be positive")
            objective_ns = NEVER_NS if asked == float("inf") else round(asked * MS)
        return {**asdict(self), "objective_ns": objective_ns}


@dataclass(frozen=True)
class Level:
    """What one priority level asks for beyond the model."""

    slo_ms: float = 0.0  # 0: the model's
    best_effort: bool = False
    attainment: float = 0.0  # 0: the model's


@dataclass(frozen=True)
class Placement:
    """A model on a backend; placements that name the same group share one executor."""

    backend: int
    instances: int = 1
    executor_group: int | None = None
    devices: tuple[int, ...] = ()  # of EngineSettings.devices, that the instances are on in turn


@dataclass(frozen=True)
class ModelSetup:
    """How the engine is configured for one model; names and meaning are those of its policy."""

    placements: tuple[Placement, ...]
    classes: tuple[RequestClass, ...] = ()
    rows_max: int = 128
    slo_ms: float = 0.0
    load_aware: bool = True
    attainment: float = 0.99
    value: float = 0.0  # 0: not weighed against other models
    aging_ms: float = 0.0
    merge: bool = True
    idempotent: bool = True
    cancellable: bool = False
    priority_levels: int = 1
    default_priority: int = 1
    levels: tuple[Level, ...] = ()
    staged_batches_max: int = 1
    preferred_rows: tuple[int, ...] = ()
    mandatory_rows: tuple[int, ...] = ()
    queue_delay_ms: float = 0.0
    queue_age_ms: float = 0.0
    queue_requests_max: int = 10_000
    queue_bytes_max: int = 1 << 30
    # Of device memory, that batches really take: an instance keeps its largest. A row takes
    # bytes_per_row times RequestClass.row_bytes where that is not 0.
    base_bytes: int = 0
    bytes_per_row: int = 0

    def native(self) -> dict[str, Any]:
        """As the compiled module takes it, in ns."""
        policy = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("placements", "classes", "levels", "base_bytes", "bytes_per_row")
            and not name.endswith("_ms")
        }
        for name in ("slo", "aging", "queue_delay", "queue_age"):
            policy[f"{name}_ns"] = round(getattr(self, f"{name}_ms") * MS)
        policy["levels"] = [
            (round(level.slo_ms * MS), level.best_effort, level.attainment) for level in self.levels
        ]
        return {
            "policy": policy,
            "placements": [
                (p.backend, p.instances, p.executor_group, p.devices) for p in self.placements
            ],
            "base_bytes": self.base_bytes,
            "bytes_per_row": self.bytes_per_row,
            "classes": [kind.native() for kind in self.classes],
        }


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, or changes, from `from_ms` to `until_ms`.

    * "slow": executions take `factor` times as long.
    * "down": the backend is away; what is there is lost with `failure`.
    * "hang": what starts ends no sooner than the fault.
    * "failing": a part `factor` of the batches ends with `failure` and the gRPC code `code`.
    * "refusing": every batch comes back at once, nothing ran.
    * "cancels": a part `factor` of the open requests is cancelled, once.
    * "clock_jump": the engine's clock moves by `shift_ms`, forward or back, once.
    * "nonsense": a part `factor` of the requests has absurd times, priorities or models; stale
      and unknown handles come.
    * "draining": the engine drains.
    * "removed": `model` is not in use. "unplaced": it is not on `backend`. "instances": it has one
      more everywhere.
    """

    kind: str
    from_ms: float
    until_ms: float = 0.0
    backend: int | None = None  # None: all
    model: int = 0
    factor: float = 1.0
    shift_ms: float = 0.0
    failure: str = "connection"
    code: int = UNAVAILABLE

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"no fault is called {self.kind}; there are {', '.join(FAULTS)}")
        if self.failure not in FAILURES:
            raise ValueError(f"no failure is called {self.failure}: {', '.join(FAILURES)}")

        for name in ("from_ms", "until_ms", "shift_ms"):
            if not abs(getattr(self, name)) <= FAULT_MS_MAX:
                raise ValueError(
                    f"{name} of a {self.kind} is {getattr(self, name):g}, and a time is from "
                    f"{-FAULT_MS_MAX:g} to {FAULT_MS_MAX:g} ms"
                )

    def native(self) -> dict[str, Any]:
        from_ns = round(self.from_ms * MS)
        return {
            "kind": FAULTS.index(self.kind),
            "from_ns": from_ns,
            "until_ns": max(round(self.until_ms * MS), from_ns),
            "shift_ns": round(self.shift_ms * MS),
            "backend": self.backend,
            "model": self.model,
            "factor": self.factor,
            "failure": FAILURES.index(self.failure),
            "code": self.code,
        }


@dataclass(frozen=True)
class Device:
    """A device whose memory batches take, and another tenant of it.

    `tenant`: from so many ms on it wants to hold so many bytes, and gets what is left of them.
    """

    total_bytes: int
    headroom_bytes: int = 0
    poll_ms: float = 100.0  # of readings; 0: the engine is not told of the device
    tenant: tuple[tuple[float, int], ...] = ()

    def native(self) -> dict[str, Any]:
        return {
            "total_bytes": self.total_bytes,
            "headroom_bytes": self.headroom_bytes,
            "poll_ns": round(self.poll_ms * MS),
            "tenant": [(round(at_ms * MS), held) for at_ms, held in self.tenant],
        }


@dataclass(frozen=True)
class LearnedNeed:
    """What the engine knew in the end of the memory that a model's batches take on a device."""

    known: bool
    base_bytes: float
    bytes_per_row: float
    samples: int
    error: float
    rows_high: int
    out_of_memory: int


@dataclass(frozen=True)
class EngineSettings:
    """A run of the engine. Without `models` every executor is a backend that holds all models."""

    rows_max: int = 128  # of every model without a setup
    models: tuple[ModelSetup, ...] = ()
    tenants: tuple[float, ...] = ()  # weights by index; 0 is everybody else
    speeds: tuple[float, ...] = ()  # of backend i: executions take 1/speed as long
    drift_per_s: float = 0.0  # executions take 1 + drift * t as long
    wire_ms: float = 0.0  # to a backend, and back
    faults: tuple[Fault, ...] = ()
    devices: tuple[Device, ...] = ()
    # Invariants and truths after every event, slow; simulate raises BrokenTruth.
    check_truths: bool = False
    keep_fates: bool = False  # EngineOutcome.fates and arrivals_ns
    forced: int | None = None  # the request, by its arrival, that is admitted unconditionally
    kept: int | None = None  # the one that is not given up before its deadline
    stop_ns: int | None = None  # the run ends then

    def native(self) -> dict[str, Any]:
        """As the compiled module takes it, in ns."""
        return {
            "rows_max": self.rows_max,
            "models": [model.native() for model in self.models],
            "tenants": self.tenants,
            "speeds": self.speeds,
            "drift_per_s": self.drift_per_s,
            "wire_ns": round(self.wire_ms * MS),
            "faults": [fault.native() for fault in self.faults],
            "devices": [device.native() for device in self.devices],
            "check_truths": self.check_truths,
            "keep_fates": self.keep_fates,
            "forced": self.forced,
            "kept": self.kept,
            "stop_ns": self.stop_ns,
        }


class BrokenTruth(AssertionError):
    """What must hold of the engine did not; the text says which truth."""


@dataclass(frozen=True)
class ClassOutcome:
    """Counted requests of one class: offered is the sum of the others."""

    offered: int
    in_time: int
    late: int
    refused: int
    expired: int
    failed: int
    cancelled: int
    unanswered: int  # at the end, without a deadline

    @property
    def asked(self) -> int:
        """Those whose clients did not leave."""
        return self.offered - self.cancelled

    @property
    def judged(self) -> int:
        """Those of them that were to be answered by the end."""
        return self.asked - self.unanswered

    @property
    def attainment(self) -> float | None:
        return self.in_time / self.judged if self.judged else None


@dataclass(frozen=True)
class EngineOutcome:
    """What a run of the engine counts besides. Quantiles are ms by part."""

    classes: tuple[tuple[ClassOutcome, ...], ...]  # by model
    waits_ms: dict[float, float]  # arrival to answer, without the execution and the wire
    latencies_ms: dict[float, float]
    steps: int
    failed_batches: int
    cancels: int
    faults_begun: int
    ended_ms: float
    # Failed for device memory; of these, those for which there would have been room alone.
    memory_failures: int = 0
    memory_failures_fitting: int = 0
    memory: tuple[LearnedNeed, ...] = ()  # by model and device
    fates: bytes = field(default=b"", repr=False)  # indices of FATES, by arrival
    arrivals_ns: tuple[int, ...] = field(default=(), repr=False)

    @property
    def kinds(self) -> list[ClassOutcome]:
        """The classes of all models."""
        return [kind for kinds in self.classes for kind in kinds]

    @classmethod
    def of(cls, counted: dict[str, Any]) -> EngineOutcome:
        if counted["broken"]:
            raise BrokenTruth(counted["broken"])
        return cls(
            classes=tuple(tuple(ClassOutcome(**k) for k in model) for model in counted["classes"]),
            waits_ms={part: ns / MS for part, ns in counted["waits_ns"].items()},
            latencies_ms={part: ns / MS for part, ns in counted["latencies_ns"].items()},
            steps=counted["steps"],
            failed_batches=counted["failed_batches"],
            cancels=counted["cancels"],
            faults_begun=counted["faults_begun"],
            ended_ms=counted["ended_ns"] / MS,
            memory_failures=counted["memory_failures"],
            memory_failures_fitting=counted["memory_failures_fitting"],
            memory=tuple(LearnedNeed(**need) for need in counted["memory"]),
            fates=counted["fates"],
            arrivals_ns=tuple(counted["arrivals_ns"]),
        )
