"""A model that is unloaded is let go of: a Triton ends it once the streams that used it have ended.

So the streams to a backend end then, those of the clients go on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import OpenStream, is_final
from tests.wire.calls import Stub, connected
from tests.wire.fake_triton import (
    HOLD_TIMEOUT_S,
    FakeTriton,
    Message,
    Request,
    identity,
    values_of,
)
from tests.wire.test_backends import serving
from tests.wire.test_streams import decoupled, decoupled_model, in_sequence, sequence_model

# A stream to a backend is followed by another one after so many models.
MODELS_OF_A_STREAM_MAX = 16


def serve(plane: DataPlane, fake: FakeTriton, *models: pb.Model) -> None:
    assert plane.apply(list(models), [fake.address]) == ""


@pytest.fixture
def stub(plane: DataPlane, fake: FakeTriton) -> Iterator[Stub]:
    serve(plane, fake, identity_model(), decoupled_model(), sequence_model())
    with connected(plane.address) as client:
        yield client


@pytest.mark.parametrize("how", ["refusing", "gone", "not ready there"])
def test_a_stream_to_the_backend_ends_with_a_model_that_it_carried(
    stub: Stub, plane: DataPlane, fake: FakeTriton, how: str
) -> None:
    served = [identity_model(), decoupled_model(), sequence_model()]
    unloaded = [identity_model(), decoupled_model(), sequence_model()]
    if how == "gone":
        del unloaded[1]
    elif how == "refusing":
        unloaded[1].batching.refusing = True
    else:
        unloaded[1].placements[0].ready = False
    with OpenStream(stub) as stream:
        stream.send(decoupled())
        assert is_final(stream.read())
        stream.send(in_sequence(1, 9, start=True))
        assert is_final(stream.read())
        serve(plane, fake, *unloaded)
        wait_until(lambda: fake.streams_ended == 1, "the stream of the unloaded model ends")
        stream.send(in_sequence(1, 9, end=True))
        assert is_final(stream.read())
        assert (len(fake.streams), fake.streams_ended) == (2, 1), "the other one goes on"
        serve(plane, fake, *served)
        stream.send(decoupled())
        assert is_final(stream.read())
        assert len(fake.streams) == 3


def test_replies_that_are_due_come_before_the_stream_to_the_backend_ends(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    go_on = threading.Event()

    def two(request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        for last in (False, True):
            reply = identity(request)
            reply.parameters["triton_final_response"].bool_param = last
            yield Message(infer_response=reply)
            assert last or go_on.wait(HOLD_TIMEOUT_S)

    fake.stream_behaviour = two
    unloaded = decoupled_model()
    unloaded.batching.refusing = True
    with OpenStream(stub) as stream:
        stream.send(decoupled(1, "a"))
        assert not is_final(stream.read())
        serve(plane, fake, identity_model(), unloaded, sequence_model())
        stream.send(decoupled(1, "b"))
        assert stream.read().error_message
        assert fake.streams_ended == 0
        go_on.set()
        assert is_final(stream.read())
        wait_until(lambda: fake.streams_ended == 1, "the stream to the backend ends")


def test_what_was_queued_before_the_unload_holds_no_model(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.hold()
    models = [decoupled_model(0), sequence_model(1)]
    models[0].batching.direct_max = 1
    serve(plane, fake, *models)
    with OpenStream(stub) as stream:
        stream.send(decoupled(1), decoupled(2))
        plane.wait_queued(1)
        models[0].batching.refusing = True
        serve(plane, fake, *models)
        fake.release()
        assert all(is_final(message) for message in stream.read_many(2))
        wait_until(lambda: fake.streams_ended == len(fake.streams) == 2, "both streams end")


def test_a_stream_of_very_many_models_is_followed_by_another(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    models = [decoupled_model(n, f"m{n}") for n in range(MODELS_OF_A_STREAM_MAX + 1)]
    serve(plane, fake, *models)
    with OpenStream(stub) as stream:
        for model in models:
            request = decoupled()
            request.model_name = model.name
            stream.send(request, request)
            assert all(is_final(message) for message in stream.read_many(2))
        wait_until(lambda: (len(fake.streams), fake.streams_ended) == (2, 1), "a second stream")
        plane.assert_balanced()


def came(fake: FakeTriton) -> list[list[int]]:
    """The value of each request of each stream."""
    return [[int(values_of(request)[0, 0]) for request in on] for _, on in fake.streams]


def open_two_sequences(stream: OpenStream, fake: FakeTriton) -> None:
    """One of the model "other" that is answered, and one of "sequence" whose start is out."""
    other = in_sequence(1, 5, start=True)
    other.model_name = "other"
    stream.send(other)
    assert is_final(stream.read())
    fake.hold()
    stream.send(in_sequence(2, 9, start=True))
    wait_until(lambda: came(fake) == [[1, 2]], "the start is out")


def sequence_models() -> list[pb.Model]:
    return [sequence_model(0), sequence_model(1, "other")]


def unload_other(plane: DataPlane, fake: FakeTriton) -> None:
    models = sequence_models()
    models[1].batching.refusing = True
    serve(plane, fake, *models)


def hold_a_sequence_back(stream: OpenStream, plane: DataPlane, fake: FakeTriton) -> None:
    """Its start is out on a stream that is not used any more; two more of it have come."""
    open_two_sequences(stream, fake)
    unload_other(plane, fake)
    stream.send(in_sequence(3, 9), in_sequence(4, 9))
    plane.wait_queued(2)


def test_a_sequence_does_not_overtake_itself_on_the_next_stream(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    serve(plane, fake, *sequence_models())
    with OpenStream(stub) as stream:
        hold_a_sequence_back(stream, plane, fake)
        # Another sequence has nothing to wait for.
        stream.send(in_sequence(5, 10, start=True))
        wait_until(lambda: came(fake) == [[1, 2], [5]], "the other one's start is out")
        fake.release()
        assert all(is_final(message) for message in stream.read_many(4))
        wait_until(lambda: fake.streams_ended == 1, "the stream of the unloaded model ends")
    assert came(fake) == [[1, 2], [5, 3, 4]]
    plane.assert_balanced()


def test_a_sequence_whose_model_is_unloaded_does_not_overtake_itself(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    models = sequence_models()
    models[0].batching.direct_max = 1
    serve(plane, fake, *models)
    with OpenStream(stub) as stream:
        open_two_sequences(stream, fake)
        stream.send(in_sequence(3, 10, start=True), in_sequence(4, 10), in_sequence(5, 10))
        plane.wait_queued(3)
        models[0].batching.direct_max = 8
        models[0].batching.refusing = True
        serve(plane, fake, *models)
        # Dispatched in one turn, those of one sequence are on one stream.
        wait_until(lambda: came(fake) == [[1, 2], [3]], "what was queued is out")
        plane.wait_queued(0)
        fake.release()
        assert all(is_final(message) for message in stream.read_many(4))
        wait_until(lambda: fake.streams_ended == 2, "both streams end")
    assert came(fake) == [[1, 2], [3, 4, 5]]


def test_what_waits_for_a_stream_that_dies_is_answered(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    serve(plane, fake, *sequence_models())
    with OpenStream(stub) as stream:
        hold_a_sequence_back(stream, plane, fake)
        fake.kill()
        fake.release()
        fake.start()
        assert all(message.error_message for message in stream.read_many(3))
        wait_until(lambda: serving(plane, 0), "its backend is back")
        stream.send(in_sequence(5, 9, start=True))
        assert is_final(stream.read())
    plane.assert_balanced()


def test_more_models_than_a_stream_counts_may_start_at_once(
    stub: Stub, plane: DataPlane, fake: FakeTriton
) -> None:
    models = [decoupled_model(n, f"m{n}") for n in range(2 * MODELS_OF_A_STREAM_MAX + 8)]
    for model in models:
        model.batching.direct_max = 1
    serve(plane, fake, *models)
    fake.hold()
    with OpenStream(stub) as stream:
        for _ in range(2):
            for model in models:
                request = decoupled()
                request.model_name = model.name
                stream.send(request)
        for model in models:
            plane.wait_queued(1, model.index)
        for model in models:
            model.batching.direct_max = 8
        serve(plane, fake, *models)
        for model in models:
            plane.wait_queued(0, model.index)
        fake.release()
        assert all(is_final(message) for message in stream.read_many(2 * len(models)))
        # How many there were depends on what came in one turn.
        wait_until(lambda: fake.streams_ended >= len(fake.streams) - 1, "all but the last end")
        assert len(fake.streams) > 1
    assert sum(len(on) for on in came(fake)) == 2 * len(models)
    plane.assert_balanced()
