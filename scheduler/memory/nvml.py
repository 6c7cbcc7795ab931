"""Device memory by NVML: the GPUs and MIG instances of this host.

A look is one call a device, for its memory. Once in a while a look does a chore as well: the
processes, the heat and the ECC errors of the devices, or which devices there are. All together stay
at or below 20 calls a second and device when looks are at least 80 ms apart.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from scheduler.memory.nvml_events import NvmlEvents
from scheduler.memory.source import (
    DeviceReading,
    ProcessMemory,
    SourceAbsent,
    SourceError,
    figures_problem,
)
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

CHORE_PERIOD_NS = 1_000_000_000
# Between two looks at what each process uses, where some are a backend's: two calls.
OWN_PERIOD_NS = 1_000_000_000
# Every this many-th chore is to see which devices there are.
ENUMERATE_EVERY = 10
# At least so long between two of them, when devices fail.
ENUMERATE_PERIOD_NS = 1_000_000_000
# A GPU that was reset comes back to a library that is opened anew.
REOPEN_PERIOD_NS = 60_000_000_000
RETRY_PERIOD_S = 1.0
MIG_INSTANCES_MAX = 16
_HEAT = 0x20 | 0x40  # software and hardware thermal slowdown of nvmlClocksEventReasons

# The driver or the library as a whole, not one device.
_WHOLE_SOURCE = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
_ABSENT = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
_HINTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is not on this host; in a container, "
    "start it with the NVIDIA runtime and the driver capability `utility`",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the library and the driver are of different "
    "versions, as after an update: restart infersched, or the host",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not ask the driver",
    pynvml.NVML_ERROR_GPU_IS_LOST: "it has fallen off the bus, or is being reset",
}


def reason_of(error: pynvml.NVMLError) -> str:
    """The driver's text, and what it means where that helps."""
    code = getattr(error, "value", 0)
    hint = _HINTS.get(code, "")
    text = str(error).rstrip(".")
    return f"{text}: {hint}" if hint else text


@dataclass
class _Device:
    handle: Any
    key: str
    name: str
    ordinal: int
    mig: bool
    gpu_key: str  # its own, of a MIG instance that of its GPU
    gpu: Any = None  # handle of that GPU
    processes: tuple[ProcessMemory, ...] = ()
    processes_at_ns: int = 0  # when they were asked for last
    own_bytes: int = 0
    own_measured_at_ns: int = 0
    slowed_by_heat: bool = False
    ecc_errors: int = -1  # not asked yet
    unsupported: set[str] = field(default_factory=set)


