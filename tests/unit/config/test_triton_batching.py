"""`batching: triton` as configured: the block that acts, as the data plane gets it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.catalog import ModelSpec, model_spec
from scheduler.config import Batching
from scheduler.control.desired import batching_message
from scheduler.control.triton_batching import LEVELS_MAX, held_requests, triton_block
from scheduler.v1 import dataplane_pb2 as pb

BLOCK = """
dynamic_batching {
  preferred_batch_size: [4, 8]
  max_queue_delay_microseconds: 300
  preserve_ordering: true
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 5 }
  priority_queue_policy {
    key: 3
    value {
      timeout_action: DELAY
      default_timeout_microseconds: 1000
      allow_timeout_override: true
    }
  }
}
"""


def spec(text: str = "", max_batch_size: int = 16) -> ModelSpec:
    config = text_format.Parse(
        f'name: "m" max_batch_size: {max_batch_size} {text}', model_config_pb2.ModelConfig()
    )
    return model_spec("1", service_pb2.ModelMetadataResponse(name="m"), config)


def message(text: str = "", *, max_batch_size: int = 16, **batching: Any) -> pb.Batching:
    return batching_message(
        Batching(batching="triton", **batching), spec(text, max_batch_size), merge=True
    )


def test_the_models_own_block_acts() -> None:
    plain = pb.TritonQueuePolicy(requests_max=5)
    delaying = pb.TritonQueuePolicy(
        delay_timed_out=True, timeout_ns=1_000_000, timeout_override=True
    )
    assert message(BLOCK).triton == pb.TritonBatching(
        dynamic=True,
        preferred_rows=[4, 8],
        queue_delay_max_ns=300_000,
        preserve_ordering=True,
        levels=[plain, plain, delaying],
        default_level=2,
    )


def test_an_empty_block_prefers_the_largest_batch() -> None:
    triton = message("dynamic_batching {}").triton
    assert (triton.dynamic, list(triton.preferred_rows), len(triton.levels)) == (True, [16], 1)


def test_without_a_block_requests_run_alone() -> None:
    triton = message().triton
    assert (triton.dynamic, len(triton.levels), triton.default_level) == (False, 1, 1)


def test_a_configured_block_acts_instead() -> None:
    triton = message(BLOCK, dynamic_batching={"preferred_batch_size": [2]}).triton
    assert (list(triton.preferred_rows), len(triton.levels)) == ([2], 1)


def test_our_own_keys_do_not_act() -> None:
    own = message(
        "dynamic_batching {}", max_batch_rows=4, slo="50ms", max_queue_age="1s", priority_levels=4
    )
    assert (own.rows_max, own.slo_ns, own.queue_age_max_ns) == (16, 0, 0)


def test_own_batching_says_nothing_of_tritons() -> None:
    assert not batching_message(Batching(), spec(BLOCK), merge=True).HasField("triton")


@pytest.mark.parametrize(
    "text", ["model_transaction_policy { decoupled: true }", "sequence_batching {}"]
)
def test_what_goes_to_triton_as_it_comes_is_batched_there(text: str) -> None:
    assert not message(text).HasField("triton")


def test_very_many_levels_and_long_timeouts_are_bounded() -> None:
    huge = 2**64 - 1
    triton = message(
        f"dynamic_batching {{ priority_levels: {huge} default_priority_level: {huge} "
        f"default_queue_policy {{ default_timeout_microseconds: {huge} }} }}"
    ).triton
    assert (len(triton.levels), triton.default_level) == (LEVELS_MAX, LEVELS_MAX)
    assert triton.levels[0].timeout_ns == 2**63 - 1


def test_the_block_shown_has_tritons_defaults() -> None:
    block = triton_block(Batching(batching="triton"), spec("dynamic_batching {}"))
    assert block is not None
    assert list(block.preferred_batch_size) == [16]


@pytest.mark.parametrize(
    ("batching", "complaint"),
    [
        ({"batching": "triton", "dynamic_batching": {"preferred": [4]}}, "no field named"),
        ({"dynamic_batching": {}}, "dynamic_batching needs batching: triton"),
        ({"batching": "tritons"}, "'own', 'load_aware', 'fixed_delay' or 'triton'"),
    ],
)
def test_mistakes_are_told(batching: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Batching(**batching)


@pytest.mark.parametrize(
    ("text", "held"),
    [("8", 8), (" +8x", 8), ("", 0), ("x", 0), ("-3", 0), ("0", 0), (str(10**12), 2**32 - 1)],
)
def test_the_hold_is_read_as_atoi_does(text: str, held: int) -> None:
    assert held_requests({"TRITONSERVER_DELAY_SCHEDULER": text}) == held
    assert held_requests({}) == 0


@pytest.mark.parametrize(
    ("batching", "text", "holds"),
    [
        ("own", "", True),
        ("own", "sequence_batching {}", False),
        ("triton", "dynamic_batching {}", True),
        ("triton", "", False),
    ],
)
def test_only_models_that_form_batches_hold_them(
    batching: Any, text: str, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONSERVER_DELAY_SCHEDULER", "5")
    built = batching_message(Batching(batching=batching), spec(text), merge=True)
    assert built.hold_requests == (5 if holds else 0)
