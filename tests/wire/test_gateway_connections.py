"""What becomes of connections: the writing of large answers, retirement, stream limits, drains."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress

import h2.events
import numpy as np
import psutil
from h2.connection import H2Connection
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.load import load
from tests.wire.calls import connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request, identity
from tests.wire.h2_backend import H2Backend, answer
from tests.wire.raw_client import RawClient, grpc_message
from tests.wire.test_slow_reader import send_ignoring_answers

ANSWER_FLOATS = 2_000_000  # 8 MB, more than one pull and any socket buffer take
WINDOW_BYTES = (1 << 31) - 1


def test_a_large_answer_leaves_without_the_client_opening_windows(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """A client with huge windows sends nothing while it reads: no event drives the writing."""
    assert plane.apply([identity_model(dims=(-1,), merge=False)], [fake.address]) == ""
    values = rows(1, 1, ANSWER_FLOATS)
    with RawClient(plane.address) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES})
        client.h2.increment_flow_control_window(WINDOW_BYTES - (1 << 16))
        client.flush()
        client.socket.settimeout(30)
        stream = client.infer(infer_request(values))
        client.wait_for(h2.events.StreamEnded, stream)
        assert values.tobytes() in client.data(stream)


class RetiringBackend(H2Backend):
    """Says GOAWAY with its first call, and holds that call until `finish`."""

    def __init__(self) -> None:
        super().__init__(self._take)
        self._held: tuple[H2Connection, int, bytes] | None = None

    def _take(self, connection: H2Connection, stream: int, message: bytes) -> None:
        if self._held is None:
            self._held = (connection, stream, message)
            # h2 itself would send nothing more after a GOAWAY.
            connection._data_to_send += GoAwayFrame(0, last_stream_id=stream).serialize()
        else:
            answer(connection, stream, identity(Request.FromString(message)).SerializeToString())

    def finish(self) -> None:
        assert self._held is not None
        connection, stream, message = self._held
        answer(connection, stream, identity(Request.FromString(message)).SerializeToString())
        self._connections[0].sendall(connection.data_to_send())


def test_a_retired_connection_is_replaced_while_its_calls_go_on(plane: DataPlane) -> None:
    model = identity_model(merge=False)
    model.placements[0].instances = 2
    with RetiringBackend() as backend, connected(plane.address) as stub:
        assert plane.apply([model], [backend.address]) == ""
        first = stub.ModelInfer.future(infer_request(rows(1)), timeout=30)
        wait_until(lambda: backend.requests == 1, "the backend has the call")
        response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(2))
        assert not first.done()
        backend.finish()
        np.testing.assert_array_equal(output(first.result()), rows(1))
        wait_until(
            lambda: plane.snapshot().backends[0].connections_open == 1, "the old one is closed"
        )


def test_a_backend_of_few_streams_is_neither_given_up_nor_short_of_work(plane: DataPlane) -> None:
    """While its only stream is taken no probe can be sent: its silence proves nothing."""
    execution_s = 1.2
    lock = threading.Lock()

    def slowly(connection: H2Connection, stream: int, message: bytes) -> None:
        connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
        if Request.FromString(message).id == "slow":
            with lock:
                time.sleep(execution_s)
        answer(connection, stream, identity(Request.FromString(message)).SerializeToString())

    model = identity_model(merge=False)
    model.placements[0].instances = 3
    with H2Backend(slowly) as backend, connected(plane.address) as stub:
        assert plane.apply([model], [backend.address]) == ""
        stub.ModelInfer(infer_request(rows(0)), timeout=30)
        calls = [
            stub.ModelInfer.future(infer_request(rows(n), request_id="slow"), timeout=30)
            for n in range(3)
        ]
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
        assert backend.requests == 4
        assert len(backend._connections) == 1


def test_the_number_of_connections_follows_the_configuration(
    plane: DataPlane, fake: FakeTriton
) -> None:
    def apply(connections: int) -> None:
        serving = pb.BACKEND_STATE_SERVING
        backend = pb.Backend(index=0, address=fake.address, connections=connections, state=serving)
        assert plane.apply([identity_model()], [backend]) == ""
        wait_until(
            lambda: plane.snapshot().backends[0].connections_open == connections,
            f"{connections} connections are open",
        )

    apply(1)
    with load(plane.address) as seen:
        for connections in (3, 1, 2):
            apply(connections)
            seen.wait_answers(20)
    assert seen.errors == []


def test_a_drain_waits_until_the_answers_are_written(plane: DataPlane, fake: FakeTriton) -> None:
    assert plane.apply([identity_model(dims=(-1,), merge=False)], [fake.address]) == ""
    values = rows(1, 1, ANSWER_FLOATS)
    with RawClient(plane.address, receive_buffer_bytes=4096) as client:
        stream = client.infer(infer_request(values))
        wait_until(lambda: plane.counters()["completed"] == 1, "the request is answered")
        plane.drain(deadline_ms=20_000)
        wait_until(lambda: plane.snapshot().draining, "it drains")
        kinds = [frame.WhichOneof("message") for frame in plane._frames]
        assert "drained" not in kinds, "the answer is not written yet"
        client.h2.increment_flow_control_window(WINDOW_BYTES - (1 << 16))
        client.h2.increment_flow_control_window(WINDOW_BYTES - (1 << 16), stream)
        client.flush()
        missing = values.nbytes - len(client.data(stream))
        while missing > 0:  # h2 reads nothing after a GOAWAY
            missing -= len(client.socket.recv(1 << 20))
        assert plane.wait_drained().unanswered_requests == 0


def test_each_drain_is_reported(plane: DataPlane, fake: FakeTriton) -> None:
    """A control plane that comes back after the first report asks again."""
    assert plane.apply([identity_model()], [fake.address]) == ""
    for _ in range(2):
        plane.drain(deadline_ms=1000)
        assert plane.wait_drained().unanswered_requests == 0


def test_many_slow_readers_share_the_memory_there_is(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model(dims=(-1,), merge=False)
    limits = pb.Limits(host_bytes_max=16 << 20)
    assert plane.apply([model], [fake.address], limits) == ""
    process = psutil.Process(plane.process.pid)
    message = grpc_message(infer_request(rows(1, 1, ANSWER_FLOATS // 8)).SerializeToString())
    before = process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(8):
            slow = stack.enter_context(RawClient(plane.address, receive_buffer_bytes=4096))
            slow.socket.settimeout(1.0)
            with suppress(TimeoutError):  # it is not read from any more
                for _ in range(20):
                    with suppress(StreamClosedError):  # refused before it is sent
                        send_ignoring_answers(slow, slow.request_headers(), message)
        grown = process.memory_info().rss - before
    assert grown < 4 * limits.host_bytes_max, f"{grown} bytes for answers that nobody reads"
    wait_until(lambda: plane.snapshot().client_connections == 0, "all are gone")
    values = rows(1, 1, ANSWER_FLOATS // 2)
    with connected(plane.address) as stub:
        np.testing.assert_array_equal(
            output(stub.ModelInfer(infer_request(values), timeout=30)), values
        )
