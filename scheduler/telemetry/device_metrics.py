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
    age_seconds: float
    slowed_by_heat: bool = False
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceScope:
    """All devices, and the sources by name: failed looks, and whether the last one failed."""

    devices: Mapping[str, DeviceFigures] = field(default_factory=dict)
    source_errors: Mapping[str, int] = field(default_factory=dict)
    source_failing: Mapping[str, bool] = field(default_factory=dict)
    nvml_calls: int = 0


_GAUGES = {
    "known": ("device_memory_known", "1 while the figures of the device's memory count."),
    "total_bytes": ("device_memory_total_bytes", "Memory of the device."),
    "free_bytes": ("device_memory_free_bytes", "Free, by the last figures."),
    "used_bytes": ("device_memory_used_bytes", "Used by anybody, by the last figures."),
    "headroom_bytes": ("device_memory_headroom_bytes", "Of the free bytes, kept; grows with age."),
    "age_seconds": ("device_memory_age_seconds", "Age of the last figures."),
    "slowed_by_heat": ("device_slowed_by_heat", "1 while the driver slows the device down."),
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
