"""Clients that go away in every state of a request. Part of `make test-asan`."""

from __future__ import annotations

import random
from collections.abc import Callable

import h2.events
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import INFER_PATH, RawClient, grpc_message

LARGE = infer_request(rows(1, 60)).SerializeToString()


def before_the_preface(client: RawClient) -> None:
    """Nothing is sent but what connecting sends."""


def inside_headers(client: RawClient) -> None:
    # A HEADERS frame of 100 bytes of which 20 come.
    client.send_raw(b"\x00\x00\x64\x01\x04\x00\x00\x00\x01" + b"\x40" * 20)


def after_headers(client: RawClient) -> None:
    client.request_headers()


def inside_the_prefix(client: RawClient) -> None:
    client.send_data(client.request_headers(), b"\0\0\0")


def inside_the_message(client: RawClient) -> None:
    client.send_data(client.request_headers(), grpc_message(LARGE)[:1000])


def before_the_half_close(client: RawClient) -> None:
    client.send_data(client.request_headers(), grpc_message(LARGE))


def queued_or_in_flight(client: RawClient) -> None:
    client.infer(infer_request(rows(1, 60)))


def many_in_flight(client: RawClient) -> None:
    for n in range(50):
        client.infer(infer_request(rows(n)))


def after_a_reset(client: RawClient) -> None:
    stream = client.infer(infer_request(rows(1)))
    client.h2.reset_stream(stream, 8)
    client.flush()


def inside_a_forwarded_call(client: RawClient) -> None:
    client.request_headers(path="/inference.GRPCInferenceService/ServerLive")


STATES: list[Callable[[RawClient], None]] = [
    before_the_preface,
    inside_headers,
    after_headers,
    inside_the_prefix,
    inside_the_message,
    before_the_half_close,
    queued_or_in_flight,
    many_in_flight,
    after_a_reset,
    inside_a_forwarded_call,
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_a_client_that_vanishes_leaves_nothing(
    state: Callable[[RawClient], None], abrupt: bool, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(staged_batches_max=0)], [fake.address])
    with connected(plane.address) as stub:
        first = fake.occupy(stub)
        for _ in range(5):
            with RawClient(plane.address) as client:
                state(client)
                # What was sent is read before the end is seen.
                wait_until(lambda: plane.snapshot().client_connections == 2, "it is connected")
                if abrupt:
                    client.vanish()
            wait_until(lambda: plane.snapshot().client_connections == 1, "its end is seen")
        assert plane.model_snapshot().queued_requests == 0
        fake.release()
        np.testing.assert_array_equal(output(first.result()), rows(7777.0))
        plane.assert_balanced()


@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_a_client_that_vanishes_while_it_reads_a_large_answer(
    abrupt: bool, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(dims=(-1,))], [fake.address])
    values = rows(1, 8, 500_000)  # 16 MB, more than socket buffers and windows take
    with RawClient(plane.address, receive_buffer_bytes=4096) as client:
        stream = client.infer(infer_request(values))
        client.wait_for(h2.events.DataReceived, stream)
        if abrupt:
            client.vanish()
    wait_until(lambda: plane.snapshot().client_connections == 0, "its end is seen")
    plane.assert_balanced()
    with connected(plane.address) as stub:
        small = stub.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(small), rows(2))


def test_vanishing_clients_beside_good_ones(
    plane: DataPlane, fake: FakeTriton, rng: random.Random
) -> None:
    """Connections in random states, cut at random bytes, while another client is served."""
    plane.apply([identity_model()], [fake.address], pb.Limits(connections_max=200))
    recorded = recording_of_a_session(plane.address)
    with connected(plane.address) as stub:
        for n in range(60):
            with RawClient(plane.address) as client:
                client.send_raw(recorded[: rng.randrange(len(recorded))])
                if rng.random() < 0.5:
                    client.vanish()
            if n % 10 == 0:
                response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
                np.testing.assert_array_equal(output(response), rows(n))
    wait_until(lambda: plane.snapshot().client_connections == 0, "all ends are seen")


def recording_of_a_session(address: str) -> bytes:
    """The bytes of a client that sends three requests, one of them cancelled."""
    with RawClient(address) as client:
        sent: list[bytes] = []
        client.send_raw = sent.append  # type: ignore[method-assign]
        for n in (1, 40):
            client.infer(infer_request(rows(n, n)))
        client.h2.reset_stream(client.infer(infer_request(rows(3))), 8)
        client.request_headers(path=INFER_PATH.replace("ModelInfer", "ModelReady"))
        client.flush()
        return b"".join(sent)


def test_a_stub_that_is_closed_with_calls_out(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.occupy(stub)
    with connected(plane.address) as other:
        calls = [other.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(100)]
        plane.wait_queued(100)
    plane.wait_queued(0)
    wait_until(lambda: all(call.done() for call in calls), "all have ended here, too")
    assert plane.counters()["cancelled"] == 100
    fake.release()
