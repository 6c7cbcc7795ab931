"""The configuration of device memory: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.config.device_memory import DEVICES_MAX
from tests.unit.config.config_text import check_problem, problems


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("nvml: on", ""),
        ("nvml: off", ""),
        ("nvml: maybe", "device_memory.nvml"),
        ("polling: 1s", "device_memory.polling"),
        ("poll_perod: 1s", "did you mean poll_period?"),
        ("poll_period: 79ms", "greater than or equal to 80000000"),
        ("poll_period: 80ms", ""),
        ("poll_period: 300ms", "idle_poll_period is below poll_period"),
        ("stale_after: 200ms", "stale_after is not above idle_poll_period"),
        ("lost_after: 500ms", "lost_after is not above stale_after"),
        ("headroom_part: 5", "for 5 % write 0.05"),
        ("headroom_part: -0.1", "no part of the memory"),
        ("headroom_part: 0", ""),
        ("headroom_min: much", "expected a size"),
        ("devices: {GPU-a: {headroom: 1GiB}}", "did you mean headroom_"),
        ("devices: {left: {total: 4GiB, used: 3GiB}}", ""),
        ("devices: {left: {total: 4GiB, used: 4GiB}}", "used 4GiB is not below total 4GiB"),
        ("devices: {'a b': {}}", "is no device: write GPU-<uuid>"),
    ],
)
def test_keys_of_device_memory(tmp_path: Path, keys: str, problem: str) -> None:
    check_problem(tmp_path, f"device_memory: {{{keys}}}\n", problem)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("devices: [GPU-a, MIG-b]", ""),
        ("devices: GPU-a", ""),
        ("devices: ['']", "is no device"),
        ("metrics: off", ""),
        ("metrics: auto", ""),
        ("metrics: triton:8002", ""),
        ("metrics: triton", "expected HOST:PORT"),
        ("metrics: ':8002'", "needs a host and a port"),
    ],
)
def test_keys_of_a_backend(tmp_path: Path, keys: str, problem: str) -> None:
    check_problem(tmp_path, f"backends: [{{address: 'a:1', {keys}}}]\n", problem)


def test_no_more_devices_than_the_data_plane_knows(tmp_path: Path) -> None:
    def of(count: int) -> str:
        names = ", ".join(f"d{n}: {{total: 1GiB}}" for n in range(count))
        return problems(tmp_path, f"device_memory: {{devices: {{{names}}}}}\n")

    assert of(DEVICES_MAX) == ""
    assert "at most 64" in of(DEVICES_MAX + 1)


def test_the_gpus_of_a_model(tmp_path: Path) -> None:
    assert problems(tmp_path, "models: {m: {gpus: [0, 63]}}\n") == ""
    assert "models.m.gpus" in problems(tmp_path, "models: {m: {gpus: [64]}}\n")
