"""Streams before a backend that does as the test says: faults, order, bounds, metadata."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import OpenStream, converse, is_final
from tests.wire.calls import Stub, connected, infer_error, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Message, Request, Response, identity, one_reply

OK = grpc.StatusCode.OK
IDLE_NS = 60 * 10**9


def decoupled_model(index: int = 1, name: str = "decoupled") -> pb.Model:
    model = identity_model(index, name, merge=False, direct_max=8)
    model.decoupled = True
    return model


def sequence_model(index: int = 2, name: str = "sequence", **batching: object) -> pb.Model:
    settings = {"merge": False, "direct_max": 8, "sequence_idle_ns": IDLE_NS, **batching}
    model = identity_model(index, name, **settings)  # type: ignore[arg-type]
    model.sequence = True
    return model


@pytest.fixture
def streaming(fake: FakeTriton, plane: DataPlane) -> Iterator[Stub]:
    """Models "identity", "decoupled" and "sequence" at one fake."""
    models = [identity_model(staged_batches_max=0), decoupled_model(), sequence_model()]
    assert plane.apply(models, [fake.address]) == ""
    with connected(plane.address) as client:
        yield client
        fake.release()


def decoupled(value: float = 1.0, request_id: str = "") -> Request:
    return infer_request(rows(value), model="decoupled", request_id=request_id)


def in_sequence(value: float, sequence_id: int, **flags: bool) -> Request:
    parameters = {"sequence_id": sequence_id, "sequence_start": False, "sequence_end": False}
    parameters |= {f"sequence_{key}": flag for key, flag in flags.items()}
    return infer_request(rows(value), model="sequence", parameters=parameters)


def replies(request: Request, count: int) -> Iterator[Message]:
    for number in range(count):
        reply = identity(request)
        reply.parameters["triton_final_response"].bool_param = number == count - 1
        yield Message(infer_response=reply)


def test_the_backend_sees_one_stream_of_each_kind_with_ids_of_ours(
    streaming: Stub, fake: FakeTriton
) -> None:
    requests = [decoupled(1, "mine"), decoupled(2, "mine"), decoupled(3)]
    requests += [in_sequence(4, 9, start=True), in_sequence(5, 9, end=True)]
    got = converse(streaming, requests)
    assert got.code == OK
    assert sorted(got.ids()) == ["", "", "", "mine", "mine"]
    assert sorted(len(came) for _, came in fake.streams) == [2, 3]
    ids = [request.id for _, came in fake.streams for request in came]
    assert len(set(ids)) == 5
    assert "mine" not in ids
    for _, came in fake.streams:
        assert all(r.parameters["triton_enable_empty_final_response"].bool_param for r in came)
    wait_until(lambda: fake.streams_ended == 2, "the streams to the backend end")


def test_two_client_streams_have_streams_of_their_own(streaming: Stub, fake: FakeTriton) -> None:
    with OpenStream(streaming) as one, OpenStream(streaming) as two:
        for stream in (one, two, one, two):
            stream.send(decoupled(1))
            assert is_final(stream.read())
    assert [len(came) for _, came in fake.streams] == [2, 2]


def test_plain_requests_of_a_stream_are_merged_with_those_of_others(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(streaming)
    with OpenStream(streaming) as one, OpenStream(streaming) as two:
        one.send(*[infer_request(rows(n), request_id=f"a{n}") for n in range(3)])
        two.send(*[infer_request(rows(10 + n), request_id=f"b{n}") for n in range(3)])
        plane.wait_queued(6)
        fake.release()
        for stream, first, letter in ((one, 0, "a"), (two, 10, "b")):
            for n, message in enumerate(stream.read_many(3)):
                assert message.infer_response.id == f"{letter}{n}"
                assert is_final(message)
                np.testing.assert_array_equal(output(message.infer_response), rows(first + n))
    assert fake.batch_rows() == [1, 6]


def test_replies_wait_for_those_of_earlier_requests(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    """A refusal, too; what a later request got is not lost."""
    fake.occupy(streaming)
    with OpenStream(streaming) as stream:
        stream.send(infer_request(rows(1), request_id="a"))
        plane.wait_queued(1)
        stream.send(infer_request(rows(1), model="nope", request_id="b"))
        stream.send(decoupled(2, "c"))
        fake.release()
        ids = [message.infer_response.id for message in stream.read_many(3)]
    assert [i for i in ids if i != "c"] == ["a", "b"]


def test_a_refusal_shows_the_whole_id(streaming: Stub) -> None:
    """As Triton's does, whose other replies and texts show it up to a NUL."""
    refused = infer_request(rows(1), model="nope", request_id="a\0b")
    (message,) = converse(streaming, [refused]).messages
    assert message.error_message
    assert message.infer_response.id == "a\0b"