class NvmlSource:
    """Loads NVML at the first look, and again after it failed as a whole."""

    name = "nvml"

    def __init__(
        self,
        retry_period_s: float = RETRY_PERIOD_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        is_own: Callable[[int], bool] | None = None,
        own_period_ns: int = OWN_PERIOD_NS,
    ) -> None:
        """`is_own` tells by its number whether a process is a backend's."""
        self._is_own = is_own
        self._own_period_ns = own_period_ns
        self.retry_period_s = retry_period_s
        self.calls: Counter[str] = Counter()  # by device; "" is of none
        self._clock_ns = clock_ns
        self._open = False
        self._devices: list[_Device] = []
        self._events: NvmlEvents | None = None
        self._event_counts: dict[str, Counter[str]] = {}
        self._memory_version: int | None = getattr(pynvml, "nvmlMemory_v2", None)
        self._chore_at_ns = 0
        self._chores = 0
        self._enumerated_at_ns = 0
        self._opened_at_ns = 0
        self._devices_seen = 0  # the most at once

    def poll(self) -> list[DeviceReading]:
        """Raises SourceError when NVML cannot be loaded or the driver has gone."""
        try:
            if self._open and self._is_worth_reopening():
                self.close()
            if not self._open:
                self._start()
            readings = [self._read(device) for device in self._devices]
            self._do_chores(any(reading.problem for reading in readings))
        except pynvml.NVMLError as error:
            was_open = self._open
            self.close()
            absent = error.value in _ABSENT and not was_open
            raise (SourceAbsent if absent else SourceError)(reason_of(error)) from error
        except Exception:  # of a library that is not as it should be: it begins anew
            self.close()
            raise
        return readings

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                log(logger, logging.DEBUG, "NVML does not end", reason=str(error))
        self._devices = []

    def _start(self) -> None:
        self._count("")
        pynvml.nvmlInit()
        self._open = True
        self._events = NvmlEvents(self._count)
        self._enumerate()
        self._opened_at_ns = self._chore_at_ns = self._clock_ns()

    def _is_worth_reopening(self) -> bool:
        missing = len(self._devices) < self._devices_seen
        return missing and self._clock_ns() - self._opened_at_ns >= REOPEN_PERIOD_NS

    def _count(self, key: str) -> None:
        self.calls[key] += 1

    def _read(self, device: _Device) -> DeviceReading:
        bare = DeviceReading(
            device.key,
            self._clock_ns(),
            name=device.name,
            ordinal=device.ordinal,
            mig=device.mig,
        )
        try:
            memory = self._memory(device)
        except pynvml.NVMLError as error:
            if error.value in _WHOLE_SOURCE:
                raise
            return replace(bare, problem=reason_of(error))
        total, free, used = int(memory.total), int(memory.free), int(memory.used)
        problem = figures_problem(total, free, used)
        if problem:
            return replace(bare, problem=problem)
        self._note_own(device, bare.measured_at_ns)
        return replace(
            bare,
            own_bytes=device.own_bytes,
            own_measured_at_ns=device.own_measured_at_ns,
            total_bytes=total,
            free_bytes=free,
            used_bytes=used,
            reserved_bytes=int(getattr(memory, "reserved", 0)),
            processes=device.processes,
            slowed_by_heat=device.slowed_by_heat,
            events=dict(self._event_counts.get(device.gpu_key, {})),
        )

    def _note_own(self, device: _Device, now_ns: int) -> None:
        """What the backends' processes use: other tenants do not show in it."""
        if self._is_own is None or now_ns - device.processes_at_ns < self._own_period_ns:
            return
        device.processes_at_ns = now_ns
        found = self._ask(device, "processes", self._processes, None)
        if found is None:
            return
        device.processes = found
        own = [process.used_bytes for process in found if self._is_own(process.pid)]
        known = [used for used in own if used is not None]
        told = bool(own) and len(known) == len(own)
        device.own_bytes = sum(known) if told else 0
        device.own_measured_at_ns = now_ns if told else 0

    def _memory(self, device: _Device) -> Any:
        """By the second version, which tells the driver's own part; older drivers have the first
        one only, in which that part is used."""
        if self._memory_version is not None:
            self._count(device.key)
            try:
                return pynvml.nvmlDeviceGetMemoryInfo(device.handle, version=self._memory_version)
            except pynvml.NVMLError as error:
                if error.value not in (
                    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                    pynvml.NVML_ERROR_NOT_SUPPORTED,
                    getattr(pynvml, "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", 25),
                ):
                    raise
                self._memory_version = None
        self._count(device.key)
        return pynvml.nvmlDeviceGetMemoryInfo(device.handle)

    def _do_chores(self, something_failed: bool) -> None:
        now_ns = self._clock_ns()
        if something_failed and now_ns - self._enumerated_at_ns >= ENUMERATE_PERIOD_NS:
            self._enumerate()
            return
        if now_ns - self._chore_at_ns < CHORE_PERIOD_NS:
            return
        self._chore_at_ns = now_ns
        self._chores += 1
        if self._chores % ENUMERATE_EVERY == 0:
            self._enumerate()
            return
        for device in self._devices:
            self._look_around(device)
        if self._events is not None:
            for key, kind in self._events.take():
                self._event_counts.setdefault(key, Counter())[kind] += 1

    def _look_around(self, device: _Device) -> None:
        """What is good to know and no look depends on."""
        if self._is_own is None:
            device.processes = self._ask(device, "processes", self._processes, ())
        device.name = device.name or self._ask(device, "name", self._name, "")
        device.slowed_by_heat = bool(self._ask(device, "heat", self._slowdowns, 0) & _HEAT)
        if device.mig:
            return  # errors are of the GPU, told for its first instance only by events
        errors = self._ask(device, "ecc", self._ecc_errors, -1)
        if errors > device.ecc_errors >= 0:
            counts = self._event_counts.setdefault(device.gpu_key, Counter())
            counts["ecc uncorrected"] += errors - device.ecc_errors
        device.ecc_errors = errors

    def _ask(
        self, device: _Device, what: str, question: Callable[[_Device], Any], none: Any
    ) -> Any:
        """The answer; `none` where this driver or device has none."""
        if what in device.unsupported:
            return none
        try:
            return question(device)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            code = getattr(error, "value", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            if code in _WHOLE_SOURCE:
                raise
            # A device that fails is told by its memory.
            if code in (
                pynvml.NVML_ERROR_NOT_SUPPORTED,
                pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                pynvml.NVML_ERROR_NO_PERMISSION,
            ):
                device.unsupported.add(what)
            return none

    def _processes(self, device: _Device) -> tuple[ProcessMemory, ...]:
        self._count(device.key)
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle)
        if found:
            self._count(device.key)  # the first one tells how many
        return tuple(ProcessMemory(int(p.pid), p.usedGpuMemory) for p in found)

    def _name(self, device: _Device) -> str:
        self._count(device.gpu_key)
        return str(pynvml.nvmlDeviceGetName(device.gpu))

    def _slowdowns(self, device: _Device) -> int:
        self._count(device.gpu_key)
        # The name of drivers since 535 and the one before.
        ask = getattr(
            pynvml,
            "nvmlDeviceGetCurrentClocksThrottleReasons",
            getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None),
        )
        return int(ask(device.gpu)) if ask is not None else 0  # of all its instances

    def _ecc_errors(self, device: _Device) -> int:
        self._count(device.key)
        kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        return int(pynvml.nvmlDeviceGetTotalEccErrors(device.handle, kind, since))

    def _enumerate(self) -> None:
        """Sees which devices there are; one that cannot be asked is left out."""
        self._enumerated_at_ns = self._clock_ns()
        before = {device.key: device for device in self._devices}
        found: list[_Device] = []
        self._count("")
        for ordinal in range(pynvml.nvmlDeviceGetCount()):
            try:
                found += self._devices_of_gpu(ordinal)
            except pynvml.NVMLError as error:
                if error.value in _WHOLE_SOURCE:
                    raise
                log(logger, logging.DEBUG, "a GPU cannot be asked", ordinal=ordinal,
                    reason=str(error))  # fmt: skip
        for device in found:
            known = before.get(device.key)
            if known is not None:
                device.processes, device.ecc_errors = known.processes, known.ecc_errors
                device.own_bytes = known.own_bytes
                device.own_measured_at_ns = known.own_measured_at_ns
                device.slowed_by_heat = known.slowed_by_heat
                device.unsupported = known.unsupported
                device.name = known.name
                # That was calls enough for a while.
                device.processes_at_ns = self._enumerated_at_ns
        self._devices = found
        self._devices_seen = max(self._devices_seen, len(found))
        if self._events is not None:
            self._events.watch({device.gpu_key: device.gpu for device in found})

    def _devices_of_gpu(self, ordinal: int) -> list[_Device]:
        """The GPU, or the instances that it is divided into."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(ordinal)
        key = pynvml.nvmlDeviceGetUUID(handle)
        self.calls[key] += 2
        # Its name can wait until there is less to ask.
        whole = _Device(handle, key, "", ordinal, mig=False, gpu_key=key, gpu=handle)
        try:
            self._count(key)
            divided, _ = pynvml.nvmlDeviceGetMigMode(handle)
        except pynvml.NVMLError as error:
            if error.value in _WHOLE_SOURCE or error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
                raise
            return [whole]  # no MIG on this device, or in this driver
        if not divided:
            return [whole]
        self._count(key)
        slots = min(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle), MIG_INSTANCES_MAX)
        return [found for slot in range(slots) if (found := self._instance(whole, slot))]

    def _instance(self, gpu: _Device, slot: int) -> _Device | None:
        try:
            self._count(gpu.key)
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, slot)
            key = pynvml.nvmlDeviceGetUUID(handle)
            self._count(key)
        except pynvml.NVMLError as error:
            if error.value in _WHOLE_SOURCE:
                raise
            return None  # nothing in this slot
        return _Device(handle, key, gpu.name, gpu.ordinal, True, gpu.key, gpu.handle)
