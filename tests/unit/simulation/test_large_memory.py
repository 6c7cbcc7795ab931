"""Long queues are kept on huge pages, where the system has them to give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# A process of its own: what earlier queues of this one gave back is advised already.
PROGRAM = """
from pathlib import Path
from scheduler._native.simulation import DecisionLoad

def advised_bytes():
    total = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Size":
            size = int(value.split()[0]) * 1024
        elif key == "VmFlags" and "hg" in value.split():
            total += size
    return total

for queue_length in 1_000, 100_000:
    load = DecisionLoad(models=1, queue_length=queue_length)
    load.fill()
    print(advised_bytes())
    assert load.run(10_000)
"""


@pytest.mark.skipif(not SETTING.exists(), reason="the kernel has no transparent huge pages")
def test_a_long_queue_is_on_huge_pages_and_a_short_one_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert short == 0
    # Records of a few hundred bytes, and the order of the queue.
    assert long > 16 << 20