def test_forwarded_metadata_goes_with_the_stream_and_its_deadline_does_not(
    plane: DataPlane, fake: FakeTriton
) -> None:
    limits = pb.Limits(forward_metadata=["x-tenant"])
    plane.apply([decoupled_model(0)], [fake.address], limits)
    metadata = (("x-tenant", "acme"), ("x-other", "no"), ("triton_grpc_error", "true"))
    with connected(plane.address) as stub:
        assert converse(stub, [decoupled()], metadata=metadata, timeout=50).code == OK
    seen, _ = fake.streams[0]
    assert seen["x-tenant"] == "acme"
    assert not {"x-other", "triton_grpc_error"} & set(seen)
    # None was sent: the real one may end itself when one passes.
    assert fake.remaining_s[0] is None or fake.remaining_s[0] > 1e9


def test_a_backend_stream_that_ends_fails_its_requests_and_the_next_gets_another(
    streaming: Stub, fake: FakeTriton
) -> None:
    def two_of_three(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        yield from list(replies(request, 3))[:2]
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    fake.stream_behaviour = two_of_three
    with OpenStream(streaming) as stream:
        stream.send(decoupled(1, "a"))
        messages = stream.read_many(3)
        assert [message.infer_response.id for message in messages] == ["a"] * 3
        assert [message.error_message for message in messages] == ["", "", "gone"]
        assert is_final(messages[2])
        fake.stream_behaviour = one_reply
        stream.send(decoupled(2, "b"))
        assert stream.read().infer_response.id == "b"
    assert len(fake.streams) == 2


def test_a_request_without_replies_is_sent_again_when_its_stream_was_lost(
    streaming: Stub, fake: FakeTriton
) -> None:
    tries: list[str] = []

    def second_time(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        tries.append(request.id)
        if len(tries) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield from one_reply(request)

    fake.stream_behaviour = second_time
    got = converse(streaming, [decoupled(1, "a")])
    assert (got.code, got.errors()) == (OK, [""])
    assert len(tries) == 2


def test_a_request_of_a_sequence_is_not_sent_again(streaming: Stub, fake: FakeTriton) -> None:
    def gone(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield from ()

    fake.stream_behaviour = gone
    got = converse(streaming, [in_sequence(1, 5, start=True), in_sequence(2, 5)])
    assert got.code == OK
    assert len(got.messages) == 2
    assert all("start the sequence again" in text for text in got.errors())
    assert sum(len(came) for _, came in fake.streams) <= 2


def test_an_error_of_a_unary_request_leaves_its_sequence_where_it_is(
    streaming: Stub, fake: FakeTriton
) -> None:
    def second_fails(request: Request, context: grpc.ServicerContext) -> Response:
        if len(fake.requests) == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the index is away")
        return identity(request)

    fake.behaviour = second_fails
    streaming.ModelInfer(in_sequence(1, 5, start=True))
    error = infer_error(streaming, in_sequence(2, 5))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the index is away")
    response = streaming.ModelInfer(in_sequence(3, 5, end=True))
    np.testing.assert_array_equal(output(response), rows(3))
    assert len(fake.requests) == 3


def test_a_sequence_outlives_a_stream_that_is_cancelled_with_a_request_in_flight(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    """Whether the state is still there is for the backend to say."""

    def second_hangs(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        if request.parameters["sequence_start"].bool_param:
            yield from one_reply(request)
        else:
            wait_until(lambda: not context.is_active(), "the stream is cancelled")

    fake.stream_behaviour = second_hangs
    with OpenStream(streaming) as stream:
        stream.send(in_sequence(1, 5, start=True))
        assert stream.read().error_message == ""
        stream.send(in_sequence(2, 5))
        wait_until(lambda: sum(len(came) for _, came in fake.streams) == 2, "it is in flight")
        stream.call.cancel()
    wait_until(lambda: fake.streams_ended == 1, "the stream to the backend is reset")
    fake.stream_behaviour = one_reply
    got = converse(streaming, [in_sequence(3, 5), in_sequence(4, 5, end=True)])
    assert (got.code, got.errors()) == (OK, ["", ""])
    plane.assert_balanced()


def test_replies_nobody_asked_for_are_dropped(streaming: Stub, fake: FakeTriton) -> None:
    def strays(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        for stray in ("", "x", "0", "18446744073709551615", "99999999999999999999999", "-1"):
            odd = identity(request)
            odd.id = stray
            yield Message(infer_response=odd)
        yield Message(error_message="no id at all")
        yield from replies(request, 2)
        yield from one_reply(request)  # after the last one

    fake.stream_behaviour = strays
    with OpenStream(streaming) as stream:
        for value in (1.0, 2.0):
            stream.send(decoupled(value, "a"))
            got = stream.read_many(2)
            assert [message.infer_response.id for message in got] == ["a", "a"]
            np.testing.assert_array_equal(output(got[1].infer_response), rows(value))
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()


@pytest.mark.parametrize(
    ("text", "leaves"),
    [
        ("Request for unknown model: '{model}' has no available versions", True),
        ("[request id: {id}] Exceeds maximum queue size", False),
    ],
    ids=["leaving", "full_queue"],
)
def test_what_did_not_run_sends_streamed_requests_elsewhere(
    text: str, leaves: bool, plane: DataPlane
) -> None:
    def refusing(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        refused = Message(error_message=text.format(model=request.model_name, id=request.id))
        refused.infer_response.id = request.id
        yield refused

    with FakeTriton() as one, FakeTriton() as two, connected(plane.address) as stub:
        model = decoupled_model(0)
        model.placements.add(backend_index=1, instances=1, ready=True)
        plane.apply([model], [one.address, two.address])
        one.stream_behaviour = refusing
        for n in range(4):
            got = converse(stub, [decoupled(n, "a")])
            assert (got.code, got.errors()) == (OK, [""])
        if leaves:
            assert plane.wait_event("backend_leaving").backend_leaving.backend_index == 0
        assert one.streams, "it was asked"
        assert sum(len(came) for _, came in two.streams) == 4
    assert plane.events_seen("backend_leaving") == []


def test_a_stream_ended_by_the_client_cancels_what_is_queued_and_in_flight(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(streaming)
    with OpenStream(streaming) as stream:
        stream.send(*[infer_request(rows(n)) for n in range(5)], decoupled(9))
        plane.wait_queued(5)
        wait_until(lambda: any(came for _, came in fake.streams), "the decoupled one is out")
        stream.call.cancel()
        plane.wait_queued(0)
    wait_until(lambda: fake.streams_ended == 1, "the stream to the backend is reset")
    fake.release()
    plane.assert_balanced()
    assert plane.counters()["cancelled"] == 5
    assert plane.counters(1)["cancelled"] == 1


def test_a_stream_past_its_deadline_ends_with_it(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    fake.occupy(streaming)
    requests = [infer_request(rows(n)) for n in range(3)]
    got = converse(streaming, requests, timeout=1.0)
    assert got.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert got.messages == []
    plane.wait_queued(0)
    fake.release()


def test_a_stream_past_its_deadline_takes_that_to_the_backend_along(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    def never_ends(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        wait_until(lambda: not context.is_active(), "the stream is cancelled")
        yield from ()

    fake.stream_behaviour = never_ends
    got = converse(streaming, [decoupled(1, "a")], timeout=2.0)
    assert (got.code, got.messages) == (grpc.StatusCode.DEADLINE_EXCEEDED, [])
    wait_until(lambda: fake.streams_ended == 1, "the stream to the backend is reset")
    plane.assert_balanced()


def test_a_request_of_a_stream_may_have_a_shorter_time_of_its_own(
    streaming: Stub, fake: FakeTriton
) -> None:
    fake.occupy(streaming)
    hurried = infer_request(rows(1), request_id="a", parameters={"timeout": 200_000})
    with OpenStream(streaming) as stream:
        stream.send(hurried)
        message = stream.read()
        assert message.error_message == "Request timeout expired"
        assert (message.infer_response.id, is_final(message)) == ("a", True)
        fake.release()
        stream.send(infer_request(rows(2), request_id="b"))
        assert stream.read().error_message == ""


def test_a_drain_ends_streams(streaming: Stub, plane: DataPlane) -> None:
    with OpenStream(streaming) as stream:
        stream.send(decoupled(1, "a"))
        assert is_final(stream.read())
        plane.drain(20_000)
        plane.wait_drained()
        with pytest.raises(grpc.RpcError) as raised:
            stream.read()
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "draining" in (raised.value.details() or "")


def test_bytes_that_are_no_request_end_the_requests_as_in_triton(
    streaming: Stub, plane: DataPlane
) -> None:
    with grpc.insecure_channel(plane.address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=Message.FromString,
        )
        data = [infer_request(rows(1), request_id="a").SerializeToString(), b"\xff\xff\xff"]
        stream = call(iter([*data, data[0]]), timeout=30)
        assert [message.infer_response.id for message in stream] == ["a"]
        assert stream.code() == OK


def test_a_stream_that_is_not_read_leaves_its_connection_to_others(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """32 MB of requests on a stream whose answers nobody reads; others share its connection."""
    plane.apply([identity_model(dims=(-1,), merge=False)], [fake.address])
    width = 100_000
    with connected(plane.address) as stub, OpenStream(stub, timeout=120.0) as slow:
        slow.send(*[infer_request(rows(n, 1, width), request_id=str(n)) for n in range(80)])
        wait_until(lambda: len(fake.requests) > 3, "the first ones are through")
        for n in range(30):
            response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(n))
        messages = slow.read_many(80)
    assert [message.infer_response.id for message in messages] == [str(n) for n in range(80)]


def test_more_requests_than_may_wait_in_order_are_all_answered(
    streaming: Stub, fake: FakeTriton, plane: DataPlane
) -> None:
    """1024 replies may wait for the first one; the rest is looked at later."""
    count = 5000
    fake.occupy(streaming)
    with OpenStream(streaming, timeout=120.0) as stream:
        stream.send(*[infer_request(rows(n), request_id=str(n)) for n in range(count)])
        plane.wait_queued(1024)
        assert plane.model_snapshot().queued_requests == 1024
        fake.release()
        messages = stream.read_many(count)
    assert [message.infer_response.id for message in messages] == [str(n) for n in range(count)]
    assert [message.error_message for message in messages] == [""] * count
