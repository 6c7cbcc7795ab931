"""Large tensors through shared memory: what the backend is told, and whose memory it is when."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from scheduler.dataplane.segment import DIRECTORY, create_segment, remove_abandoned
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.clock_ahead import ClockAhead
from tests.wire.fake_triton import FakeTriton, Request, Response, rows_of
from tests.wire.shared_payload import Place, backend, places_of, share

WIDTH = 50_000  # 200 KB a row
SEGMENT_BYTES = 64 << 20
LIMITS = pb.Limits(shared_memory_bytes_max=SEGMENT_BYTES)


def wide_model(instances: int = 1, **batching: object) -> pb.Model:
    """Of so many calls at once."""
    batching.setdefault("staged_batches_max", 0)
    model = identity_model(dims=[WIDTH], **batching)  # type: ignore[arg-type]
    model.placements[0].instances = instances
    return model


@pytest.fixture
def client(plane: DataPlane) -> Iterator[Stub]:
    with connected(plane.address) as stub:
        yield stub


def ask(client: Stub, first: float, count: int = 1, width: int = WIDTH, **call: object) -> None:
    """One request; its answer must be its own rows and nothing else."""
    values = rows(first, count, width)
    request_id = f"request-{first}"
    answer = client.ModelInfer(infer_request(values, request_id=request_id), timeout=30, **call)
    np.testing.assert_array_equal(output(answer), values)
    assert answer.id == request_id
    assert not answer.outputs[0].parameters


def shared_calls(plane: DataPlane) -> int:
    return int(plane.snapshot().shared_memory.calls)


def lost_calls(plane: DataPlane) -> int:
    return int(plane.snapshot().shared_memory.quarantined_calls)


def nothing_held(plane: DataPlane) -> None:
    wait_until(lambda: plane.snapshot().shared_memory.used_bytes == 0, "no block is held")


def test_a_large_request_names_places_instead_of_bytes(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [wide_model()])
    for number in range(5):
        ask(client, number)
    assert shared_calls(plane) == 5
    for request in fake.requests:
        assert request.ByteSize() < 2000
        there, back = places_of(request)
        assert (there.size, back.size) == (WIDTH * 4, WIDTH * 4)
        assert there.offset % 64 == back.offset % 64 == 0
        assert not there.overlaps(back)
    nothing_held(plane)


def test_the_rows_of_merged_requests_lie_in_one_place(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [wide_model()])
    fake.hold()
    first = client.ModelInfer.future(infer_request(rows(99, 1, WIDTH)), timeout=30)
    wait_until(lambda: len(fake.requests) == 1, "the backend has it")
    calls = [
        client.ModelInfer.future(infer_request(rows(n, 1 + n % 2, WIDTH)), timeout=30)
        for n in range(6)
    ]
    plane.wait_queued(6)
    fake.release()
    for number, call in enumerate(calls):
        np.testing.assert_array_equal(output(call.result()), rows(number, 1 + number % 2, WIDTH))
    np.testing.assert_array_equal(output(first.result()), rows(99, 1, WIDTH))
    merged = fake.requests[-1]
    assert rows_of(merged) == 9
    assert [place.size for place in places_of(merged)] == [9 * WIDTH * 4] * 2
    nothing_held(plane)


def test_small_requests_stay_on_the_wire(plane: DataPlane, fake: FakeTriton, client: Stub) -> None:
    share(plane, fake, [identity_model()])
    for number in range(5):
        ask(client, number, 3, 16)
    assert shared_calls(plane) == 0


def test_outputs_of_unknown_size_come_by_the_wire(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [identity_model(dims=[-1])])
    ask(client, 1)
    assert shared_calls(plane) == 1
    assert [len(fake.requests[0].outputs), len(places_of(fake.requests[0]))] == [0, 1]
    nothing_held(plane)


@pytest.mark.parametrize("batching", [{"cancellable": True}, {"merge": False}])
def test_models_that_go_by_the_wire(
    plane: DataPlane, fake: FakeTriton, client: Stub, batching: dict[str, object]
) -> None:
    """Those whose calls may be reset in the middle, and those whose requests pass unchanged."""
    share(plane, fake, [wide_model(**batching)])
    ask(client, 1)
    assert shared_calls(plane) == 0


def test_the_memory_of_another_data_plane_is_not_used(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [wide_model()])
    assert plane.apply([wide_model()], [backend(fake, "/infersched-payload-other")], LIMITS) == ""
    ask(client, 1)
    assert shared_calls(plane) == 0


def test_a_region_that_the_backend_lacks_is_reported_and_costs_no_answer(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    memory = share(plane, fake, [wide_model()])
    registered = {"other"}

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        for place in places_of(request):
            if place.region not in registered:
                text = f"Unable to find shared memory region: '{place.region}'"
                context.abort(grpc.StatusCode.NOT_FOUND, text)
        return memory.identity(request)

    fake.behaviour = behaviour
    for number in range(3):
        ask(client, number)
    assert shared_calls(plane) == 1
    event = plane.wait_event("shared_memory_lost").shared_memory_lost
    assert event.region == "infersched-payload-test"
    assert plane.apply([wide_model()], [backend(fake, memory.key, "other")], LIMITS) == ""
    ask(client, 9)
    assert shared_calls(plane) == 2
    nothing_held(plane)


def test_an_output_larger_than_its_place_is_asked_for_by_the_wire(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    """A model whose outputs are not what its configuration says."""
    declared = wide_model()
    declared.outputs[0].dims[:] = [WIDTH - 1]
    memory = share(plane, fake, [declared])

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        if any(place.size < WIDTH * 4 for place in places_of(request)):
            context.abort(
                grpc.StatusCode.INTERNAL,
                "shared memory size specified with the request for output 'OUTPUT0' (1 bytes) "
                "should be at least 2 bytes to hold the results",
            )
        return memory.identity(request)

    fake.behaviour = behaviour
    for number in range(3):
        ask(client, number)
    assert [len(places_of(request)) for request in fake.requests] == [2, 1, 1, 1]
    # Where nothing may run twice, no output is given a place.
    declared.batching.idempotent = False
    assert plane.apply([declared], [backend(fake, memory.key)], LIMITS) == ""
    ask(client, 9)
    assert len(places_of(fake.requests[-1])) == 1


def other_outputs(*names: str) -> pb.Model:
    """The model, reloaded with these outputs."""
    model = wide_model()
    del model.outputs[:]
    for name in names:
        model.outputs.add(name=name, datatype="FP32", dims=[WIDTH])
    return model


@pytest.mark.parametrize("names", [("OUTPUT1",), ("OUTPUT0", "OUTPUT1", "OUTPUT2"), ()])
def test_requests_of_a_former_catalog_ask_for_its_outputs_by_the_wire(
    plane: DataPlane, fake: FakeTriton, client: Stub, names: tuple[str, ...]
) -> None:
    """The model is reloaded with other outputs while they are queued."""
    memory = share(plane, fake, [wide_model()])
    fake.hold()
    first = client.ModelInfer.future(infer_request(rows(99, 1, WIDTH)), timeout=60)
    wait_until(lambda: len(fake.requests) == 1, "the backend has it")
    calls = [
        client.ModelInfer.future(infer_request(rows(n, 1, WIDTH)), timeout=60) for n in range(3)
    ]
    plane.wait_queued(3)
    assert plane.apply([other_outputs(*names)], [backend(fake, memory.key)], LIMITS) == ""
    fake.release()
    for number, call in [(99, first), *enumerate(calls)]:
        np.testing.assert_array_equal(output(call.result()), rows(number, 1, WIDTH))
    for request in fake.requests[1:]:
        assert len(request.outputs) == 0
        assert len(places_of(request)) == 1
    nothing_held(plane)


def test_a_smaller_output_has_the_shape_that_the_reply_says(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    memory = share(plane, fake, [wide_model()])

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        reply = memory.identity(request)
        reply.outputs[0].shape[:] = [1, WIDTH // 2]
        return reply

    fake.behaviour = behaviour
    answer = client.ModelInfer(infer_request(rows(1, 1, WIDTH)), timeout=30)
    np.testing.assert_array_equal(output(answer), rows(1, 1, WIDTH)[:, : WIDTH // 2])


def test_what_a_cancelled_call_uses_is_nobody_elses_until_it_ends(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [wide_model(8)])
    fake.hold()
    calls = [
        client.ModelInfer.future(infer_request(rows(n, 1, WIDTH)), timeout=30) for n in range(3)
    ]
    wait_until(lambda: sum(fake.batch_rows()) == 3, "the backend has them")
    for call in calls:
        call.cancel()
    wait_until(lambda: plane.ledger()[0]["in_flight"] == 0, "all are cancelled")
    held = [place for request in fake.requests for place in places_of(request)]
    late = client.ModelInfer.future(infer_request(rows(77, 1, WIDTH)), timeout=30)
    wait_until(lambda: sum(fake.batch_rows()) == 4, "the backend has the next")
    assert fake.cancelled == 0
    # A call with memory of ours has no deadline.
    assert (fake.remaining_s[-1] or 1e18) > 1e9
    assert plane.snapshot().shared_memory.used_bytes >= sum(place.size for place in held)
    fake.release()
    np.testing.assert_array_equal(output(late.result()), rows(77, 1, WIDTH))
    later = places_of(fake.requests[-1])
    assert len(later) == 2
    assert not any(one.overlaps(other) for one in held for other in later)
    nothing_held(plane)


def test_a_deadline_is_kept_while_the_call_goes_on(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    share(plane, fake, [wide_model()])
    fake.hold()
    with pytest.raises(grpc.RpcError) as raised:
        client.ModelInfer(infer_request(rows(1, 1, WIDTH)), timeout=2)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert plane.snapshot().shared_memory.used_bytes > 0
    fake.release()
    ask(client, 2)
    nothing_held(plane)


def test_a_lost_call_may_write_for_ever_and_spoils_no_answer(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    """The connection breaks while the backend computes; what it still does goes to nobody."""
    memory = share(plane, fake, [wide_model()])
    fake.hold()
    call = client.ModelInfer.future(infer_request(rows(5, 1, WIDTH)), timeout=60)
    wait_until(lambda: len(fake.requests) == 1, "the backend has it")
    lost = places_of(fake.requests[0])
    fake.kill()
    fake.release()
    fake.start()
    np.testing.assert_array_equal(output(call.result()), rows(5, 1, WIDTH))
    assert lost_calls(plane) == 1
    event = plane.wait_event("shared_memory_lost").shared_memory_lost
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            memory.write(lost[1], os.urandom(4096) * (lost[1].size // 4096))

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        ask(client, 20)  # by the wire: the region is not used any more
        assert not places_of(fake.requests[-1])
        assert plane.apply([wide_model()], [backend(fake, memory.key, "second")], LIMITS) == ""
        for number in range(30):
            ask(client, number)
    finally:
        stop.set()
        writer.join()
    used = [place for request in fake.requests[3:] for place in places_of(request)]
    assert event.region != "second"
    assert {place.region for place in used} == {"second"}
    assert len(used) == 60
    assert not any(one.overlaps(other) for one in lost for other in used)


def lose_a_call(
    plane: DataPlane, fake: FakeTriton, client: Stub, backends: list[pb.Backend]
) -> None:
    """A call that is out while this state is applied, and whose backend then dies."""
    fake.hold()
    call = client.ModelInfer.future(infer_request(rows(5, 1, WIDTH)), timeout=60)
    wait_until(lambda: len(fake.requests) == 1, "the backend has it")
    assert places_of(fake.requests[0])
    assert plane.apply([wide_model()], backends, LIMITS) == ""
    fake.kill()
    fake.release()
    fake.start()
    call.exception(timeout=60)
    wait_until(lambda: lost_calls(plane) == 1, "it is lost")


def test_memory_lost_after_the_backend_has_another_region_comes_free(
    fake: FakeTriton, tmp_path: Path
) -> None:
    clock = ClockAhead(tmp_path)
    with DataPlane(environment=clock.environment) as plane, connected(plane.address) as client:
        memory = share(plane, fake, [wide_model()])
        lose_a_call(plane, fake, client, [backend(fake, memory.key, "second")])
        clock.set_s(15)  # an old process may write there still
        assert lost_calls(plane) == 1
        clock.set_s(31)
        wait_until(lambda: lost_calls(plane) == 0, "it is free again")
        nothing_held(plane)


def test_memory_lost_at_a_former_address_is_not_that_of_its_successor(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    with FakeTriton() as successor:
        memory = share(plane, fake, [wide_model()])
        successor.behaviour = memory.identity
        lose_a_call(plane, fake, client, [backend(successor, memory.key, "second")])
        wait_until(lambda: plane.ledger()[0]["in_flight"] == 0, "the call has ended")
        ask(client, 2)
        assert {place.region for place in places_of(successor.requests[-1])} == {"second"}
        assert plane.apply([wide_model()], [backend(successor, memory.key, "second")], LIMITS) == ""
        assert not [e for e in plane.events if e.WhichOneof("event") == "shared_memory_lost"]


def test_requests_beyond_the_memory_go_by_the_wire(
    plane: DataPlane, fake: FakeTriton, client: Stub
) -> None:
    """And one that is larger than its part of it always does."""
    size = 8 << 20
    share(plane, fake, [wide_model(32, max_batch_size=1)], size)
    fake.hold()
    calls = [
        client.ModelInfer.future(infer_request(rows(n, 1, WIDTH)), timeout=60) for n in range(32)
    ]
    wait_until(lambda: len(fake.requests) == 32, "all are at the backend")
    held = [place for request in fake.requests for place in places_of(request)]
    assert 0 < len(held) < 64
    assert not any(a.overlaps(b) for i, a in enumerate(held) for b in held[:i])
    assert plane.snapshot().shared_memory.used_bytes <= size
    fake.release()
    for number, call in enumerate(calls):
        np.testing.assert_array_equal(output(call.result()), rows(number, 1, WIDTH))
    nothing_held(plane)
    large = identity_model(dims=[size // 4], max_batch_size=1)
    assert plane.apply([large], [fake.address]) == ""
    ask(client, 1, 1, size // 4)
    assert not places_of(fake.requests[-1])


def test_a_storm_of_cancels_and_deadlines_mixes_no_memory(
    plane: DataPlane, fake: FakeTriton, seed: int
) -> None:
    """The backend is slow, and checks that nobody writes what it reads or reads what it writes."""
    memory = share(plane, fake, [wide_model(4)], 16 << 20)
    busy: list[Place] = []
    faults: list[str] = []
    lock = threading.Lock()
    pauses = random.Random(seed)

    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        places = places_of(request)
        with lock:
            faults.extend(f"{a} {b}" for a in places for b in busy if a.overlaps(b))
            busy.extend(places)
            pause_s = pauses.choice((0.0, 0.0, 0.02))
        before = [memory.read(place) for place in places[:1]]
        threading.Event().wait(pause_s)
        if before != [memory.read(place) for place in places[:1]]:
            faults.append("an input has changed")
        reply = memory.identity(request, context)
        with lock:
            for place in places:
                busy.remove(place)
        return reply

    fake.behaviour = behaviour
    chances = random.Random(seed + 1)
    with connected(plane.address) as stub:
        calls = []
        for number in range(300):
            values = rows(number, 1 + number % 3, WIDTH)
            timeout = 0.03 if chances.random() < 0.3 else 60
            call = stub.ModelInfer.future(infer_request(values), timeout=timeout)
            calls.append((values, call))
            if chances.random() < 0.3:
                call.cancel()
            if number % 16 == 15:
                wait_until(lambda: plane.ledger()[0]["in_flight"] < 16, "some have ended", 60)
        answered = 0
        for values, call in calls:
            if call.cancelled() or call.exception(timeout=60) is not None:
                continue
            np.testing.assert_array_equal(output(call.result()), values)
            answered += 1
    assert not faults
    assert answered > 50
    nothing_held(plane)


def test_the_segment_goes_with_the_process_or_with_its_successor(tmp_path: Path) -> None:
    with DataPlane() as plane:
        assert plane.apply([], [], LIMITS) == ""
        path = DIRECTORY / plane.applied.shared_memory_key.lstrip("/")
        assert path.stat().st_size == SEGMENT_BYTES
        assert path.stat().st_blocks == 0
        assert path.name not in remove_abandoned()
    assert not path.exists()
    segment = create_segment(1 << 20)
    os.close(segment.fd)  # as if its owner had been killed
    remove_abandoned()
    assert not (DIRECTORY / segment.key.lstrip("/")).exists()
