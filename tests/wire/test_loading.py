"""Requests for models that can be loaded and are not: they wait, and go on in order."""

from __future__ import annotations

import time

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
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
from tests.wire.fake_triton import FakeTriton, values_of
from tests.wire.lazy_model import LAZY, LONG_S, SECOND_NS, World, lazy, lazy_model, park


def test_requests_wait_for_the_load_and_go_on_in_the_order_of_their_arrival(
    world: World, client: Stub
) -> None:
    """More than one turn of the loop takes. Without deadlines, by which a queue is ordered."""
    client.ModelInfer(infer_request(rows(1.0)))
    world.fake.requests.clear()
    values = [float(n) for n in range(700)]
    calls = [client.ModelInfer.future(lazy(value)) for value in values]
    world.plane.wait_parked(700)
    assert world.fake.requests == []
    (loading,) = world.plane.snapshot().loading
    assert (loading.name, loading.requests) == ("lazy", 700)
    assert loading.bytes >= 700 * 64
    assert loading.oldest_age_ns > 0
    # One at a time, as they were admitted.
    world.load(merge=False, staged_batches_max=0)
    for value, call in zip(values, calls, strict=True):
        np.testing.assert_array_equal(output(call.result(LONG_S)), rows(value))
    assert [float(values_of(request)[0, 0]) for request in world.fake.requests] == values
    counters = world.plane.counters(1)
    assert (counters["admitted"], counters["completed"]) == (700, 700)
    page = world.plane.page()
    assert page["loading_parked_total"] == page["loading_admitted_total"] == 700
    # Now it is like any other model.
    np.testing.assert_array_equal(output(client.ModelInfer(lazy(3.0), timeout=LONG_S)), rows(3.0))
    assert world.plane.page()["loading_parked_total"] == 700


def test_the_control_plane_is_told_once_for_each_wait(world: World, client: Stub) -> None:
    calls = [park(world, client, float(n)) for n in range(3)]
    wanted = world.wanted()
    assert (wanted.name, wanted.waiting) == ("lazy", 1)
    world.load()
    for call in calls:
        call.result(LONG_S)
    # It was unloaded: the next request wants it again.
    world.say()
    again = park(world, client)
    assert world.wanted().name == "lazy"
    world.load()
    again.result(LONG_S)
    world.plane.snapshot()
    assert not [event for event in world.plane.events if event.HasField("model_wanted")]


def test_a_control_plane_that_comes_back_is_told_who_waits(world: World, client: Stub) -> None:
    calls = [park(world, client, float(n)) for n in range(2)]
    world.wanted()
    world.plane.restart_control_plane()
    wanted = world.wanted()
    assert (wanted.name, wanted.waiting) == ("lazy", 2)
    world.load()
    for call in calls:
        call.result(LONG_S)


def test_the_queue_time_counts_from_the_arrival_and_the_objective_from_the_load(
    world: World, client: Stub
) -> None:
    """The load took longer than the objective and the age at which a queue is refused."""
    calls = [park(world, client, float(n)) for n in range(40)]
    all_wait_since = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() - all_wait_since > SECOND_NS // 4, "a quarter second")
    world.fake.hold()
    world.load(
        slo_ns=600 * SECOND_NS, queue_age_max_ns=SECOND_NS // 10, merge=False, staged_batches_max=0
    )
    world.plane.wait_queued(39, index=1)
    world.fake.release()
    for call in calls:
        call.result(LONG_S)
    counters = world.plane.counters(1)
    assert counters["slo_good"] == 40
    assert counters["queue_wait"][1] >= 40 * SECOND_NS // 4


def test_an_objective_shorter_than_the_load_refuses_nobody(world: World, client: Stub) -> None:
    call = park(world, client)
    wait_until(
        lambda: world.plane.snapshot().loading[0].oldest_age_ns > 3 * SECOND_NS, "three seconds"
    )
    world.load(slo_ns=3 * SECOND_NS)
    np.testing.assert_array_equal(output(call.result(LONG_S)), rows(1.0))


@pytest.mark.parametrize("by", ["grpc", "parameter"])
def test_a_request_waits_no_longer_than_its_deadline(world: World, client: Stub, by: str) -> None:
    late = lazy(1.0, parameters={"timeout": 300_000} if by == "parameter" else {})
    timeout = 2.0 if by == "grpc" else LONG_S
    patient = park(world, client, 2.0)
    error = infer_error(client, late, timeout=timeout)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    if by == "parameter":
        assert error.details() == "Request timeout expired"
        assert error_info(error).reason == "EXPIRED_IN_QUEUE"
        assert int(error_info(error).metadata["queuedMs"]) >= 300
    world.plane.wait_parked(1)
    page = world.plane.page()
    # grpcio resets its stream at the deadline, which may come first.
    assert page["loading_expired_total"] + page["loading_cancelled_total"] == 1
    world.load()
    patient.result(LONG_S)
    assert world.plane.counters(1)["admitted"] == 1


