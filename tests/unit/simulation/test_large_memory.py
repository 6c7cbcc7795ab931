"""Long queues are kept on huge pages, where the system has them to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler._native.simulation import DecisionLoad

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def advised_bytes() -> int:
    """Of this process, what it asked to be on huge pages."""
    total = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Size":
            size = int(value.split()[0]) * 1024
        elif key == "VmFlags" and "hg" in value.split():
            total += size
    return total


@pytest.mark.skipif(not SETTING.exists(), reason="the kernel has no transparent huge pages")
def test_a_long_queue_is_on_huge_pages_and_a_short_one_is_not() -> None:
    before = advised_bytes()
    short = DecisionLoad(models=1, queue_length=1_000)
    short.fill()
    assert advised_bytes() == before
    long = DecisionLoad(models=1, queue_length=100_000)
    long.fill()
    # Records of a few hundred bytes, and the order of the queue.
    assert advised_bytes() - before > 16 << 20
    assert long.run(10_000)
