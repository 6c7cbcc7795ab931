"""What the data plane says of its requests when ModelStatistics is asked for."""

from __future__ import annotations

import time

import grpc

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_error, infer_request, rows
from tests.wire.fake_triton import FakeTriton


def test_requests_and_batches_are_counted(plane: DataPlane, fake: FakeTriton) -> None:
    models = [identity_model(0, staged_batches_max=0), identity_model(3, "other")]
    assert plane.apply(models, [fake.address]) == ""
    started_ns = time.monotonic_ns()
    with connected(plane.address) as stub:
        first = fake.occupy(stub)
        calls = [stub.ModelInfer.future(infer_request(rows(n, 2)), timeout=30) for n in range(3)]
        plane.wait_queued(3)
        fake.release()
        for call in (first, *calls):
            call.result()
    elapsed_ns = time.monotonic_ns() - started_ns
    statistics = plane.statistics()
    assert set(statistics) == {0, 3}
    seen = statistics[0]
    assert (seen.rows, seen.batches) == (7, 2)
    assert [(size.rows, size.batches) for size in seen.batch_sizes] == [(1, 1), (6, 1)]
    assert seen.completed.count == 4
    assert 0 < seen.queue_ns < seen.completed.total_ns < 4 * elapsed_ns
    # Every request has its wait and its time at the backend, and nothing else.
    assert seen.queue_ns + seen.backend_ns == seen.completed.total_ns
    assert sum(size.backend_ns for size in seen.batch_sizes) < seen.backend_ns
    assert 0 <= seen.last_answer_age_ns < elapsed_ns + 60e9
    assert (seen.failed.count, seen.rejected.count, seen.cancelled.count) == (0, 0, 0)
    idle = statistics[3]
    assert (idle.rows, idle.batches, idle.last_answer_age_ns) == (0, 0, -1)
    assert set(plane.statistics(3)) == {3}
    assert plane.statistics(7) == {}


def test_what_did_not_end_well_is_told_apart(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(staged_batches_max=0, queue_requests_max=2, merge=False)
    assert plane.apply([model], [fake.address]) == ""
    with connected(plane.address) as stub:
        first = fake.occupy(stub)
        gone = stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
        plane.wait_queued(1)
        failing = stub.ModelInfer.future(infer_request(rows(2)), timeout=30)
        plane.wait_queued(2)
        infer_error(stub, infer_request(rows(3)))
        gone.cancel()
        plane.wait_queued(1)
        fake.behaviour = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "broken")
        fake.release()
        assert failing.code() == grpc.StatusCode.INTERNAL
        first.exception()
    wait_until(lambda: plane.counters()["in_flight"] == 0, "all is answered")
    seen = plane.statistics()[0]
    assert seen.rejected.count == 1
    assert seen.cancelled.count == 1
    assert seen.completed.count + seen.failed.count == 2
    assert seen.failed.count >= 1


def test_a_model_that_was_removed_begins_anew(
    plane: DataPlane, stub: Stub, fake: FakeTriton
) -> None:
    stub.ModelInfer(infer_request(rows(1)), timeout=30)
    assert plane.statistics()[0].rows == 1
    assert plane.apply([], [fake.address]) == ""
    assert plane.statistics() == {}
    assert plane.apply([identity_model()], [fake.address]) == ""
    assert plane.statistics()[0].rows == 0