def test_cancelled_requests_leave_at_once(world: World, client: Stub) -> None:
    calls = [park(world, client, float(n)) for n in range(5)]
    held = world.plane.snapshot().host_bytes
    assert held > 0
    for call in (calls[2], calls[0], calls[4]):
        call.cancel()
    world.plane.wait_parked(2)
    wait_until(lambda: world.plane.snapshot().host_bytes == held * 2 // 5, "their bytes are free")
    world.load()
    for number in (1, 3):
        np.testing.assert_array_equal(output(calls[number].result(LONG_S)), rows(float(number)))
    assert world.plane.page()["loading_cancelled_total"] == 3


def test_a_client_that_vanishes_leaves_nothing(world: World, client: Stub) -> None:
    with connected(world.plane.address) as other:
        calls = [other.ModelInfer.future(lazy(float(n)), timeout=LONG_S) for n in range(20)]
        world.plane.wait_parked(20)
    world.plane.wait_parked(0)
    assert world.plane.snapshot().host_bytes == 0
    wait_until(lambda: all(call.done() for call in calls), "all have ended here, too")


def test_a_drain_answers_those_that_wait(world: World, client: Stub) -> None:
    calls = [client.ModelInfer.future(lazy(float(n)), timeout=LONG_S) for n in range(600)]
    world.plane.wait_parked(600)
    world.plane.drain(deadline_ms=60_000)
    for call in calls:
        error = error_of(call)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "DRAINING"
    assert world.plane.wait_drained().unanswered_requests == 0
    with connected(world.plane.address) as late:
        error = infer_error(late, lazy())
        assert error_info(error).reason == "DRAINING"
    assert world.plane.page()["loading_failed_total"] == 600


def test_large_requests_that_wait_do_not_hold_up_others_of_their_connection(
    world: World, client: Stub
) -> None:
    """Together they are larger than the window of a connection."""
    wide = np.ones((1, 1 << 19), np.float32)  # 2 MiB
    calls = [
        client.ModelInfer.future(infer_request(wide, model="lazy"), timeout=LONG_S)
        for _ in range(8)
    ]
    world.plane.wait_parked(8)
    response = client.ModelInfer(infer_request(rows(5.0)), timeout=LONG_S)
    np.testing.assert_array_equal(output(response), rows(5.0))
    world.say(lazy_model(dims=(-1,)))
    for call in calls:
        np.testing.assert_array_equal(output(call.result(LONG_S)), wide)
    # The window is what it was.
    for _ in range(8):
        client.ModelInfer(infer_request(wide, model="lazy"), timeout=LONG_S)


def test_requests_for_a_model_on_its_way_out_wait_for_the_next_load(
    world: World, client: Stub
) -> None:
    """What is queued or runs is finished."""
    world.load(staged_batches_max=0)
    world.fake.hold()
    first = client.ModelInfer.future(lazy(1.0), timeout=LONG_S)
    wait_until(lambda: len(world.fake.requests) == 1, "the backend has it")
    second = client.ModelInfer.future(lazy(2.0), timeout=LONG_S)
    world.plane.wait_queued(1, index=1)
    world.say(lazy_model(refusing=True, staged_batches_max=0))
    third = park(world, client, 3.0)
    world.fake.release()
    np.testing.assert_array_equal(output(first.result(LONG_S)), rows(1.0))
    np.testing.assert_array_equal(output(second.result(LONG_S)), rows(2.0))
    world.say()
    assert not third.done()
    assert world.wanted().name == "lazy"
    world.load()
    np.testing.assert_array_equal(output(third.result(LONG_S)), rows(3.0))


def test_a_model_that_is_ready_nowhere_is_not_loaded(world: World, client: Stub) -> None:
    model = lazy_model()
    model.placements[0].ready = False
    world.say(model)
    call = park(world, client)
    world.load()
    call.result(LONG_S)


def test_requests_wait_until_the_backend_of_the_model_is_reached(
    world: World, client: Stub
) -> None:
    """Longer than the engine keeps requests for backends that are away."""
    call = park(world, client)
    world.fake.kill()
    wait_until(
        lambda: world.plane.snapshot().backends[0].state == pb.BACKEND_STATE_DOWN, "it is away"
    )
    models = [identity_model(), lazy_model()]
    address = world.fake.address
    assert world.plane.apply(models, [address], loadable=[LAZY], connected=False) == ""
    loaded_at = time.monotonic()
    wait_until(lambda: time.monotonic() - loaded_at > 1.5, "a second and a half")
    world.plane.wait_parked(1)
    world.fake.start()
    np.testing.assert_array_equal(output(call.result(LONG_S)), rows(1.0))


def test_the_first_model_of_all_can_be_loaded_on_its_first_use(
    plane: DataPlane, fake: FakeTriton
) -> None:
    assert plane.apply([], [fake.address], loadable=[LAZY]) == ""
    with connected(plane.address) as client:
        call = client.ModelInfer.future(lazy(), timeout=LONG_S)
        plane.wait_parked(1)
        error = infer_error(client, infer_request(rows(1.0), model="other"))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert plane.apply([lazy_model()], [fake.address], loadable=[LAZY]) == ""
        call.result(LONG_S)
