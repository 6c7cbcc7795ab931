"""A device's figures as metrics show them."""

from __future__ import annotations

from scheduler.memory.table import DeviceMemory
from scheduler.telemetry.device_metrics import DeviceFigures


def figures(device: DeviceMemory, now_ns: int, reserved_bytes: int) -> DeviceFigures:
    reading = device.reading
    return DeviceFigures(
        known=device.known,
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        used_bytes=reading.used_bytes,
        headroom_bytes=device.headroom_bytes,
        reserved_bytes=reserved_bytes,
        age_seconds=(now_ns - reading.measured_at_ns) / 1e9 if reading.measured_at_ns else 0.0,
        slowed_by_heat=reading.slowed_by_heat,
        events=reading.events,
    )
