"""A client that does not read its answers costs bounded memory and nobody else's time."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

import h2.events
import h2.exceptions
import numpy as np
import psutil

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import OpenStream
from tests.wire.calls import connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import RawClient, grpc_message

ANSWER_FLOATS = 500_000  # 2 MB
UNSENT_BYTES_MAX = 64 << 20
CONNECTION_WINDOW_BYTES = 8 << 20


def test_a_client_that_reads_nothing_holds_bounded_memory(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """Its requests are refused or not read from some point on."""
    plane.apply([identity_model(dims=(-1,), merge=False)], [fake.address])
    process = psutil.Process(plane.process.pid)
    request = infer_request(rows(1, 1, ANSWER_FLOATS))
    message = grpc_message(request.SerializeToString())
    with RawClient(plane.address, receive_buffer_bytes=4096) as slow:
        slow.socket.settimeout(3.0)
        before = process.memory_info().rss
        taken = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(150):
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    send_ignoring_answers(slow, slow.request_headers(), message)
                    taken += 1
        admitted = plane.counters()["admitted"]
        assert 10 <= admitted <= taken
        assert admitted * 4 * ANSWER_FLOATS < 2 * UNSENT_BYTES_MAX, "answers nobody reads"
        grown = process.memory_info().rss - before
        assert grown < 3 * UNSENT_BYTES_MAX or under_asan(), f"{grown} bytes for one slow reader"
        with connected(plane.address) as other:
            for n in range(20):
                response = other.ModelInfer(infer_request(rows(n)), timeout=30)
                np.testing.assert_array_equal(output(response), rows(n))
    wait_until(lambda: plane.snapshot().client_connections == 0, "both are gone")


def under_asan() -> bool:
    """Its quarantine keeps freed memory."""
    return "libasan" in os.environ.get("LD_PRELOAD", "")


def send_ignoring_answers(client: RawClient, stream: int, message: bytes) -> None:
    """Sends a message; answers are read only as far as windows make it necessary."""
    view = memoryview(message)
    while view:
        window = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size)
        if window == 0:
            client.receive()
            continue
        client.h2.send_data(stream, bytes(view[:window]), end_stream=len(view) <= window)
        view = view[window:]
        client.flush()


def test_a_client_that_opens_no_window_gets_its_answer_when_it_does(
    plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(dims=(-1,))], [fake.address])
    values = rows(1, 1, ANSWER_FLOATS)
    with RawClient(plane.address) as client, connected(plane.address) as other:
        stream = client.infer(infer_request(values))
        while len(client.data(stream)) < 65_535:  # the initial windows; none is opened
            client.receive()
        response = other.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(2))
        assert plane.counters()["in_flight"] == 0
        assert plane.snapshot().host_bytes == 0, "the request is answered, its bytes are free"
        client.h2.increment_flow_control_window(1 << 30)
        client.h2.increment_flow_control_window(1 << 30, stream)
        client.flush()
        client.wait_for(h2.events.StreamEnded, stream)
        assert values.tobytes() in client.data(stream)


def test_streams_that_are_not_read_do_not_hold_up_their_connection(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """What is held of their requests is more than the window of a connection."""
    plane.apply([identity_model(dims=(-1,), merge=False)], [fake.address])
    requests = [infer_request(rows(n, 1, 100_000), request_id=str(n)) for n in range(30)]
    with connected(plane.address) as stub, ExitStack() as stack:
        slow = [stack.enter_context(OpenStream(stub, timeout=120.0)) for _ in range(12)]
        for stream in slow:
            stream.send(*requests)
        came = "as much came of them as their own windows let through"
        wait_until(lambda: plane.snapshot().host_bytes > CONNECTION_WINDOW_BYTES + (1 << 20), came)
        for n in range(10):
            response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(n))
        for stream in slow:
            messages = stream.read_many(len(requests))
            assert [m.infer_response.id for m in messages] == [r.id for r in requests]
    wait_until(lambda: plane.snapshot().host_bytes == 0, "nothing is held any more")


def test_a_slow_sender_delays_nobody(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model()], [fake.address])
    message = grpc_message(infer_request(rows(1)).SerializeToString())
    with RawClient(plane.address) as slow, connected(plane.address) as other:
        stream = slow.request_headers()
        for n, byte in enumerate(message):
            slow.send_data(stream, bytes([byte]), end_stream=n + 1 == len(message))
            if n % 30 == 0:
                response = other.ModelInfer(infer_request(rows(n)), timeout=30)
                np.testing.assert_array_equal(output(response), rows(n))
        assert slow.trailers(stream)["grpc-status"] == "0"


def test_pings_of_a_patient_client_are_answered(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model()], [fake.address])
    with RawClient(plane.address) as client:
        for n in range(50):
            client.h2.ping(n.to_bytes(8, "big"))
            client.flush()
            client.wait_for(h2.events.PingAckReceived)
        assert client.trailers(client.infer(infer_request(rows(1))))["grpc-status"] == "0"


def test_a_flood_of_pings_costs_bounded_memory(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model()], [fake.address])
    process = psutil.Process(plane.process.pid)
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"x" * 8
    with RawClient(plane.address, receive_buffer_bytes=4096) as flood:
        flood.socket.settimeout(1.0)
        before = process.memory_info().rss
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(200):
                flood.send_raw(ping * 10_000)  # 34 MB altogether, and no answer is read
        with connected(plane.address) as other:
            response = other.ModelInfer(infer_request(rows(1)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(1))
        assert process.memory_info().rss - before < 32 << 20 or under_asan()
