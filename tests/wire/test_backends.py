"""Several backends: spread, death, return, and leaving without anybody noticing."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.load import load
from tests.wire.calls import (
    Stub,
    connected,
    error_info,
    error_of,
    infer_error,
    infer_request,
    output,
    rows,
)
from tests.wire.fake_triton import Behaviour, FakeTriton, Request, Response, identity
from tests.wire.proxy import Proxy


@pytest.fixture
def pair(plane: DataPlane) -> Iterator[tuple[FakeTriton, FakeTriton]]:
    """Two fakes that serve the same model, applied."""
    with FakeTriton() as one, FakeTriton() as two:
        model = identity_model(backends=(0, 1), staged_batches_max=0)
        assert plane.apply([model], [one.address, two.address]) == ""
        yield one, two
        one.release()
        two.release()


def serving(plane: DataPlane, backend: int) -> bool:
    states = {entry.index: entry.state for entry in plane.snapshot().backends}
    return states[backend] == pb.BACKEND_STATE_SERVING


def occupy_both(stub: Stub, one: FakeTriton, two: FakeTriton) -> list[grpc.Future]:
    """One request in flight at each, held until it is released there; their values are 0 and 1."""
    one.hold()
    two.hold()
    calls = []
    for n in (0, 1):
        calls.append(stub.ModelInfer.future(infer_request(rows(n)), timeout=30))
        wait_until(lambda n=n: len(one.requests) + len(two.requests) == n + 1, "it is out")  # type: ignore[misc]
    assert len(one.requests) == len(two.requests) == 1
    return calls


def test_work_is_spread_over_free_backends(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    with connected(plane.address) as stub:
        calls = occupy_both(stub, one, two)
        calls.append(stub.ModelInfer.future(infer_request(rows(2)), timeout=30))
        plane.wait_queued(1)
        one.release()
        two.release()
        for value, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(value))


def test_an_oversize_request_is_spread_and_put_together(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    with connected(plane.address) as stub:
        values = rows(1, 400)
        response = stub.ModelInfer(infer_request(values), timeout=30)
        np.testing.assert_array_equal(output(response), values)
    assert sum(one.batch_rows() + two.batch_rows()) == 400
    assert one.requests
    assert two.requests


def test_a_backend_that_dies_under_load_costs_no_request(plane: DataPlane) -> None:
    with FakeTriton() as one, FakeTriton() as two, Proxy(two.address) as wire:
        plane.apply([identity_model(backends=(0, 1))], [one.address, wire.address])
        with load(plane.address) as seen:
            for _ in range(3):
                wire.cut()
                wait_until(lambda: not serving(plane, 1), "its death is seen")
                before = len(one.requests)
                wait_until(lambda n=before: len(one.requests) > n + 10, "the other one serves")  # type: ignore[misc]
                wire.restore()
                before = len(two.requests)
                wait_until(lambda n=before: len(two.requests) > n + 5, "it is used again")  # type: ignore[misc]
    assert seen.errors == []


def test_work_in_flight_at_a_dead_backend_goes_elsewhere(plane: DataPlane) -> None:
    with FakeTriton() as one, FakeTriton() as two, Proxy(two.address) as wire:
        model = identity_model(backends=(0, 1), staged_batches_max=0)
        plane.apply([model], [one.address, wire.address])
        with connected(plane.address) as stub:
            calls = occupy_both(stub, one, two)
            wire.cut()
            one.release()
            for n, call in enumerate(calls):
                np.testing.assert_array_equal(output(call.result()), rows(n))


def test_a_silent_backend_is_given_up_within_about_a_second(plane: DataPlane) -> None:
    """A stopped process: its kernel takes what is sent, and nothing comes back."""
    with FakeTriton() as one, FakeTriton() as two, Proxy(two.address) as wire:
        plane.apply([identity_model(backends=(0, 1))], [one.address, wire.address])
        with load(plane.address) as seen:
            started = time.monotonic()
            wire.stall()
            wait_until(lambda: not serving(plane, 1), "its silence is noticed")
            noticed_s = time.monotonic() - started
            wire.restore()
            before = len(two.requests)
            wait_until(lambda: len(two.requests) > before + 5, "it is used again")
    assert seen.errors == []
    assert noticed_s < 10


def test_a_data_plane_that_was_stopped_blames_no_backend(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    """Suspended with a call out, for longer than it gives a silent backend."""
    call = fake.occupy(stub)
    plane.process.send_signal(signal.SIGSTOP)
    threading.Event().wait(1.5)
    plane.process.send_signal(signal.SIGCONT)
    probes = fake.probes
    wait_until(lambda: fake.probes > probes + 1, "it runs and probes again")
    assert serving(plane, 0)
    assert fake.batch_rows() == [1], "nothing was sent again"
    fake.release()
    np.testing.assert_array_equal(output(call.result()), rows(7777.0))


def test_a_backend_that_never_speaks_is_not_used(plane: DataPlane) -> None:
    """It accepts connections, but sends no SETTINGS."""
    with FakeTriton() as one, socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        model = identity_model(backends=(0, 1), staged_batches_max=0)
        plane.apply([model], [one.address, address], connected=False)
        with connected(plane.address) as stub:
            for n in range(20):
                response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
                np.testing.assert_array_equal(output(response), rows(n))
        assert not serving(plane, 1)


def test_lost_work_that_is_not_idempotent_is_unavailable(plane: DataPlane) -> None:
    with FakeTriton() as one, Proxy(one.address) as wire, connected(plane.address) as stub:
        plane.apply([identity_model(idempotent=False)], [wire.address])
        call = one.occupy(stub)
        wire.cut()
        assert error_of(call).code() == grpc.StatusCode.UNAVAILABLE


def refusing(code: grpc.StatusCode, text: str) -> Behaviour:
    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(code, text)
        raise AssertionError("abort raises")

    return behaviour


DENIED = "Request for unknown model: 'identity' "
STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
# What Triton says to new requests after SIGTERM, or while it unloads the model.
LEAVING = {
    "no versions": (grpc.StatusCode.NOT_FOUND, DENIED + "has no available versions"),
    "not found": (grpc.StatusCode.NOT_FOUND, DENIED + "is not found"),
    "version": (grpc.StatusCode.NOT_FOUND, DENIED + "version 1 is not found"),
    "not ready": (grpc.StatusCode.UNAVAILABLE, DENIED + "version 1 is not at ready state"),
    "server": (grpc.StatusCode.UNAVAILABLE, "Server not ready"),
    "scheduler": (grpc.StatusCode.UNAVAILABLE, STOPPING),
    "with an id": (grpc.StatusCode.UNAVAILABLE, f"[request id: <id_unknown>] {STOPPING}"),
    "in a namespace": (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'models::identity' has no available versions",
    ),
}
# The same of a step, to an ensemble: those before it may have run.
STEP_DENIED = "Request for unknown model: 'step' version 3 is not at ready state"
STEP_LEAVING = {
    "step stops": f"in ensemble 'identity', [request id: <id_unknown>] {STOPPING}",
    "step unloaded": f"in ensemble 'identity', {STEP_DENIED}",
    "step of a step": f"in ensemble 'identity', in ensemble 'inner', {STEP_DENIED}",
}
LEAVING |= {name: (grpc.StatusCode.UNAVAILABLE, text) for name, text in STEP_LEAVING.items()}
LEAVING["step not found"] = (
    grpc.StatusCode.NOT_FOUND,
    "in ensemble 'identity', Request for unknown model: 'step' is not found",
)
leaving = refusing(*LEAVING["no versions"])


@pytest.mark.parametrize("answer", LEAVING.values(), ids=LEAVING)
def test_a_leaving_backend_leaks_no_error(
    answer: tuple[grpc.StatusCode, str], plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    with load(plane.address) as seen:
        two.behaviour = refusing(*answer)
        event = plane.wait_event("backend_leaving").backend_leaving
        assert (event.backend_index, event.model_index) == (1, 0)
        before = len(one.requests)
        wait_until(lambda: len(one.requests) > before + 20, "the other one serves")
        two.kill()
    assert seen.errors == []


def test_a_leaving_backend_that_stays_is_tried_again(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    """The control plane decides; without news from it the data plane asks again."""
    _, two = pair
    with load(plane.address) as seen:
        two.behaviour = leaving
        plane.wait_event("backend_leaving")
        two.behaviour = identity
        before = len(two.requests)
        wait_until(lambda: len(two.requests) > before + 5, "it is used again")
    assert seen.errors == []


def test_an_ensemble_that_may_have_run_in_part_is_not_run_again_unless_idempotent(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    model = identity_model(backends=(0, 1), staged_batches_max=0, idempotent=False)
    assert plane.apply([model], [one.address, two.address]) == ""
    text = STEP_LEAVING["step stops"]
    one.behaviour = two.behaviour = refusing(grpc.StatusCode.UNAVAILABLE, text)
    with connected(plane.address) as stub:
        error = infer_error(stub, infer_request(rows(1)))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, text)
    assert len(one.requests) + len(two.requests) == 1
    plane.wait_event("backend_leaving")


# What Triton's queue policies say of requests that did not run, of a step's, too.
QUEUE = {
    "full": "[request id: <id_unknown>] Exceeds maximum queue size",
    "expired": "[request id: <id_unknown>] Request timeout expired",
    "backlog": "timeout of the corresponding sequence has been expired",
    "step full": "in ensemble 'identity', [request id: <id_unknown>] Exceeds maximum queue size",
    "step expired": "in ensemble 'identity', [request id: 7] Request timeout expired",
}


@pytest.mark.parametrize("text", QUEUE.values(), ids=QUEUE)
def test_a_queue_policy_of_a_backend_sends_requests_elsewhere(
    text: str, plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    """It stays in use: its queue may have room the next moment."""
    one, two = pair
    with load(plane.address) as seen:
        two.behaviour = refusing(grpc.StatusCode.UNAVAILABLE, text)
        refused, before = len(two.requests), len(one.requests)
        wait_until(lambda: len(two.requests) > refused, "it is asked")
        wait_until(lambda: len(one.requests) > before + 20, "the other one serves")
    assert seen.errors == []
    assert plane.events_seen("backend_leaving") == []


def test_a_merged_batch_that_a_queue_turned_away_stays_whole(plane: DataPlane) -> None:
    """Nothing is wrong with its members."""
    with FakeTriton() as one, connected(plane.address) as stub:
        plane.apply([identity_model(staged_batches_max=0)], [one.address])

        def third_is_late(request: Request, context: grpc.ServicerContext) -> Response:
            if len(one.requests) == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, QUEUE["expired"])
            return identity(request)

        one.behaviour = third_is_late
        calls = [one.occupy(stub)]
        calls += [stub.ModelInfer.future(infer_request(rows(n)), timeout=60) for n in range(4)]
        plane.wait_queued(4)
        one.release()
        for call in calls:
            call.result()
        assert one.batch_rows() == [1, 4, 4]
    assert plane.counters()["bisected_batches"] == 0


def test_a_backend_that_is_unavailable_at_once_swallows_nothing(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    """A proxy in front of a Triton that is gone answers faster than any other works."""
    one, two = pair
    text = "upstream connect error or disconnect/reset before headers"
    with load(plane.address) as seen:
        two.behaviour = refusing(grpc.StatusCode.UNAVAILABLE, text)
        refused, before = len(two.requests), len(one.requests)
        wait_until(lambda: len(two.requests) > refused + 3, "it is asked and asked again")
        wait_until(lambda: len(one.requests) > before + 20, "the other one serves")
        two.behaviour = identity
        before = len(two.requests)
        wait_until(lambda: len(two.requests) > before + 5, "it is used again")
    assert seen.errors == []
    assert plane.events_seen("backend_leaving") == []


def test_what_two_backends_answer_unavailable_is_unavailable(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    one.behaviour = refusing(grpc.StatusCode.UNAVAILABLE, "the index of one is away")
    two.behaviour = refusing(grpc.StatusCode.UNAVAILABLE, "the index of two is away")
    with connected(plane.address) as stub:
        error = infer_error(stub, infer_request(rows(1)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the index of two is away"
    assert (len(one.requests), len(two.requests)) == (1, 1)


def test_all_backends_leaving_is_unavailable_not_unknown(plane: DataPlane) -> None:
    with FakeTriton(leaving) as one, connected(plane.address) as stub:
        plane.apply([identity_model()], [one.address])
        error = infer_error(stub, infer_request(rows(1)))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "NO_BACKEND"


def test_a_drained_backend_gets_nothing_new(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    with connected(plane.address) as stub:
        calls = occupy_both(stub, one, two)
        backends = [
            pb.Backend(index=0, address=one.address, state=pb.BACKEND_STATE_SERVING),
            pb.Backend(index=1, address=two.address, state=pb.BACKEND_STATE_DRAINING),
        ]
        model = identity_model(backends=(0, 1), staged_batches_max=0)
        plane.apply([model], backends, connected=False)
        one.release()
        for n in range(5):
            stub.ModelInfer(infer_request(rows(n)), timeout=30)
        two.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
    assert len(two.requests) == 1


def test_a_removed_backend_gives_its_work_back(
    plane: DataPlane, pair: tuple[FakeTriton, FakeTriton]
) -> None:
    one, two = pair
    with connected(plane.address) as stub:
        calls = occupy_both(stub, one, two)
        plane.apply([identity_model(staged_batches_max=0)], [one.address])
        one.release()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))


def test_a_removed_model_is_unknown_and_its_queue_answered(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    running = fake.occupy(stub)
    queued = stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
    plane.wait_queued(1)
    plane.apply([identity_model(1, "other")], [fake.address])
    assert error_of(queued).code() == grpc.StatusCode.UNAVAILABLE
    error = infer_error(stub, infer_request(rows(1)))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    fake.release()
    np.testing.assert_array_equal(output(running.result()), rows(7777.0))


def test_a_queue_survives_until_its_backend_is_back(plane: DataPlane) -> None:
    with FakeTriton() as one, connected(plane.address) as stub:
        plane.apply([identity_model()], [one.address])
        stub.ModelInfer(infer_request(rows(0)), timeout=30)
        one.kill()
        wait_until(
            lambda: plane.snapshot().backends[0].state == pb.BACKEND_STATE_DOWN, "it is seen"
        )
        calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(5)]
        one.start()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))


def test_an_invalid_apply_changes_nothing(plane: DataPlane, stub: Stub, fake: FakeTriton) -> None:
    models = [identity_model(), identity_model(name="other")]  # both of index 0
    error = plane.apply(models, [fake.address], connected=False)
    assert "twice" in error
    stub.ModelInfer(infer_request(rows(1)), timeout=30)
    assert infer_error(stub, infer_request(rows(1), model="other")).code() == (
        grpc.StatusCode.NOT_FOUND
    )
