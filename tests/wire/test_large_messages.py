"""Messages of many megabytes: unchanged both ways, within the memory there is for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import psutil
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.codec_wire import varint
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import FINAL, OpenStream
from tests.wire.calls import Matrix, connected, error_info, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Message, Request, Response
from tests.wire.test_streams import decoupled_model

FLOATS_A_MIB = 1 << 18
HOST_BYTES_MAX = 64 << 20
# What the data plane keeps of freed large blocks, and what else it may take.
KEPT_BYTES_MAX = 64 << 20
SLACK_BYTES = 48 << 20


def large_model() -> pb.Model:
    return identity_model(dims=(-1,), max_batch_size=4, staged_batches_max=0)


def random_rows(seed: int, mebibytes: int) -> Matrix:
    values = np.random.default_rng(seed).random(mebibytes * FLOATS_A_MIB, dtype=np.float32)
    return values.reshape(1, -1)


@pytest.mark.parametrize("mebibytes", [1, 5, 40])
def test_large_messages_pass_unchanged(plane: DataPlane, fake: FakeTriton, mebibytes: int) -> None:
    """Beyond every window and frame; a second one takes the memory of the first."""
    assert plane.apply([large_model()], [fake.address]) == ""
    with connected(plane.address) as stub:
        for seed in range(2):
            values = random_rows(seed, mebibytes)
            np.testing.assert_array_equal(
                output(stub.ModelInfer(infer_request(values), timeout=60)), values
            )


def test_large_messages_are_merged_and_split_unchanged(plane: DataPlane, fake: FakeTriton) -> None:
    """One goes out, the next three wait for it and go together."""
    assert plane.apply([large_model()], [fake.address]) == ""
    values = [random_rows(seed, 3) for seed in range(4)]
    with connected(plane.address) as first, connected(plane.address) as second:
        fake.hold()
        calls = [first.ModelInfer.future(infer_request(values[0]), timeout=60)]
        wait_until(lambda: len(fake.requests) == 1, "the first is at the backend")
        stubs = (second, first, second)
        calls += [
            stub.ModelInfer.future(infer_request(each), timeout=60)
            for stub, each in zip(stubs, values[1:], strict=True)
        ]
        plane.wait_queued(3)
        fake.release()
        for call, each in zip(calls, values, strict=True):
            np.testing.assert_array_equal(output(call.result()), each)
    assert [request.inputs[0].shape[0] for request in fake.requests] == [1, 3]


def test_memory_stays_bounded_when_large_messages_pile_up(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """Offered is six times what there is: the others are refused, and those that fit are right."""
    limits = pb.Limits(host_bytes_max=HOST_BYTES_MAX)
    assert plane.apply([large_model()], [fake.address], limits) == ""
    process = psutil.Process(plane.process.pid)
    values = random_rows(1, 16)
    before = process.memory_info().rss
    with ExitStack() as stack:
        stubs = [stack.enter_context(connected(plane.address)) for _ in range(24)]
        fake.hold()
        calls = [stub.ModelInfer.future(infer_request(values), timeout=120) for stub in stubs]
        # Nothing is answered yet: what ends is refused.
        fit = HOST_BYTES_MAX // values.nbytes
        wait_until(lambda: sum(call.done() for call in calls) >= len(calls) - fit, "the rest", 60)
        grown = process.memory_info().rss - before
        fake.release()
        for call in calls:
            error = call.exception(timeout=60)
            if error is None:
                np.testing.assert_array_equal(output(call.result()), values)
            else:
                assert error_info(error).reason == "HOST_MEMORY"
    asan = "asan" in str(process.environ().get("LD_PRELOAD"))
    assert asan or grown < HOST_BYTES_MAX + KEPT_BYTES_MAX + SLACK_BYTES, grown
    with connected(plane.address) as stub:
        np.testing.assert_array_equal(
            output(stub.ModelInfer(infer_request(values), timeout=60)), values
        )


class HeldStream:
    """One reply of these bytes to a request of a decoupled model; the last one on release()."""

    def __init__(self, fake: FakeTriton, reply_bytes: int = 0) -> None:
        self._contents = Response(raw_output_contents=[bytes(reply_bytes)]).SerializeToString()
        self._tag = varint(Message.INFER_RESPONSE_FIELD_NUMBER << 3 | 2)
        self._released = threading.Event()
        self.release = self._released.set
        fake.stream_behaviour = self._replies

    def _replies(self, request: Request, context: object) -> Iterator[Message | bytes]:
        begin = Response(id=request.id).SerializeToString()
        length = varint(len(begin) + len(self._contents))
        # One copy of a large reply: during each no other Python thread runs.
        yield b"".join((self._tag, length, begin, self._contents))
        self._released.wait(60)
        last = Message()
        last.infer_response.id = request.id
        last.infer_response.parameters[FINAL].bool_param = True
        yield last


@pytest.mark.parametrize("streamed", [rows(1), random_rows(0, 5)], ids=["small", "large"])
def test_a_large_request_does_not_wait_for_a_streamed_one_of_its_connection(
    plane: DataPlane, fake: FakeTriton, streamed: Matrix
) -> None:
    held = HeldStream(fake)
    decoupled = identity_model(0, "decoupled", merge=False, direct_max=8, dims=(-1,))
    decoupled.decoupled = True
    assert plane.apply([decoupled, identity_model(1, "large", dims=(-1,))], [fake.address]) == ""
    values = random_rows(1, 24)
    with connected(plane.address) as stub, OpenStream(stub) as stream:
        stream.send(infer_request(streamed, model="decoupled"))
        stream.read()
        answer = stub.ModelInfer(infer_request(values, model="large"), timeout=30)
        np.testing.assert_array_equal(output(answer), values)
        held.release()


def test_a_large_streamed_reply_is_let_go_when_it_has_left(
    plane: DataPlane, fake: FakeTriton
) -> None:
    large_bytes = 144 << 20
    held = HeldStream(fake, large_bytes)
    assert plane.apply([decoupled_model(0)], [fake.address]) == ""
    process = psutil.Process(plane.process.pid)
    before = process.memory_info().rss
    with connected(plane.address) as stub, OpenStream(stub) as stream:
        stream.send(infer_request(rows(1), model="decoupled"))
        reply = stream.read()
        assert reply.error_message == ""
        assert len(reply.infer_response.raw_output_contents[0]) == large_bytes
        kept_max = KEPT_BYTES_MAX + SLACK_BYTES
        wait_until(lambda: process.memory_info().rss - before < kept_max, "it is let go")
        held.release()
