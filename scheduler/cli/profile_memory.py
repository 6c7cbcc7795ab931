"""Which device `infersched profile --memory` looks at, and by which source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scheduler.backends.catalog import ModelSpec
from scheduler.backends.local import LocalServers, is_local
from scheduler.config import Backend
from scheduler.config.address import Address, parse_address
from scheduler.control.device_memory.places import places_of
from scheduler.memory.nvml import NvmlSource
from scheduler.memory.source import DeviceReading, MemorySource, SourceError
from scheduler.memory.triton_metrics import READING_PERIOD_NS, TritonMetricsSource
from scheduler.profiling.measure import MeasureError
from scheduler.profiling.memory import Watched

TRITON_METRICS_PORT = 8002
METRICS_TIMEOUT_S = 5.0
NVML_STILL_S = 0.15
METRICS_STILL_S = READING_PERIOD_NS / 1e9 + 0.5


@contextmanager
def watched_device(server: str, spec: ModelSpec, device: str, metrics: str) -> Iterator[Watched]:
    """The device of the model's instances on the Triton at `server`.

    `device` is the key or the number of a GPU, `metrics` an address; both may be empty. Raises
    MeasureError where there is no source, or not one device.
    """
    try:
        address = parse_address(server)
        port = parse_address(metrics) if metrics else None
        backend = Backend(address=address)
    except ValueError as error:
        raise MeasureError(str(error)) from error
    local = port is None and asyncio.run(is_local(address.host))
    servers = LocalServers()
    servers.ports = frozenset({address.port})
    nvml = NvmlSource(is_own=servers.owns, own_period_ns=0)
    source = nvml if local else _port_source(port or _default_port(address))
    try:
        readings = _readings(source, local)
        key = _device(backend, spec, device, readings, local)
        own = any(reading.own_measured_at_ns for reading in readings if reading.key == key)
        yield Watched(source, key, NVML_STILL_S if local else METRICS_STILL_S, own=own)
    finally:
        source.close()


def _default_port(address: Address) -> Address:
    return Address(address.host, TRITON_METRICS_PORT)


def _port_source(port: Address) -> TritonMetricsSource:
    return TritonMetricsSource(f"metrics of {port}", port.host, port.port, METRICS_TIMEOUT_S)


def _readings(source: MemorySource, local: bool) -> list[DeviceReading]:
    """By the driver's numbers."""
    try:
        found = source.poll()
    except SourceError as error:
        what = "the metrics port of the Triton by --metrics HOST:PORT"
        hint = f"Name {what}" if local else f"Name {what}, or measure on the Triton's host"
        raise MeasureError(
            f"no device memory is known by {source.name}: {error}. {hint}"
        ) from error
    return sorted(found, key=lambda reading: (reading.ordinal, bool(reading.problem)))


def _device(
    backend: Backend, spec: ModelSpec, device: str, readings: Sequence[DeviceReading], local: bool
) -> str:
    there = ", ".join(reading.key for reading in readings) or "none"
    if device and not device.isdigit():
        if device not in {reading.key for reading in readings}:
            raise MeasureError(f"there is no device {device}; there are: {there}")
        return device
    gpus = (int(device),) if device else ()
    places = places_of(backend, spec, gpus, readings if local else None, readings)
    if places.problem:
        raise MeasureError(
            f"it is not known on which device {spec.name} runs: {places.problem}. Name it by "
            f"--device; there are: {there}"
        )
    if not places.keys:
        raise MeasureError(
            f"{spec.name} has no instances on a GPU by its instance_group. Name the device by "
            f"--device if it uses one all the same; there are: {there}"
        )
    if len(places.keys) > 1:
        raise MeasureError(
            f"{spec.name} has instances on {len(places.keys)} devices ({', '.join(places.keys)}), "
            "and which of them a batch goes to is not known: measure it with an instance_group of "
            "one GPU"
        )
    return places.keys[0]
