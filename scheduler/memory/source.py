"""What a source of device memory tells: the figures of every device that it sees, per look.

Sources are NVML (this host's GPUs), the metrics port of a Triton elsewhere, and figures that the
configuration fixes. A look may block (a driver call, a socket), so each source is looked at from a
thread of its own; see poller.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

# No device has more; a figure above is a lie.
BYTES_MAX = 2**50


class SourceError(Exception):
    """The source as a whole tells nothing now; the text says why and what helps."""


class SourceAbsent(SourceError):
    """There is nothing that it could tell of, which need not be a mistake: no driver, no GPU."""


@dataclass(frozen=True)
class ProcessMemory:
    """A process that has memory on the device; None where the driver does not tell how much."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True)
class DeviceReading:
    """One device at one instant. With a `problem` the figures say nothing.

    `reserved_bytes` is the driver's own part, in neither free nor used.
    """

    key: str  # GPU-<uuid>, MIG-<uuid>, or the name that the configuration gives
    measured_at_ns: int  # of the monotonic clock; 0: it does not age
    total_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    problem: str = ""
    name: str = ""  # of the product
    ordinal: int = -1  # the driver's number of the GPU, of a MIG instance of the GPU it is on
    mig: bool = False
    processes: tuple[ProcessMemory, ...] = ()
    slowed_by_heat: bool = False
    # What the backends' own processes use, and as of when, which may be earlier; 0: not known.
    own_bytes: int = 0
    own_measured_at_ns: int = 0
    # What happened to it since the source began, by kind: "ecc", "xid 79", ...
    events: dict[str, int] = field(default_factory=dict)


class MemorySource(Protocol):
    """`poll` is called from one thread at a time."""

    @property
    def name(self) -> str:
        """`nvml`, or whose metrics port it is; for logs and metrics."""

    @property
    def retry_period_s(self) -> float:
        """Between two looks while the source fails."""

    def poll(self) -> list[DeviceReading]:
        """The devices now. Raises SourceError."""

    def close(self) -> None:
        """Gives back what the source holds; it is not asked again."""


def figures_problem(total: float, free: float, used: float) -> str:
    """Why figures cannot be true; empty when they can."""
    named = {"total": total, "free": free, "used": used}
    # The used part first: it may be what the free one was computed of.
    for name in ("total", "used", "free"):
        value = named[name]
        if not math.isfinite(value):
            return f"its {name} memory is {value}"
        if value < 0 or value > BYTES_MAX:
            return f"its {name} memory is {value:.0f} bytes"
    if total == 0:
        return "its total memory is 0 bytes"
    for name in ("free", "used"):
        if named[name] > total:
            return f"its {name} memory of {named[name]:.0f} bytes is above its total of {total:.0f}"
    return ""
