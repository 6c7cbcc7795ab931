"""What requests hold that wait for their models: host bytes, and the windows of connections."""

from __future__ import annotations

import h2.events
import numpy as np

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import identity_model, wait_until
from tests.streams import Message, OpenStream, converse
from tests.wire.calls import Stub, infer_request, output, rows
from tests.wire.fake_triton import Request
from tests.wire.lazy_model import LONG_S, World, lazy, lazy_model
from tests.wire.raw_client import RawClient, grpc_message

MIB = 1 << 20
MESSAGE_OVERHEAD_BYTES = 256  # charged for each message of a stream
STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
BROKEN = pb.LoadableModel(name="lazy", error="no such file")
WIDE = identity_model(1, "wide", dims=(-1,))


def wide(size: int, model: str = "lazy") -> Request:
    """Of about so many bytes."""
    return infer_request(np.ones((1, size // 4), np.float32), model=model)


def loading_bytes(world: World) -> int:
    return sum(model.bytes for model in world.plane.snapshot().loading)


def wait_counted(world: World, size: int) -> None:
    wait_until(lambda: loading_bytes(world) > size, f"more than {size} bytes are counted")


def check_lacks_room(message: Message) -> None:
    assert "request bytes held by the scheduler exceed its limit" in message.error_message


def test_what_waits_behind_a_request_of_a_stream_is_counted(world: World, client: Stub) -> None:
    """Large messages behind small ones: half of the host bytes is left to other requests."""
    host_bytes_max = 8 * MIB
    world.say(WIDE, host_bytes_max=host_bytes_max)
    behind = 3 * MIB // 4
    streams = [OpenStream(client) for _ in range(10)]
    waiting, refused = streams[:5], streams[5:]
    try:
        for number, stream in enumerate(waiting):
            stream.send(lazy())
            world.plane.wait_parked(number + 1)
            stream.send(wide(behind))
            wait_counted(world, (number + 1) * behind)
        for stream in refused:
            stream.send(lazy())
            world.plane.wait_parked(len(waiting) + 1)
            # The first one leaves; the second one then is the first, and has no room either.
            stream.send(wide(behind))
            for message in stream.read_many(2):
                check_lacks_room(message)
            world.plane.wait_parked(len(waiting))
        held = loading_bytes(world)
        assert 5 * behind < held < host_bytes_max // 2
        assert world.plane.snapshot().host_bytes < host_bytes_max // 2
        answer = client.ModelInfer(wide(7 * MIB // 2, "wide"), timeout=LONG_S)
        assert output(answer).nbytes == 7 * MIB // 2
        world.say(lazy_model(dims=(-1,)), host_bytes_max=host_bytes_max)
        for stream in waiting:
            for message in stream.read_many(2):
                assert message.error_message == ""
    finally:
        for stream in streams:
            stream.call.cancel()
    world.plane.assert_balanced()
    page = world.plane.page()
    assert (page["loading_failed_total"], page["loading_refused_total"]) == (5, 5)


def test_what_waits_behind_a_request_that_expired_stays_counted(world: World, client: Stub) -> None:
    """The next one waits with the rest; in the end nothing is counted."""
    charged = len(lazy().SerializeToString()) + 5 + MESSAGE_OVERHEAD_BYTES
    with OpenStream(client) as stream, OpenStream(client) as other:
        other.send(lazy())
        world.plane.wait_parked(1)
        first = loading_bytes(world)
        stream.send(infer_request(rows(1.0), model="lazy", parameters={"timeout": 200_000}))
        stream.send(*[lazy()] * 40)
        assert stream.read().error_message == "Request timeout expired"
        world.plane.wait_parked(2)
        counted = 2 * first + 39 * charged
        wait_until(lambda: loading_bytes(world) == counted, f"{counted} bytes are counted")
        stream.half_close()
        world.load()
        assert len(list(stream.call)) == 40
        other.read()
    world.plane.assert_balanced()
    assert loading_bytes(world) == 0


def window_of(client: RawClient) -> int:
    """What the connection may send, after everything that it sent before was looked at."""
    client.h2.ping(b"12345678")
    client.flush()
    client.wait_for(h2.events.PingAckReceived)
    return int(client.h2.outbound_flow_control_window)


def occupy(world: World, client: RawClient) -> int:
    """A backend is busy with requests that fill most of the window. Returns what is left of it."""
    world.fake.hold()
    for size in (64, 39 * MIB // 10, 38 * MIB // 10):
        client.infer(wide(size, "wide"))
    window = window_of(client)
    assert window < MIB
    return window


def test_the_window_of_a_request_that_waited_is_paid_back_once(world: World) -> None:
    world.say(WIDE)
    with RawClient(world.plane.address) as client:
        parked = client.infer(wide(5 * MIB))
        world.plane.wait_parked(1)
        window = occupy(world, client)
        world.say(WIDE, loadable=BROKEN)
        assert "cannot be loaded" in client.trailers(parked)["grpc-message"]
        assert window_of(client) == window
        world.fake.release()
        wait_until(lambda: window_of(client) > window + 3 * MIB, "the rest is paid back")
    world.plane.assert_balanced()


def test_the_windows_of_streams_that_waited_are_paid_back_once(world: World) -> None:
    """Each message but the first waits behind others, and then as the first of its stream."""
    world.say(WIDE)
    with RawClient(world.plane.address) as client:
        streams = [client.request_headers(path=STREAM_PATH) for _ in range(10)]
        for stream in streams:
            for size in (64, MIB // 4, MIB // 4, MIB // 4):
                client.send_data(stream, grpc_message(wide(size).SerializeToString()))
        world.plane.wait_parked(len(streams))
        window = occupy(world, client)
        world.say(WIDE, loadable=BROKEN)
        for stream in streams:
            client.send_data(stream, b"", end_stream=True)
            assert client.trailers(stream)["grpc-status"] == "0"
        assert window_of(client) == window
        world.fake.release()
        wait_until(lambda: window_of(client) > window + 3 * MIB, "the rest is paid back")
    world.plane.assert_balanced()


def test_unfinished_messages_of_streams_that_wait_do_not_hold_up_their_connection(
    world: World, client: Stub
) -> None:
    """Together they are larger than the window of a connection."""
    streams = [OpenStream(client) for _ in range(12)]
    try:
        for stream in streams:
            stream.send(lazy(), wide(2 * MIB))  # a stream that waits gets no new window
        world.plane.wait_parked(len(streams))
        came = "as much came of them as their windows let through"
        wait_until(lambda: world.plane.snapshot().host_bytes > 11 * MIB, came)
        answered = converse(client, [infer_request(rows(5.0))]).messages[0]
        np.testing.assert_array_equal(output(answered.infer_response), rows(5.0))
        world.say(lazy_model(dims=(-1,)))
        for stream in streams:
            for message in stream.read_many(2):
                assert message.error_message == ""
    finally:
        for stream in streams:
            stream.call.cancel()
    world.plane.assert_balanced()
