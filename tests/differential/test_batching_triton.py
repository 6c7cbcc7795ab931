"""`batching: triton` against the real batcher: the same requests straight and through.

Straight, the Triton has the dynamic_batching block; behind the scheduler it has none.

Both hold every model's first batch until HELD requests are queued, so that the batches that follow
are the batcher's own choice. The model tells each request which execution it ran in, how many rows
that had and which row was its own.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.protobuf import json_format, text_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler

pytestmark = pytest.mark.e2e

HELD = 8
HOLD = {"TRITONSERVER_DELAY_SCHEDULER": str(HELD)}
MAX_BATCH_SIZE = 8
# Time that must pass between two requests; it begins when the first is queued.
PAUSE_S = 0.05
TIMEOUT_S = 30


@dataclass(frozen=True)
class Sent:
    """One request: rows of `columns` values."""

    rows: int = 1
    columns: int = 1
    priority: int = 0
    timeout_us: int = 0
    pause: bool = False  # before it
    error: int = 0  # the model answers it with that one of its errors

    def message(self, model: str, number: int) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=model, id=f"r{number}")
        shape = [self.rows, self.columns]
        request.inputs.add(name="INPUT0", datatype="FP32", shape=shape)
        request.raw_input_contents.append(np.full(shape, -self.error, np.float32).tobytes())
        if self.priority:
            request.parameters["priority"].int64_param = self.priority
        if self.timeout_us:
            request.parameters["timeout"].int64_param = self.timeout_us
        return request


@dataclass(frozen=True)
class Case:
    block: Mapping[str, Any]
    sent: list[Sent]
    sizes: list[int] = field(default_factory=list)  # of the batches, in their order


THREE_LEVELS = {"priority_levels": 3, "default_priority_level": 2}
QUEUE = {"max_queue_size": 100}  # with a queue policy Triton forms no batch ahead of an instance
EXPIRING = {"default_timeout_microseconds": 10_000_000, "allow_timeout_override": True}
LONG_DELAY = {"max_queue_delay_microseconds": 1_500_000, "default_queue_policy": QUEUE}

# All in one batch, each error in one of other columns: what fails often is not merged any more.
ONE_BAD = {"preferred_batch_size": [HELD], "max_queue_delay_microseconds": 20_000_000}
ERRORS = 10  # of the recorder

CASES = {
    "preferred_size": Case({"preferred_batch_size": [4]}, [Sent()] * 8, [4, 4]),
    "best_preferred_size": Case({"preferred_batch_size": [3, 5]}, [Sent()] * 8, [5, 3]),
    "empty_block": Case({}, [Sent()] * 8, [8]),
    "rows_do_not_fit": Case({}, [Sent(rows=3)] * 8, [6, 6, 6, 6]),
    "other_shapes_end_a_batch": Case(
        {"preferred_batch_size": [8]},
        [Sent(columns=c) for c in (1, 1, 2, 1, 2, 2, 1, 1)],
        [2, 1, 1, 2, 2],
    ),
    "delay_for_the_rest": Case(
        {"preferred_batch_size": [6], **LONG_DELAY}, [Sent()] * 8, [6, 2]
    ),
    "exceeded_delay": Case(
        {
            "preferred_batch_size": [4],
            "max_queue_delay_microseconds": 1_000,
            "default_queue_policy": QUEUE,
        },
        [*[Sent()] * 7, Sent(pause=True)],
        [8],
    ),
    "priorities": Case(
        {"preferred_batch_size": [2], **THREE_LEVELS},
        [Sent(priority=p) for p in (3, 0, 1, 2, 3, 1, 9, 1)],
        [2, 2, 2, 2],
    ),
    "full_level": Case(
        {
            "preferred_batch_size": [8],
            "priority_levels": 2,
            "default_priority_level": 2,
            "priority_queue_policy": {1: {"max_queue_size": 3}},
        },
        [*[Sent(priority=1)] * 5, *[Sent()] * 5],
        [8],
    ),
    "timeout_rejects": Case(
        {"preferred_batch_size": [8], "default_queue_policy": EXPIRING},
        [*[Sent(timeout_us=1_000)] * 3, *[Sent()] * 4, Sent(pause=True)],
        [5],
    ),
    "timeout_delays": Case(
        {
            "preferred_batch_size": [4],
            "default_queue_policy": {**EXPIRING, "timeout_action": "DELAY"},
        },
        [*[Sent(timeout_us=1_000)] * 3, *[Sent()] * 4, Sent(pause=True)],
        [4, 4],
    ),
    "timeout_without_override": Case(
        {"preferred_batch_size": [8], "default_queue_policy": {
            "default_timeout_microseconds": 10_000_000}},
        [*[Sent(timeout_us=1_000)] * 7, Sent(pause=True)],
        [8],
    ),
}  # fmt: skip


@dataclass
class Way:
    """One gRPC endpoint, and how many of a model's requests wait there."""

    stub: service_pb2_grpc.GRPCInferenceServiceStub
    waiting: Callable[[str], int]


def metric(url: str, name: str, model: str) -> int:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(int(s.value) for s in samples if s.name == name and s.labels["model"] == model)


