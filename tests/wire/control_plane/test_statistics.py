"""ModelStatistics: the data plane's numbers in Triton's form, and the pool's own on request."""

from __future__ import annotations

import time

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.calls import infer_request, rows
from tests.wire.control_plane.words import TIMEOUT_S, Cold, failure, outcome

pytestmark = pytest.mark.e2e

Request = service_pb2.ModelStatisticsRequest
MS = 1_000_000
OF_BACKENDS = (("infersched-statistics", "backends"),)


@pytest.mark.parametrize("name", ["identity", "nope", "", "identity\0x", "nope\0x", "\0"])
@pytest.mark.parametrize("version", ["", "1", "7", "abc", "-1", "abc\0x", "7\0"])
def test_unknown_models_and_versions_are_answered_as_by_triton(
    cold: Cold, direct: Cold, name: str, version: str
) -> None:
    request = Request(name=name, version=version)
    ours, theirs = (outcome(stub, "ModelStatistics", request) for stub in (cold, direct))
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        assert [m.name for m in ours.model_stats] == [m.name for m in theirs.model_stats]


def test_the_numbers_are_the_data_planes(
    control: ControlPlane, data_plane: FakeDataPlane, cold: Cold
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    data_plane.statistics.models.add(
        index=index,
        rows=40,
        batches=3,
        completed=pb.CountedTime(count=20, total_ns=900 * MS),
        failed=pb.CountedTime(count=1, total_ns=10 * MS),
        rejected=pb.CountedTime(count=2, total_ns=20 * MS),
        cancelled=pb.CountedTime(count=3, total_ns=30 * MS),
        queue_ns=300 * MS,
        backend_ns=500 * MS,
        last_answer_age_ns=2_000 * MS,
        batch_sizes=[
            pb.BatchSize(rows=8, batches=1, backend_ns=7 * MS),
            pb.BatchSize(rows=16, batches=2, backend_ns=20 * MS),
        ],
    )
    before_ms = time.time_ns() // MS
    answer = cold.ModelStatistics(Request(name="identity"), timeout=TIMEOUT_S)
    after_ms = time.time_ns() // MS
    assert list(data_plane.asked_statistics[-1].model_indices) == [index]
    (stats,) = answer.model_stats
    assert (stats.name, stats.version) == ("identity", "1")
    assert before_ms - 2_000 <= stats.last_inference <= after_ms - 2_000
    assert (stats.inference_count, stats.execution_count) == (40, 3)
    seen = stats.inference_stats
    assert (seen.success.count, seen.success.ns) == (20, 900 * MS)
    assert (seen.fail.count, seen.fail.ns) == (6, 60 * MS)
    assert (seen.queue.count, seen.queue.ns) == (20, 300 * MS)
    assert (seen.compute_infer.count, seen.compute_infer.ns) == (20, 500 * MS)
    assert (seen.compute_input.count, seen.compute_output.count) == (20, 20)
    assert seen.HasField("cache_hit")
    assert [
        (b.batch_size, b.compute_infer.count, b.compute_infer.ns) for b in stats.batch_stats
    ] == [
        (8, 1, 7 * MS),
        (16, 2, 20 * MS),
    ]


def test_a_model_without_requests_is_listed_like_tritons(cold: Cold, direct: Cold) -> None:
    request = Request(name="waits")
    ours, theirs = (stub.ModelStatistics(request, timeout=TIMEOUT_S) for stub in (cold, direct))
    assert ours == theirs


def test_the_pools_own_numbers_are_shown_on_request(
    pair_control: ControlPlane, pair: list[Cold]
) -> None:
    cold = Cold(pair_control.cold_channel)
    before = cold.ModelStatistics(Request(), metadata=OF_BACKENDS, timeout=TIMEOUT_S)
    for stub, size in ((pair[0], 2), (pair[0], 2), (pair[1], 2), (pair[1], 5)):
        stub.ModelInfer(infer_request(rows(1, size)), timeout=TIMEOUT_S)
    earlier = next(m for m in before.model_stats if m.name == "identity")

    def shown() -> service_pb2.ModelStatistics:
        request = Request(name="identity")
        answer = cold.ModelStatistics(request, metadata=OF_BACKENDS, timeout=TIMEOUT_S)
        return answer.model_stats[0]

    # A Triton counts a request after it has answered it.
    wait_until(lambda: shown().execution_count - earlier.execution_count == 4, "all is counted")
    stats = shown()
    assert stats.inference_count - earlier.inference_count == 11
    assert stats.inference_stats.success.count - earlier.inference_stats.success.count == 4
    sizes = {b.batch_size: b.compute_infer.count for b in stats.batch_stats}
    for batch in earlier.batch_stats:
        sizes[batch.batch_size] -= batch.compute_infer.count
    assert {size: count for size, count in sizes.items() if count} == {2: 3, 5: 1}
    newest = max(
        s.ModelStatistics(Request(), timeout=30).model_stats[0].last_inference for s in pair
    )
    assert stats.last_inference == newest


def test_an_unknown_view_is_refused(cold: Cold) -> None:
    view = (("infersched-statistics", "nobody"),)
    code, text = failure(lambda: cold.ModelStatistics(Request(), metadata=view, timeout=30))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "scheduler, backends" in text


def test_without_a_data_plane_there_are_none(
    control: ControlPlane, data_plane: FakeDataPlane, cold: Cold, triton: EmbeddedTriton
) -> None:
    data_plane.vanish()
    request = Request(name="identity")
    wait_until(
        lambda: isinstance(outcome(cold, "ModelStatistics", request), tuple), "it is noticed"
    )
    code, _ = failure(lambda: cold.ModelStatistics(request, timeout=30))
    assert code is grpc.StatusCode.UNAVAILABLE
    shown = cold.ModelStatistics(request, metadata=OF_BACKENDS, timeout=TIMEOUT_S)
    assert [model.name for model in shown.model_stats] == ["identity"]
