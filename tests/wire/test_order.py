"""Which requests go first, and how long a batch waits for more."""

from __future__ import annotations

import threading
import time

import grpc
import numpy as np

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request, Response, identity, values_of


def first_values(fake: FakeTriton) -> list[float]:
    """The value that names each dispatched request, over all batches."""
    return [float(row[0]) for request in fake.requests for row in values_of(request)]


def submit(stub: Stub, plane: DataPlane, value: int, **request: object) -> grpc.Future:
    """Sends one and waits until it is queued, so that arrivals have a known order.

    Without `timeout_s` it has no deadline: clients round theirs, which would order them too.
    """
    before = plane.model_snapshot().queued_requests
    timeout_s = request.pop("timeout_s", None)
    call = stub.ModelInfer.future(infer_request(rows(value), **request), timeout=timeout_s)  # type: ignore[arg-type]
    plane.wait_queued(before + 1)
    return call


def test_urgent_levels_go_first_and_inside_a_level_the_first_come(
    plane: DataPlane, fake: FakeTriton
) -> None:
    model = identity_model(merge=False, priority_levels=3, default_priority=2, staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(0)), timeout=60)]
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        for value, priority in [(31, 3), (21, 2), (11, 1), (22, 0), (12, 1), (32, 3), (23, 9)]:
            parameters = {"priority": priority}
            calls.append(submit(stub, plane, value, parameters=parameters))
        fake.release()
        for call in calls:
            call.result()
    assert first_values(fake) == [0, 11, 12, 21, 22, 23, 31, 32]


def test_inside_a_level_the_earliest_deadline_goes_first(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(merge=False, staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(0)), timeout=60)]
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        calls.append(submit(stub, plane, 3, timeout_s=50))
        calls.append(submit(stub, plane, 1, timeout_s=20))
        # The budget in the request counts like the deadline of the call; the earlier one wins.
        calls.append(submit(stub, plane, 2, parameters={"timeout": 30_000_000}))
        fake.release()
        for call in calls:
            call.result()
    assert first_values(fake) == [0, 1, 2, 3]


def test_a_batch_waits_for_more_rows_up_to_the_delay(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(queue_delay_max_ns=2_000_000_000, staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        started = time.monotonic()
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(2)]
        for value, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(value))
        waited_s = time.monotonic() - started
    assert fake.batch_rows() == [2]
    assert 2 <= waited_s < 20


def test_a_full_batch_does_not_wait(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(queue_delay_max_ns=60_000_000_000, staged_batches_max=0)
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        calls = [stub.ModelInfer.future(infer_request(rows(n, 16)), timeout=30) for n in range(4)]
        for call in calls:
            call.result()
    assert fake.batch_rows() == [64]


def test_a_preferred_size_does_not_wait(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(
        queue_delay_max_ns=60_000_000_000, preferred_rows=[4], staged_batches_max=0
    )
    plane.apply([model], [fake.address])
    with connected(plane.address) as stub:
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(4)]
        for call in calls:
            call.result()
    assert fake.batch_rows() == [4]


def test_a_deadline_cuts_the_wait_short(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(queue_delay_max_ns=60_000_000_000, staged_batches_max=0)
    plane.apply([model], [fake.address])

    def slow(request: Request, context: grpc.ServicerContext) -> Response:
        threading.Event().wait(2)
        return identity(request)

    fake.behaviour = slow
    with connected(plane.address) as stub:
        # A full batch: the model is taken to need two seconds. It is not so slow any more.
        stub.ModelInfer(infer_request(rows(1, 64)), timeout=30)
        fake.behaviour = identity
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=5) for n in (2, 3)]
        for n, call in zip((2, 3), calls, strict=True):
            np.testing.assert_array_equal(output(call.result()), rows(n))


def test_staged_batches_keep_the_backend_busy(plane: DataPlane, fake: FakeTriton) -> None:
    """Once the time of a batch is known, one more is sent before the running one is back."""
    plane.apply([identity_model(max_batch_size=1, staged_batches_max=1)], [fake.address])
    with connected(plane.address) as stub:
        stub.ModelInfer(infer_request(rows(0)), timeout=30)
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(3)]
        wait_until(lambda: len(fake.requests) == 3, "one batch runs and one is staged")
        plane.wait_queued(1)
        assert len(plane.snapshot().batches) == 2
        fake.release()
        for call in calls:
            call.result()
