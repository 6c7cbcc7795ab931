"""Where the figures of device memory come from, and how much of it is kept free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scheduler._native import counters
from scheduler.config.section import Section
from scheduler.config.units import Duration, Size, format_size

MILLISECOND = 1_000_000
# At shorter periods NVML would be asked more than 20 times a second and device.
POLL_PERIOD_MIN_NS = 80 * MILLISECOND
HEADROOM_PART_DEFAULT = 0.05
HEADROOM_MIN_DEFAULT = 256 * 2**20
# The data plane knows no more.
DEVICES_MAX = counters.DEVICES_MAX
KEY_CHARACTERS_MAX = 96


def bare_switch(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return ("auto" if value else "off") if isinstance(value, bool) else value


def _part(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value < 1):
        hint = f"; for {value:g} % write {value / 100:g}" if 1 <= value < 100 else ""
        raise ValueError(f"{value:g} is no part of the memory; write 0 or a part below 1{hint}")
    return value


def _device_key(value: str) -> str:
    if not 0 < len(value) <= KEY_CHARACTERS_MAX or any(c.isspace() for c in value):
        raise ValueError(
            f"{value!r} is no device: write GPU-<uuid> or MIG-<uuid> as `nvidia-smi -L` does, or "
            "the name of a device of device_memory.devices"
        )
    return value


HeadroomPart = Annotated[float, AfterValidator(_part)]
GpuNumber = Annotated[int, Field(ge=0, lt=DEVICES_MAX)]
# More of them would leave each next to nothing.
Schedulers = Annotated[int, Field(ge=0, le=16)]
DeviceKey = Annotated[str, AfterValidator(_device_key)]


# A row of less is a number whose unit was left out.
ROW_BYTES_MIN = 1024


def _row(value: int) -> int:
    if 0 < value < ROW_BYTES_MIN:
        raise ValueError(
            f"{value} bytes are no row's: a number without a unit is bytes; write {value}MiB or "
            "what it is, or 0 where rows take nothing"
        )
    return value


class MemoryNeed(Section):
    """What the batches of a model take of a device, in one instance."""

    base: Annotated[Size, Field(le=2**50)] = Field(
        default=0, description="bytes, with the first batch"
    )
    per_row: Annotated[Size, Field(le=2**50), AfterValidator(_row)] = Field(
        description="bytes for every row of the largest batch so far"
    )
    fixed: bool = Field(
        default=True, description="false: until enough was learned from the batches that run"
    )


class Device(Section):
    """One device, by its UUID or by a name of one's own."""

    headroom_part: HeadroomPart | None = Field(
        default=None, description="of its total memory; else that of device_memory"
    )
    headroom_min: Size | None = Field(
        default=None, description="bytes; else those of device_memory. The larger of both is kept"
    )
    schedulers: Schedulers = Field(
        default=0, description="that use it; 0: as device_memory.schedulers says"
    )
    total: Annotated[Size, Field(ge=0, le=2**50)] = Field(
        default=0, description="fixed figures, where no source tells of the device; 0: none"
    )
    used: Annotated[Size, Field(ge=0, le=2**50)] = Field(
        default=0, description="of total, by others; with fixed figures"
    )

    @model_validator(mode="after")
    def _used_of_total(self) -> Device:
        if self.used and self.used >= self.total:
            raise ValueError(
                f"used {format_size(self.used)} is not below total {format_size(self.total)}"
            )
        return self


class DeviceMemory(Section):
    """How the memory of the devices is watched."""

    nvml: Annotated[Literal["auto", "off"], BeforeValidator(bare_switch)] = Field(
        default="auto", description="the GPUs of this host; off asks no driver"
    )
    poll_period: Annotated[Duration, Field(ge=POLL_PERIOD_MIN_NS)] = Field(
        default=POLL_PERIOD_MIN_NS,
        description="between two looks at this host's devices while batches run or memory moves",
    )
    idle_poll_period: Annotated[Duration, Field(ge=POLL_PERIOD_MIN_NS)] = Field(
        default=200 * MILLISECOND, description="between two looks at rest"
    )
    metrics_poll_period: Annotated[Duration, Field(ge=100 * MILLISECOND)] = Field(
        default=1_000 * MILLISECOND, description="between two scrapes of a backend's metrics port"
    )
    metrics_timeout: Annotated[Duration, Field(ge=10 * MILLISECOND)] = Field(
        default=500 * MILLISECOND, description="of one scrape as a whole"
    )
    stale_after: Annotated[Duration, Field(ge=1 * MILLISECOND)] = Field(
        default=500 * MILLISECOND,
        description="figures of this age widen the headroom, in proportion to age / stale_after; "
        "of metrics ports at least three of their periods, and 2 s more, Triton's own period",
    )
    lost_after: Annotated[Duration, Field(ge=1 * MILLISECOND)] = Field(
        default=5_000 * MILLISECOND,
        description="figures of this age say nothing; of metrics ports at least ten periods, and "
        "2 s more",
    )
    headroom_part: HeadroomPart = Field(
        default=HEADROOM_PART_DEFAULT, description="of a device's total memory, kept free"
    )
    headroom_min: Size = Field(
        default=HEADROOM_MIN_DEFAULT, description="kept free where the part is less"
    )
    schedulers: Schedulers = Field(
        default=0,
        description="that use a device and share what is free of it; 0: as many as are seen in "
        "schedulers_directory",
    )
    schedulers_directory: Path = Field(
        default=Path("/dev/shm/infersched-devices"),
        description="where schedulers of this host see each other; read at the start",
    )
    devices: Annotated[dict[DeviceKey, Device], Field(max_length=DEVICES_MAX)] = Field(
        default={}, description="what differs for a device, and devices with fixed figures"
    )

    @model_validator(mode="after")
    def _periods_in_order(self) -> DeviceMemory:
        if self.idle_poll_period < self.poll_period:
            raise ValueError(
                "idle_poll_period is below poll_period; raise it to poll_period or more"
            )
        if self.stale_after <= self.idle_poll_period:
            raise ValueError(
                "stale_after is not above idle_poll_period: figures would always be stale"
            )
        if self.lost_after <= self.stale_after:
            raise ValueError("lost_after is not above stale_after; raise it")
        return self
