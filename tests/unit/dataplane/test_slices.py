"""Short slices of the processor: asked for by the thread itself, whatever its nice value."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = """
import os
from scheduler.dataplane.slices import ask_for_short_slices, slice_ns
os.nice(3)
if {batch}:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
before = slice_ns()
ask_for_short_slices()
nice = os.getpriority(os.PRIO_PROCESS, 0)
print(before != slice_ns(), slice_ns(), nice, os.sched_getscheduler(0))
"""


def asked(*, batch: bool) -> list[str]:
    command = [sys.executable, "-c", ASK.format(batch=batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def test_a_short_slice_is_asked_for_and_the_nice_value_kept() -> None:
    changed, slice_ns, nice, policy = asked(batch=False)
    assert (int(nice) >= 3, int(policy)) == (True, os.SCHED_OTHER)
    if kernel() < (6, 12) or sys.platform != "linux":
        pytest.skip("this kernel has no slices of a thread's own")
    assert (changed, int(slice_ns)) == ("True", 500_000)


def test_a_policy_that_somebody_chose_is_left_alone() -> None:
    changed, _, _, policy = asked(batch=True)
    assert (changed, int(policy)) == ("False", os.SCHED_BATCH)
