"""Requests for models that are not loaded, which cannot wait: bounds, deadlines, failed loads."""

from __future__ import annotations

import time

import grpc
import numpy as np

from scheduler.v1 import dataplane_pb2 as pb
from tests.wire.calls import (
    Stub,
    connected,
    error_info,
    error_of,
    infer_error,
    infer_request,
    output,
    pushback_ms,
    retry_delay_ms,
    rows,
)
from tests.wire.lazy_model import LAZY, LONG_S, SECOND_NS, World, lazy, lazy_model, park


def test_no_more_wait_than_there_is_room_for(world: World) -> None:
    """10,000 of a model, over as many connections as that takes."""
    message = lazy().SerializeToString()
    assert len(message) < 200
    stubs = [connected(world.plane.address) for _ in range(11)]
    calls: list[grpc.Future] = []
    try:
        for number, context in enumerate(stubs):
            stub = context.__enter__()
            count = 1 if number == 10 else 1000
            calls += [stub.ModelInfer.future(lazy(), timeout=600) for _ in range(count)]
            world.plane.wait_parked(min(len(calls), 10_000))
        error = error_of(calls[-1])
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "QUEUE_FULL"
        assert "Exceeds maximum queue size" in str(error.details())
        world.load(queue_requests_max=20_000)
        for call in calls[:-1]:
            call.result(600)
    finally:
        for context in stubs:
            context.__exit__(None, None, None)
    assert world.plane.page()["loading_refused_total"] == 1


def test_requests_that_wait_leave_half_of_the_host_bytes_to_others(
    world: World, client: Stub
) -> None:
    world.say(host_bytes_max=4 << 20)
    wide = np.ones((1, 1 << 17), np.float32)  # half a MiB
    calls = []
    for _ in range(3):
        request = infer_request(wide, model="lazy")
        calls.append(client.ModelInfer.future(request, timeout=LONG_S))
    world.plane.wait_parked(3)
    error = infer_error(client, infer_request(wide, model="lazy"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).reason == "HOST_MEMORY"
    # The window of their connection is not theirs either.
    np.testing.assert_array_equal(
        output(client.ModelInfer(infer_request(rows(5.0)), timeout=LONG_S)), rows(5.0)
    )
    assert world.plane.snapshot().host_bytes < 2 << 20
    world.say(lazy_model(dims=(-1,)), host_bytes_max=4 << 20)
    for call in calls:
        np.testing.assert_array_equal(output(call.result(LONG_S)), wide)


def test_a_deadline_before_the_predicted_end_of_the_load_is_refused(
    world: World, client: Stub
) -> None:
    world.say(loadable=pb.LoadableModel(name="lazy", load_ns=500 * SECOND_NS))
    error = infer_error(client, lazy(request_id="r7"), timeout=50)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "model 'lazy' is being loaded" in str(error.details())
    assert str(error.details()).startswith("[request id: r7] ")
    info = error_info(error)
    assert info.reason == "MODEL_LOADING"
    assert info.metadata["loadMs"] == "500000"
    assert 0 < int(info.metadata["budgetMs"]) <= 51_000  # grpcio rounds deadlines up
    assert retry_delay_ms(error) == pushback_ms(error) == 500_000
    # Who tries again finds it loaded.
    wanted = world.wanted()
    assert (wanted.name, wanted.waiting) == ("lazy", 0)
    ready_at = time.monotonic_ns() + 100 * SECOND_NS
    world.say(loadable=pb.LoadableModel(name="lazy", load_ns=1, ready_at_ns=ready_at))
    error = infer_error(client, lazy(parameters={"timeout": 60_000_000}), timeout=500)
    assert error_info(error).reason == "MODEL_LOADING"
    assert 90_000 < int(error_info(error).metadata["loadMs"]) <= 100_000
    assert int(error_info(error).metadata["budgetMs"]) < 60_000
    call = park(world, client, timeout=500)
    world.load()
    call.result(LONG_S)
    assert world.plane.page()["loading_refused_total"] == 2


def test_a_failed_load_answers_those_that_wait_and_those_that_come(
    world: World, client: Stub
) -> None:
    calls = [client.ModelInfer.future(lazy(float(n)), timeout=LONG_S) for n in range(300)]
    world.plane.wait_parked(300)
    world.say(loadable=pb.LoadableModel(name="lazy", error="no such file"))
    for error in (*map(error_of, calls), infer_error(client, lazy())):
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "model 'lazy' cannot be loaded: no such file" in str(error.details())
        assert error_info(error).reason == "MODEL_LOAD_FAILED"
        assert retry_delay_ms(error) == 1000
    world.wanted()
    # It is known when it will be tried again.
    again_at = time.monotonic_ns() + 100 * SECOND_NS
    world.say(loadable=pb.LoadableModel(name="lazy", error="still not", ready_at_ns=again_at))
    assert 60_000 < retry_delay_ms(infer_error(client, lazy())) <= 100_000
    # It can be tried again.
    world.say()
    call = park(world, client)
    assert world.wanted().name == "lazy"
    world.load()
    call.result(LONG_S)


def test_those_still_waiting_when_an_error_is_taken_back_want_the_load_again(
    world: World, client: Stub
) -> None:
    call = park(world, client)
    world.wanted()
    broken = pb.LoadableModel(name="lazy", error="no such file")
    world.plane.apply_at_once(pb.Apply(loadable=[broken]), pb.Apply(loadable=[LAZY]))
    wanted = world.wanted()
    assert (wanted.name, wanted.waiting) == ("lazy", 1)
    world.load()
    call.result(LONG_S)


def test_a_loadable_model_is_named_once(world: World) -> None:
    error = world.plane.apply([], [], loadable=[LAZY, LAZY])
    assert error == "loadable model 'lazy' is given twice"


def test_a_model_that_fits_no_device_is_refused_with_the_bytes(world: World, client: Stub) -> None:
    call = park(world, client)
    world.say(
        loadable=pb.LoadableModel(
            name="lazy", error="no device", need_bytes=5 << 30, free_bytes=3 << 30
        )
    )
    for error in (error_of(call), infer_error(client, lazy())):
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_info(error)
        assert info.reason == "DEVICE_MEMORY"
        assert dict(info.metadata) == {
            "predictedBytes": str(5 << 30),
            "freeBytes": str(3 << 30),
        }
        assert pushback_ms(error) == 1000


def test_what_is_not_loadable_any_more_is_unknown(world: World, client: Stub) -> None:
    call = park(world, client)
    world.say(loadable=None)
    error = error_of(call)
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "Request for unknown model: 'lazy' is not found"


def test_a_version_that_the_load_did_not_bring_is_unknown(world: World, client: Stub) -> None:
    call = client.ModelInfer.future(lazy(version="7"), timeout=LONG_S)
    world.plane.wait_parked(1)
    known = client.ModelInfer.future(lazy(version="1"), timeout=LONG_S)
    world.plane.wait_parked(2)
    world.load()
    error = error_of(call)
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "Request for unknown model: 'lazy' version 7 is not found"
    known.result(LONG_S)
    # A version that is no number is told at once, loaded or not.
    world.say()
    error = infer_error(client, lazy(version="x"))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_cannot_be_read_does_not_wait(world: World, client: Stub) -> None:
    with grpc.insecure_channel(world.plane.address) as channel:
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        error = error_of(raw.future(lazy().SerializeToString() + b"\x2a\xff", timeout=LONG_S))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details() == "Unable to parse request"
