"""How long the data plane's thread runs before others do: not for long, and therefore soon.

On busy processors a thread waits until those before it have had their slices, some milliseconds
each. Linux (since 6.12, the EEVDF scheduler) lets a thread ask for a shorter slice, without any
privilege: it has the same part of the processor in smaller pieces, and is on it sooner when it
wakes up. Older kernels take the call and change nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

SLICE_NS = 500_000
# sched_setattr and sched_getattr, which libc does not have.
_SYSTEM_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("IIQiIQQQ")


def ask_for_short_slices() -> None:
    """For the calling thread; does nothing where it is not known how, or another policy was set."""
    calls = _SYSTEM_CALLS.get(platform.machine())
    if calls is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    # A sandbox that forbids it has said so: nothing depends on it.
    ctypes.CDLL(None).syscall(calls[0], 0, ctypes.create_string_buffer(wanted), 0)


def slice_ns() -> int:
    """What the calling thread asked for; 0: nothing, or nobody knows."""
    calls = _SYSTEM_CALLS.get(platform.machine())
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if calls is None or ctypes.CDLL(None).syscall(calls[1], 0, found, _ATTRIBUTES.size, 0) != 0:
        return 0
    return int(_ATTRIBUTES.unpack(found.raw)[5])
