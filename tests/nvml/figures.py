"""The figures that the tests' libnvidia-ml.so.1 tells, in a file that any process may change.

    figures = Figures.create(path, [gpu("GPU-aaaa", total_bytes=16 * 2**30)])
    figures.devices[0].other_bytes = 4 * 2**30          # another tenant takes 4 GiB
    with figures.locked():                              # several writers: an allocator
        figures.set_process(0, os.getpid(), 2**30)

The file is one `_File`: a header (8 bytes `FAKENVML`, u64 calls of all, i32 an error that every
call returns, u32 milliseconds that every call takes) and 16 `Device` of fixed size. All is
little-endian and aligned as in C; what is zero is absent. NVML tells used = `other_bytes` + the
processes' and free = total - reserved - used, or `told_free_bytes` where that is not 0. Standard
library only: a Triton python model uses this module, too (`Figures(path)`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FILE_VARIABLE = "INFERSCHED_TEST_NVML"
LIBRARY = "libnvidia-ml.so.1"
DEVICES, PROCESSES, EVENTS, TEXT = 16, 32, 16, 96
NOT_A_MIG_INSTANCE = -1
# What a process uses, where the driver does not tell it.
NOT_TOLD = 2**64 - 1

# Error codes of nvml.h and types of its events.
GPU_IS_LOST, UNKNOWN, LIBRARY_DRIVER_MISMATCH, DRIVER_NOT_LOADED = 15, 999, 18, 9
ECC_UNCORRECTED, XID = 0x2, 0x8
HEAT = 0x40


class Process(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint64), ("used_bytes", ctypes.c_uint64))


class Event(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint64), ("data", ctypes.c_uint64))


class Device(ctypes.Structure):
    """`gpu` is -1, or of a MIG instance the place of its GPU, which is then `divided`."""

    _fields_ = (
        ("uuid", ctypes.c_char * TEXT),
        ("name", ctypes.c_char * TEXT),
        ("total_bytes", ctypes.c_uint64),
        ("reserved_bytes", ctypes.c_uint64),
        ("other_bytes", ctypes.c_uint64),
        ("told_free_bytes", ctypes.c_uint64),
        ("slowdowns", ctypes.c_uint64),
        ("ecc_errors", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("events_written", ctypes.c_uint64),
        ("error", ctypes.c_int32),
        ("gpu", ctypes.c_int32),
        ("present", ctypes.c_uint32),
        ("divided", ctypes.c_uint32),
        ("events", Event * EVENTS),
        ("processes", Process * PROCESSES),
    )

    @property
    def used_bytes(self) -> int:
        return int(self.other_bytes + sum(p.used_bytes for p in self.processes if p.pid))

    @property
    def free_bytes(self) -> int:
        return int(max(self.total_bytes - self.reserved_bytes - self.used_bytes, 0))


class _File(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_char * 8),
        ("calls", ctypes.c_uint64),
        ("error", ctypes.c_int32),
        ("delay_ms", ctypes.c_uint32),
        ("devices", Device * DEVICES),
    )


def gpu(uuid: str, total_bytes: int = 16 * 2**30, **more: Any) -> dict[str, Any]:
    """The fields of a device; `gpu` makes it a MIG instance of the GPU at that place."""
    more.setdefault("gpu", NOT_A_MIG_INSTANCE)
    return {"uuid": uuid, "total_bytes": total_bytes, "present": 1, "name": "Test GPU", **more}


class Figures:
    """The mapped file; what is written is told from the next call on."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with open(self.path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_File))
        self._file = _File.from_buffer(self._memory)
        assert self._file.magic == b"FAKENVML", f"{path} is no file of figures"

    @classmethod
    def create(cls, path: Path, devices: Sequence[dict[str, Any]] = ()) -> Figures:
        path.write_bytes(b"FAKENVML".ljust(ctypes.sizeof(_File), b"\0"))
        figures = cls(path)
        for place, fields in enumerate(devices):
            figures.put(place, fields)
        return figures

    def put(self, place: int, fields: dict[str, Any]) -> Device:
        """Puts a device of `gpu()` at this place."""
        device = self.devices[place]
        for name, value in fields.items():
            setattr(device, name, value.encode() if isinstance(value, str) else value)
        return device

    @property
    def devices(self) -> Any:
        return self._file.devices

    @property
    def calls(self) -> int:
        return int(self._file.calls)

    def fail(self, error: int) -> None:
        """Every call fails so; 0: none does."""
        self._file.error = error

    def slow_down(self, delay_ms: int) -> None:
        """Every call takes this long."""
        self._file.delay_ms = delay_ms

    def happen(self, place: int, kind: int, data: int = 0) -> None:
        """An event of the device."""
        device = self.devices[place]
        event = device.events[device.events_written % EVENTS]
        event.type, event.data = kind, data
        device.events_written += 1

    def set_process(self, place: int, pid: int, used_bytes: int) -> None:
        """What this process has on the device; 0: nothing. Call it `locked` when others write."""
        processes = self.devices[place].processes
        mine = next((p for p in processes if p.pid == pid), None)
        slot = mine or next(p for p in processes if not p.pid)
        slot.used_bytes = used_bytes
        slot.pid = pid if used_bytes else 0

    def forget_dead(self, place: int) -> None:
        """Frees what processes had that are no more, as a driver does."""
        for process in self.devices[place].processes:
            if process.pid and not Path(f"/proc/{process.pid}").exists():
                process.pid = process.used_bytes = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes that lock from writing."""
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def build_library(folder: Path, old: bool = False) -> Path:
    """Compiles libnvidia-ml.so.1 into the folder, for LD_LIBRARY_PATH; returns its path.

    `old` leaves out the functions of drivers from 510 on.
    """
    library = folder / LIBRARY
    source = Path(__file__).with_name("nvml.c")
    flags = ["-DNVML_OLD"] if old else []
    subprocess.run(
        ["cc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags,
         f"-Wl,-soname,{LIBRARY}", "-o", str(library), str(source)],
        check=True,
    )  # fmt: skip
    return library
