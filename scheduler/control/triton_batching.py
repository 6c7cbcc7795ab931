"""`batching: triton`: a model's dynamic_batching block as the data plane's batcher reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from scheduler.backends.catalog import ModelSpec
from scheduler.config import Batching
from scheduler.v1 import dataplane_pb2 as pb

# Triton's own switch for deterministic tests: batches are held until so many requests are queued.
HOLD_VARIABLE = "TRITONSERVER_DELAY_SCHEDULER"
# More priority levels than this act as this many.
LEVELS_MAX = 256
_INT64_MAX = 2**63 - 1
_UINT32_MAX = 2**32 - 1


def held_requests(environment: Mapping[str, str] = os.environ) -> int:
    """How many requests a model's queue must have before the first batch; 0: batches form at once.

    The number is read as Triton reads it, by C's atoi.
    """
    number = re.match(r"\s*\+?([0-9]+)", environment.get(HOLD_VARIABLE, ""))
    return min(int(number[1]), _UINT32_MAX) if number else 0


def forms_batches(batching: Batching, spec: ModelSpec) -> bool:
    """Whether the model's requests wait for others here, as seen from its own settings."""
    if spec.decoupled or spec.sequence or spec.max_batch_size <= 0:
        return False
    return batching.batching == "own" or triton_block(batching, spec) is not None


def triton_block(
    batching: Batching, spec: ModelSpec
) -> model_config_pb2.ModelDynamicBatching | None:
    """The block that acts on the model's requests: the configured one, else the model's own."""
    block = model_config_pb2.ModelDynamicBatching()
    if batching.dynamic_batching is not None:
        json_format.ParseDict(dict(batching.dynamic_batching), block)
    elif spec.config.HasField("dynamic_batching"):
        block.CopyFrom(spec.config.dynamic_batching)
    else:
        return None
    if not block.preferred_batch_size and spec.max_batch_size > 0:
        block.preferred_batch_size.append(spec.max_batch_size)
    return block


def triton_message(batching: Batching, spec: ModelSpec) -> pb.TritonBatching | None:
    """None: requests are not batched as Triton does, or reach Triton's own batcher as they come."""
    if batching.batching != "triton" or spec.decoupled or spec.sequence:
        return None
    block = triton_block(batching, spec)
    if block is None:
        return pb.TritonBatching(dynamic=False, levels=[pb.TritonQueuePolicy()], default_level=1)
    message = pb.TritonBatching(
        dynamic=True,
        preferred_rows=block.preferred_batch_size,
        queue_delay_max_ns=_nanoseconds(block.max_queue_delay_microseconds),
        preserve_ordering=block.preserve_ordering,
        default_level=max(min(block.default_priority_level, LEVELS_MAX), 1),
    )
    for level in range(1, max(min(block.priority_levels, LEVELS_MAX), 1) + 1):
        own = block.priority_levels > 0 and level in block.priority_queue_policy
        policy = block.priority_queue_policy[level] if own else block.default_queue_policy
        message.levels.append(_policy_message(policy))
    return message


def _policy_message(policy: model_config_pb2.ModelQueuePolicy) -> pb.TritonQueuePolicy:
    return pb.TritonQueuePolicy(
        delay_timed_out=policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY,
        timeout_ns=_nanoseconds(policy.default_timeout_microseconds),
        timeout_override=policy.allow_timeout_override,
        requests_max=policy.max_queue_size,
    )


def _nanoseconds(microseconds: int) -> int:
    return min(microseconds * 1000, _INT64_MAX)
