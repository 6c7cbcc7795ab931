"""Metrics of device memory: what the sources tell, and how they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

DEVICE = ["device"]


@dataclass(frozen=True)
class DeviceFigures:
    """One device; the bytes are the last ones known."""

    known: bool
    total_bytes: int
    free_bytes: int
    used_bytes: int
    headroom_bytes: int
    reserved_bytes: int
    age_seconds: float
    slowed_by_heat: bool = False
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NeedFigures:
    """What batches of a model take on a device, as learned."""

    predicted_bytes: int  # that a batch as large as is allowed now would add
    bytes_per_row: float
    error_ratio: float  # mean of |predicted / actual - 1|
    rows_limit: int  # by device memory; 0: it sets none


@dataclass(frozen=True)
class DeviceScope:
    """All devices, and the sources by name: failed looks, and whether the last one failed."""

    devices: Mapping[str, DeviceFigures] = field(default_factory=dict)
    source_errors: Mapping[str, int] = field(default_factory=dict)
    source_failing: Mapping[str, bool] = field(default_factory=dict)
    needs: Mapping[tuple[str, str, str], NeedFigures] = field(default_factory=dict)
    nvml_calls: int = 0


_GAUGES = {
    "known": ("device_memory_known", "1 while the figures of the device's memory count."),
    "total_bytes": ("device_memory_total_bytes", "Memory of the device."),
    "free_bytes": ("device_memory_free_bytes", "Free, by the last figures."),
    "used_bytes": ("device_memory_used_bytes", "Used by anybody, by the last figures."),
    "headroom_bytes": ("device_memory_headroom_bytes", "Of the free bytes, kept; grows with age."),
    "reserved_bytes": (
        "device_memory_reserved_bytes",
        "Held for batches that the last figures may not show yet.",
    ),
    "age_seconds": ("device_memory_age_seconds", "Age of the last figures."),
    "slowed_by_heat": ("device_slowed_by_heat", "1 while the driver slows the device down."),
}
_NEED_GAUGES = {
    "predicted_bytes": (
        "device_memory_predicted_bytes",
        "Device memory that a batch as large as is allowed now would add.",
    ),
    "bytes_per_row": ("device_memory_row_bytes", "Device memory of a row, as learned."),
    "error_ratio": (
        "device_memory_prediction_error_ratio",
        "Mean of |predicted / actual - 1| of what batches added.",
    ),
    "rows_limit": (
        "device_memory_rows_limit",
        "Largest batch that device memory allows now; 0: it sets no limit.",
    ),
}


def device_families(scope: DeviceScope) -> Iterator[Metric]:
    """The families; of devices nothing where none is known."""
    errors = CounterMetricFamily(
        "infersched_device_memory_source_errors",
        "Looks at a source of device memory that failed.",
        labels=["source"],
    )
    up = GaugeMetricFamily(
        "infersched_device_memory_source_up", "1 while the source tells figures.", labels=["source"]
    )
    for source, count in scope.source_errors.items():  # one that is absent is not told of
        errors.add_metric([source], count)
        up.add_metric([source], not scope.source_failing.get(source, False))
    yield from (errors, up)
    yield CounterMetricFamily("infersched_nvml_calls", "Calls to NVML.", scope.nvml_calls)
    for key, (name, text) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"infersched_{name}", text, labels=DEVICE)
        for device, figures in scope.devices.items():
            gauge.add_metric([device], getattr(figures, key))
        yield gauge
    events = CounterMetricFamily(
        "infersched_device_events", "What the driver told of the device: ECC and Xid errors.",
        labels=[*DEVICE, "event"],
    )  # fmt: skip
    for device, figures in scope.devices.items():
        for event, count in figures.events.items():
            events.add_metric([device, event], count)
    yield events
    for key, (name, text) in _NEED_GAUGES.items():
        gauge = GaugeMetricFamily(f"infersched_{name}", text, labels=["model", "version", *DEVICE])
        for labels, need in scope.needs.items():
            gauge.add_metric(labels, getattr(need, key))
        yield gauge