def write_models(repository: Path, *, with_blocks: bool) -> None:
    for name, case in {**CASES, "one_bad": Case(ONE_BAD, [])}.items():
        models.write_model(
            repository,
            name,
            source="recorder",
            inputs=[models.Tensor("INPUT0", dims=(-1,))],
            outputs=[models.Tensor("SEEN", "INT32", (3,))],
            max_batch_size=MAX_BATCH_SIZE,
            parameters={"execution_ms": "20"},
        )
        if with_blocks:
            config = model_config_pb2.ModelConfig()
            config.dynamic_batching.SetInParent()
            json_format.ParseDict(case.block, config.dynamic_batching)
            with (repository / name / "config.pbtxt").open("a") as text:
                text.write(text_format.MessageToString(config))


@pytest.fixture(scope="module")
def ways(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Way, Way]]:
    """Straight to the Triton with the blocks, and through the scheduler."""
    blocked, plain = tmp_path_factory.mktemp("blocked"), tmp_path_factory.mktemp("plain")
    write_models(blocked, with_blocks=True)
    write_models(plain, with_blocks=False)
    config = tmp_path_factory.mktemp("config") / "infersched.yaml"
    own = {
        name: {"batching": "triton", "dynamic_batching": case.block}
        for name, case in {**CASES, "one_bad": Case(ONE_BAD, [])}.items()
    }
    with (
        EmbeddedTriton(blocked, environment=HOLD) as straight,
        EmbeddedTriton(plain) as behind,
    ):
        config.write_text(yaml.safe_dump({"backends": [behind.grpc_address], "models": own}))
        with (
            ServedScheduler(["--config", str(config)], environment=HOLD) as served,
            grpc.insecure_channel(straight.grpc_address) as to_triton,
            grpc.insecure_channel(served.address) as to_scheduler,
        ):
            triton_url, our_url = str(straight.metrics_url), served.metrics_url
            yield (
                Way(
                    service_pb2_grpc.GRPCInferenceServiceStub(to_triton),
                    lambda model: metric(triton_url, "nv_inference_pending_request_count", model),
                ),
                Way(
                    service_pb2_grpc.GRPCInferenceServiceStub(to_scheduler),
                    lambda model: metric(our_url, "infersched_queue_depth", model),
                ),
            )


def outcome(call: Any) -> tuple[Any, ...]:
    """(execution, rows of it, first row) or (code, text)."""
    try:
        reply = call.result(TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    seen = np.frombuffer(reply.raw_output_contents[0], np.int32)
    return tuple(int(number) for number in seen[:3])


def run(way: Way, model: str, case: Case) -> list[tuple[Any, ...]]:
    """The outcomes in the order of sending; each request is queued before the next is sent."""
    ordered = len(set(case.sent)) > 1
    calls: list[Any] = []
    for number, sent in enumerate(case.sent):
        if sent.pause:
            queued = time.monotonic()
            wait_until(lambda queued=queued: time.monotonic() > queued + PAUSE_S, "a pause")  # type: ignore[misc]
        calls.append(way.stub.ModelInfer.future(sent.message(model, number), timeout=TIMEOUT_S))
        last = number + 1 == len(case.sent)
        if ordered and not last:
            wait_until(
                lambda: way.waiting(model) + sum(c.done() for c in calls) == len(calls),
                f"request {number} of {model} is queued or answered",
                TIMEOUT_S,
            )
    return [outcome(call) for call in calls]


def statistics(way: Way, model: str) -> dict[str, Any]:
    answer = way.stub.ModelStatistics(
        service_pb2.ModelStatisticsRequest(name=model), timeout=TIMEOUT_S
    )
    (stats,) = answer.model_stats
    return {
        "inferences": stats.inference_count,
        "executions": stats.execution_count,
        "success": stats.inference_stats.success.count,
        "fail": stats.inference_stats.fail.count,
        "queue": stats.inference_stats.queue.count,
        "sizes": {b.batch_size: b.compute_infer.count for b in stats.batch_stats},
    }


@pytest.mark.parametrize("name", CASES)
def test_same_batches_order_and_refusals(ways: tuple[Way, Way], name: str) -> None:
    case = CASES[name]
    straight, through = ways
    expected, found = run(straight, name, case), run(through, name, case)
    if len(set(case.sent)) == 1:
        # Which of equal requests is first is up to the connection.
        expected, found = sorted(expected), sorted(found)
    assert found == expected
    batches = sorted({seen[:2] for seen in expected if len(seen) == 3})
    assert [rows for _, rows in batches] == case.sizes
    assert statistics(through, name) == statistics(straight, name)


@pytest.mark.parametrize("error", range(1, ERRORS + 1))
def test_one_bad_request_fails_alone(ways: tuple[Way, Way], error: int) -> None:
    sent = [Sent(columns=error, error=error if number == 3 else 0) for number in range(HELD)]
    straight, through = (run(way, "one_bad", Case(ONE_BAD, sent)) for way in ways)
    good = [number for number, seen in enumerate(straight) if len(seen) == 3]
    assert good == [0, 1, 2, 4, 5, 6, 7]
    assert through[3] == straight[3]
    assert all(len(through[number]) == 3 for number in good), through
    # They ran together, and in halves again.
    assert {rows for _, rows, _ in through[4:]} == {HELD // 2}


def test_a_request_above_the_largest_batch_is_refused(ways: tuple[Way, Way]) -> None:
    sent = Sent(rows=MAX_BATCH_SIZE + 1).message("empty_block", 0)
    straight, through = (outcome(way.stub.ModelInfer.future(sent)) for way in ways)
    assert through == straight
    assert straight[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_shows_the_block(ways: tuple[Way, Way], name: str) -> None:
    request = service_pb2.ModelConfigRequest(name=name)
    straight, through = (way.stub.ModelConfig(request).config for way in ways)
    assert through.dynamic_batching == straight.dynamic_batching
