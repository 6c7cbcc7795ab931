"""Executors: which placements exclude each other, by the configuration and Triton's GPUs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from scheduler.backends.pool import BackendPool
from scheduler.config import Settings
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from scheduler.control.executors import gpus_of
from tests.unit.control.triton_answers import config, pool_of

GPU_0 = "instance_group { kind: KIND_GPU count: 2 gpus: 0 }"
GPU_1 = "instance_group { kind: KIND_GPU count: 1 gpus: 1 }"
BOTH = "instance_group { kind: KIND_GPU count: 1 gpus: [0, 1] }"
CPU = "instance_group { kind: KIND_CPU count: 4 }"


def groups_of(tmp_path: Path, pool: BackendPool, **models: object) -> dict[tuple[str, int], int]:
    settings = Settings.model_validate({"models": models})
    apply = DesiredState(tmp_path).build(pool, settings, Regions(tmp_path))
    return {
        (model.name, placement.backend_index): placement.executor_group
        for model in apply.models
        for placement in model.placements
    }


@pytest.mark.parametrize(
    ("groups", "gpus"),
    [
        (GPU_0, {0}),
        (BOTH, {0, 1}),
        (CPU, set()),
        (GPU_0 + CPU, {0}),
        ("instance_group { kind: KIND_GPU count: 1 gpus: 3 passive: true }", set()),
        ("instance_group { kind: KIND_AUTO count: 1 gpus: 2 }", {2}),
        ("instance_group { kind: KIND_GPU count: 1 }", None),
        ("instance_group { kind: KIND_MODEL count: 1 }", None),
        ("", set()),
    ],
)
def test_the_gpus_of_a_model(groups: str, gpus: set[int] | None) -> None:
    assert gpus_of(config(f'name: "m" {groups}')) == gpus


def test_instances_have_executors_of_their_own_by_default(tmp_path: Path) -> None:
    pool = pool_of(({"address": "a:1"}, {"m": GPU_0, "n": GPU_0}))
    assert groups_of(tmp_path, pool) == {("m", 0): 0, ("n", 0): 0}


def test_models_on_one_gpu_share_it(tmp_path: Path) -> None:
    pool = pool_of(({"address": "a:1", "exclusive": "gpu"},
                    {"m": GPU_0, "n": GPU_0, "o": GPU_1, "p": CPU}))  # fmt: skip
    found = groups_of(tmp_path, pool)
    assert found["m", 0] == found["n", 0] > 0
    assert found["o", 0] not in (0, found["m", 0])
    assert found["p", 0] == 0


def test_gpus_of_one_number_on_two_backends_are_two(tmp_path: Path) -> None:
    keys = {"exclusive": "gpu"}
    pool = pool_of(*(({"address": a, **keys}, {"m": GPU_0}) for a in ("a:1", "b:1")))
    found = groups_of(tmp_path, pool)
    assert 0 < found["m", 0] != found["m", 1] > 0


@pytest.mark.parametrize("exclusive", ["none", "gpu"])
def test_backends_that_name_one_executor_share_it(tmp_path: Path, exclusive: str) -> None:
    keys = {"executor": "host-7", "exclusive": exclusive}
    pool = pool_of(
        ({"address": "a:1", **keys}, {"m": GPU_0, "p": CPU}),
        ({"address": "b:1", **keys}, {"n": GPU_0}),
        ({"address": "c:1"}, {"n": GPU_0}),
    )
    found = groups_of(tmp_path, pool)
    assert found["m", 0] == found["n", 1] > 0
    assert found["n", 2] == 0
    # A processor's instances share a device that was named, but no GPU.
    assert found["p", 0] == (found["m", 0] if exclusive == "none" else 0)


def test_a_model_on_several_gpus_keeps_its_own_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    pool = pool_of(({"address": "a:1", "exclusive": "gpu"}, {"m": BOTH}))
    desired = DesiredState(tmp_path)
    for _ in range(2):
        apply = desired.build(pool, Settings(), Regions(tmp_path))
    assert apply.models[0].placements[0].executor_group == 0
    (line,) = [r.getMessage() for r in caplog.records if "exclusive" in r.getMessage()]
    assert "it has instances on GPUs 0, 1" in line
    (told,) = desired.inert["m", "1"]
    assert told == (
        "exclusive: gpu of backend a:1 does not act on it: it has instances on GPUs 0, 1"
    )


def test_a_gpu_that_the_configuration_names_is_shared_too(tmp_path: Path) -> None:
    pool = pool_of(({"address": "a:1", "exclusive": "gpu"},
                    {"m": GPU_0, "n": CPU, "o": "", "p": CPU}))  # fmt: skip
    found = groups_of(tmp_path, pool, n={"gpus": [0]}, o={"gpus": [1]})
    assert found["n", 0] == found["m", 0] > 0
    assert found["o", 0] not in (0, found["m", 0])
    assert found["p", 0] == 0


def test_a_backend_without_a_gpu_that_is_to_be_exclusive_is_told_once_and_with_its_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keys = {"exclusive": "gpu"}
    pool = pool_of(
        ({"address": "a:1", **keys}, {"m": CPU, "n": "", "s": "sequence_batching {}"}),
        ({"address": "b:1", **keys}, {"m": CPU, "o": GPU_0}),
        ({"address": "c:1", **keys}, {"s": "sequence_batching {}"}),
        ({"address": "d:1"}, {"m": CPU}),
    )
    desired = DesiredState(tmp_path)
    for _ in range(2):
        desired.build(pool, Settings(), Regions(tmp_path))
    (line,) = [r.getMessage() for r in caplog.records if "exclusive" in r.getMessage()]
    assert line.startswith(
        "exclusive: gpu does not act on backend a:1: none of its models has instances on a GPU"
    )
    text = "exclusive: gpu of backend a:1 does not act on it: it has no instances on a GPU"
    assert {key[0]: found for key, found in desired.inert.items() if found} == {
        "m": [text],
        "n": [text],
    }


def test_models_that_triton_schedules_are_in_no_group(tmp_path: Path) -> None:
    pool = pool_of(({"address": "a:1", "executor": "x"},
                    {"s": "sequence_batching {}",
                     "d": "model_transaction_policy { decoupled: true }"}))  # fmt: skip
    assert set(groups_of(tmp_path, pool).values()) == {0}


def test_a_number_stays_with_its_executor(tmp_path: Path) -> None:
    first = pool_of(
        ({"address": "a:1", "executor": "x"}, {"m": CPU}),
        ({"address": "b:1", "executor": "y"}, {"n": CPU}),
    )
    before = groups_of(tmp_path, first)
    again = groups_of(tmp_path, pool_of(({"address": "b:1", "executor": "y"}, {"n": CPU})))
    assert again["n", 1] == before["n", 1]
