"""Streams whose requests are for models that are not loaded: they wait, and keep their order."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import Message, OpenStream, converse
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request

LAZY = pb.LoadableModel(name="lazy")
LONG_S = 60


@pytest.fixture
def stub(plane: DataPlane, fake: FakeTriton) -> Iterator[Stub]:
    """ "identity" is loaded, "lazy" can be."""
    unload(plane, fake)
    with connected(plane.address) as client:
        yield client
        fake.release()


def unload(plane: DataPlane, fake: FakeTriton, wanted: pb.LoadableModel = LAZY) -> None:
    assert plane.apply([identity_model()], [fake.address], loadable=[wanted]) == ""


def load(plane: DataPlane, fake: FakeTriton, *, decoupled: bool = False) -> None:
    model = identity_model(1, "lazy", **({"merge": False, "direct_max": 8} if decoupled else {}))
    model.decoupled = decoupled
    assert plane.apply([identity_model(), model], [fake.address], loadable=[LAZY]) == ""


def request(value: float, model: str = "lazy", **parameters: int) -> Request:
    return infer_request(rows(value), model=model, request_id=f"{value}", parameters=parameters)


def check(message: Message, value: float) -> None:
    assert message.error_message == ""
    assert message.infer_response.id == f"{value}"
    np.testing.assert_array_equal(output(message.infer_response), rows(value))


def test_later_requests_of_a_stream_wait_behind_the_first(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    """Those for a loaded model too; other streams go on."""
    with OpenStream(stub) as stream:
        stream.send(request(1.0, "identity"))
        check(stream.read(), 1.0)
        stream.send(request(2.0), request(3.0, "identity"), request(4.0))
        plane.wait_parked(1)
        check(converse(stub, [request(5.0, "identity")]).messages[0], 5.0)
        stream.half_close()
        assert len(fake.requests) == 2
        load(plane, fake)
        for value, message in zip((2.0, 3.0, 4.0), stream.read_many(3), strict=True):
            check(message, value)
        with pytest.raises(StopIteration):
            stream.read()
    assert plane.page()["loading_parked_total"] == 1


def test_many_requests_of_many_streams(plane: DataPlane, fake: FakeTriton, stub: Stub) -> None:
    """More than the loop takes in a turn."""
    streams = [OpenStream(stub) for _ in range(20)]
    try:
        for stream in streams:
            stream.send(*(request(float(n)) for n in range(50)))
            stream.half_close()
        plane.wait_parked(20)
        load(plane, fake)
        for stream in streams:
            for number, message in enumerate(stream.read_many(50)):
                check(message, float(number))
            with pytest.raises(StopIteration):
                stream.read()
    finally:
        for stream in streams:
            stream.call.cancel()


def test_a_stream_of_a_decoupled_model_waits_too(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    with OpenStream(stub) as stream:
        stream.send(request(1.0), request(2.0))
        plane.wait_parked(1)
        load(plane, fake, decoupled=True)
        for value, message in zip((1.0, 2.0), stream.read_many(2), strict=True):
            check(message, value)
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()


def test_a_failed_load_answers_each_request_and_the_stream_goes_on(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    with OpenStream(stub) as stream:
        stream.send(request(1.0), request(2.0), request(3.0, "identity"))
        plane.wait_parked(1)
        unload(plane, fake, pb.LoadableModel(name="lazy", error="no such file"))
        for message in stream.read_many(2):
            assert message.error_message.endswith("'lazy' cannot be loaded: no such file")
        check(stream.read(), 3.0)
        load(plane, fake)
        stream.send(request(4.0))
        check(stream.read(), 4.0)
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()
    page = plane.page()
    assert (page["loading_failed_total"], page["loading_refused_total"]) == (1, 1)


def test_a_request_of_a_stream_expires_by_its_own_timeout(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    with OpenStream(stub) as stream:
        stream.send(request(1.0, timeout=200_000), request(2.0, "identity"))
        message = stream.read()
        assert message.error_message == "Request timeout expired"
        check(stream.read(), 2.0)
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()
    assert plane.page()["loading_expired_total"] == 1


def test_a_stream_ends_at_its_deadline(plane: DataPlane, fake: FakeTriton, stub: Stub) -> None:
    ended = converse(stub, [request(1.0), request(2.0)], timeout=0.5)
    assert ended.code == grpc.StatusCode.DEADLINE_EXCEEDED
    plane.wait_parked(0)
    wait_until(lambda: plane.snapshot().host_bytes == 0, "nothing is held")


def test_a_stream_that_is_cancelled_or_vanishes_leaves_nothing(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    with OpenStream(stub) as stream, connected(plane.address) as other:
        stream.send(request(1.0), request(2.0))
        plane.wait_parked(1)
        with OpenStream(other) as second:
            second.send(request(1.0), request(2.0))
            plane.wait_parked(2)
            stream.call.cancel()
            plane.wait_parked(1)
    plane.wait_parked(0)
    wait_until(lambda: plane.snapshot().host_bytes == 0, "nothing is held")
    assert plane.page()["loading_cancelled_total"] == 2


def test_a_drain_ends_a_stream_that_waits(plane: DataPlane, fake: FakeTriton, stub: Stub) -> None:
    with OpenStream(stub) as stream:
        stream.send(request(1.0), request(2.0))
        plane.wait_parked(1)
        plane.drain(deadline_ms=60_000)
        assert stream.read().error_message == "the scheduler is draining"
        with pytest.raises(grpc.RpcError) as ended:
            list(stream.call)
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ended.value.details() == "the scheduler is draining"
    assert plane.wait_drained().unanswered_requests == 0
    assert plane.page()["loading_failed_total"] == 1


def test_large_messages_that_wait_do_not_hold_up_other_calls_of_the_connection(
    plane: DataPlane, fake: FakeTriton, stub: Stub
) -> None:
    """Together they are larger than the window of a connection."""
    wide = np.ones((1, 1 << 18), np.float32)  # a MiB
    streams = [OpenStream(stub) for _ in range(12)]
    try:
        for number, stream in enumerate(streams):
            stream.send(infer_request(wide, model="lazy"))
            plane.wait_parked(number + 1)
        check(converse(stub, [request(5.0, "identity")]).messages[0], 5.0)
    finally:
        for stream in streams:
            stream.call.cancel()
    plane.wait_parked(0)
