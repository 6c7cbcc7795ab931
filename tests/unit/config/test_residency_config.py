"""The configuration of model residency: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.config import load_settings
from tests.unit.config.config_text import check_problem, problems

GIB = 2**30


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("mode: on_demand", ""),
        ("mode: on", ""),
        ("mode: off", ""),
        ("mode: lazy", "residency.mode"),
        ("mod: on", "did you mean mode?"),
        ("budget: 20GiB", ""),
        ("budget: none", ""),
        ("budget: 20 GB", ""),
        ("budget: lots", "expected a size"),
        ("budget: -1", "expected a size"),
        ("budgets: {GPU-a: 10GiB}", ""),
        ("budgets: {'GPU a': 10GiB}", "is no device"),
        ("min_residency: 5", "needs a unit"),
        ("min_residency: 0", ""),
        ("load_timeout: 10ms", "greater than or equal to"),
        ("pinned: [a]", "unknown key"),
    ],
)
def test_keys_of_residency(tmp_path: Path, keys: str, problem: str) -> None:
    check_problem(tmp_path, f"residency: {{{keys}}}\n", problem)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("residency: pinned", ""),
        ("residency: never", ""),
        ("residency: always", "models.big.residency"),
        ("weights: 3GiB", ""),
        ("weights: 5GiB", "models.big.weights"),
        ("weights: 5GiB", "above residency.budget 4GiB: it could never be loaded"),
    ],
)
def test_keys_of_a_model(tmp_path: Path, keys: str, problem: str) -> None:
    text = f"residency: {{mode: on_demand, budget: 4GiB}}\nmodels: {{big: {{{keys}}}}}\n"
    check_problem(tmp_path, text, problem)


def test_a_budget_above_a_fixed_device_is_refused(tmp_path: Path) -> None:
    fixed = "device_memory: {devices: {gpu: {total: 16GiB, used: 2GiB}}}\n"
    assert problems(tmp_path, f"{fixed}residency: {{budget: 14GiB}}\n") == ""
    found = problems(tmp_path, f"{fixed}residency: {{budget: 15GiB}}\n")
    assert "residency.budget" in found
    assert "15GiB is above the 14GiB that device_memory.devices.gpu has" in found
    found = problems(tmp_path, f"{fixed}residency: {{budgets: {{gpu: 15GiB}}}}\n")
    assert "residency.budgets.gpu" in found


def test_a_budget_of_a_device_goes_before_that_of_all(tmp_path: Path) -> None:
    path = tmp_path / "infersched.yaml"
    path.write_text("residency: {budget: 4GiB, budgets: {GPU-a: 2GiB, GPU-b: none}}\n")
    residency = load_settings(path, environment={}).settings.residency
    assert not residency.on
    found = [residency.budget_of(device) for device in ("GPU-a", "GPU-b", "GPU-c")]
    assert found == [2 * GIB, 0, 4 * GIB]
