"""What is read from the configurations of models."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import ModelSpec, TensorSpec, batching_advice, model_specs
from tests.unit.control.triton_answers import config, spec


def described(**configs: str) -> dict[str, ModelSpec]:
    """The models of one Triton, by name."""
    metadata = service_pb2.ModelMetadataResponse()
    found = model_specs({(n, "1"): (metadata, config(text)) for n, text in configs.items()})
    return {name: model for (name, _), model in found.items()}


def test_tensors_are_read_without_the_batch_dimension() -> None:
    found = spec(
        """name: "m" max_batch_size: 8
        input { name: "A" data_type: TYPE_STRING dims: [-1, 2] optional: true }
        input { name: "B" data_type: TYPE_BF16 dims: 1 allow_ragged_batch: true }
        input { name: "S" data_type: TYPE_INT32 dims: 3 is_shape_tensor: true }
        output { name: "O" data_type: TYPE_UINT8 dims: [2, 2] }"""
    )
    assert found.inputs == (
        TensorSpec("A", "BYTES", (-1, 2), optional=True),
        TensorSpec("B", "BF16", (1,), ragged=True),
        TensorSpec("S", "INT32", (3,), shape_tensor=True),
    )
    assert found.outputs == (TensorSpec("O", "UINT8", (2, 2)),)


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ("instance_group { kind: KIND_CPU count: 3 }", 3),
        ("instance_group { kind: KIND_GPU count: 2 gpus: [0, 1, 2] }", 6),
        ("instance_group { kind: KIND_MODEL count: 1 }", 1),
        (
            "instance_group { kind: KIND_CPU count: 1 } instance_group { kind: KIND_CPU count: 4 }",
            5,
        ),
        (
            "instance_group { kind: KIND_CPU count: 1 }"
            "instance_group { kind: KIND_CPU count: 4 passive: true }",
            1,
        ),
        ("", 1),
    ],
)
def test_instances_are_summed_over_groups_and_gpus(groups: str, instances: int) -> None:
    assert spec(f'name: "m" {groups}').instances == instances


def test_an_ensemble_has_the_instances_of_its_widest_step() -> None:
    ensemble = 'name: "e" ensemble_scheduling { step { model_name: "a" } step { model_name: "b" } }'
    found = described(
        a='name: "a" instance_group { kind: KIND_CPU count: 2 }',
        b='name: "b" instance_group { kind: KIND_CPU count: 5 }',
        e=ensemble,
    )
    assert found["e"].instances == 5


def test_an_ensemble_has_the_sequences_of_its_steps() -> None:
    idle = "sequence_batching { max_sequence_idle_microseconds: %d }"
    found = described(
        o='name: "o" ensemble_scheduling { step { model_name: "i" } }',
        i='name: "i" ensemble_scheduling { step { model_name: "a" } step { model_name: "b" } }',
        p='name: "p" ensemble_scheduling { step { model_name: "c" } }',
        a=f'name: "a" {idle % 2_000_000}',
        b=f'name: "b" {idle % 3_000_000}',
        c='name: "c"',
    )
    of = {name: model.sequence_idle_us for name, model in found.items()}
    assert of == {"a": 2_000_000, "b": 3_000_000, "c": 0, "i": 3_000_000, "o": 3_000_000, "p": 0}


def test_flags() -> None:
    assert spec('name: "m" model_transaction_policy { decoupled: true }').decoupled
    assert spec('name: "m" sequence_batching { }').sequence
    assert not spec().decoupled
    assert not spec().sequence


@pytest.mark.parametrize(
    ("block", "flagged"),
    [
        ("", False),
        ("dynamic_batching { }", False),
        ("dynamic_batching { preferred_batch_size: 1 }", False),
        ("dynamic_batching { max_queue_delay_microseconds: 100 }", True),
        ("dynamic_batching { preferred_batch_size: [4, 8] }", True),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: [8] }", False),
    ],
)
def test_a_batcher_that_waits_is_flagged_with_the_fix(block: str, flagged: bool) -> None:
    advice = batching_advice(config(f'name: "m" {block}'))
    assert ("dynamic_batching { }" in advice) is flagged
