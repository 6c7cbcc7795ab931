"""Sequences before two Tritons: each stays where it started, and is lost with its Triton."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.streams import OpenStream, converse, sequence_request, sum_of
from tests.wire.calls import Stub, connected, error_info, infer_error, infer_request, rows

WAIT_S = 30.0
IDLE_S = 1.0
SEQUENCES = 12


@pytest.fixture(scope="module")
def repository(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sequences")
    models.identity(directory)
    models.sequence(directory)
    idle = models.Sequencing(idle_us=int(IDLE_S * 1e6))
    models.sequence(directory, "forgetful", sequencing=idle)
    # Through an ensemble of an ensemble: Triton hands the sequence on to the innermost step.
    for name, step_name in (("inner", "sequence"), ("ensemble", "inner")):
        models.ensemble(
            directory,
            name,
            steps=[step_name],
            source=models.Tensor("VALUE", "INT32", (1,)),
            target=models.Tensor("SUM", "INT32", (1,)),
            max_batch_size=8,
        )
    return directory


@pytest.fixture
def pair(repository: Path) -> Iterator[tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler]]:
    """Two Tritons, and a scheduler before them that knows both."""
    with EmbeddedTriton(repository) as one, EmbeddedTriton(repository) as two:
        backends = ["--backend", one.grpc_address, "--backend", two.grpc_address]
        with ServedScheduler(backends) as scheduler:
            wait_until(lambda: both_serve(scheduler), "both Tritons serve", WAIT_S)
            yield one, two, scheduler


def both_serve(scheduler: ServedScheduler) -> bool:
    return scheduler.log_path.read_text().count("backend is serving") == 2


def step(stub: Stub, value: int, sequence_id: int | str, **flags: bool) -> int:
    request = sequence_request(value, sequence_id, **flags)
    return sum_of(stub.ModelInfer(request, timeout=WAIT_S))


def started_at(one: EmbeddedTriton, two: EmbeddedTriton, model: str = "sequence") -> list[int]:
    """Requests that each Triton was asked for."""
    counts = []
    for triton in (one, two):
        with connected(triton.grpc_address) as stub:
            statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=model))
            counts.append(int(statistics.model_stats[0].inference_count))
    return counts


def test_sequences_spread_and_stay(
    pair: tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler],
) -> None:
    one, two, scheduler = pair
    with connected(scheduler.address) as stub:
        for value in range(1, 6):
            for sequence_id in range(1, SEQUENCES + 1):
                flags = {"start": value == 1, "end": value == 5}
                total = step(stub, value * sequence_id, sequence_id, **flags)
                assert total == sequence_id * value * (value + 1) // 2
        # A Triton counts a request after it has answered it.
        halves = [SEQUENCES * 5 // 2] * 2
        wait_until(lambda: started_at(one, two) == halves, "each has had half of them")


def test_sequences_through_an_ensemble_stay_and_keep_their_order(
    pair: tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler],
) -> None:
    values, ids = range(1, 11), range(1, SEQUENCES + 1)
    expected = [value * (value + 1) // 2 for value in values for _ in ids]
    with connected(pair[2].address) as stub:
        unary = [
            sum_of(stub.ModelInfer(ensemble_request(value, sequence_id), timeout=WAIT_S))
            for value in values
            for sequence_id in ids
        ]
        assert unary == expected
        # All at once on one stream: nothing waits for the answer to what came before it.
        streamed = converse(
            stub,
            [ensemble_request(v, 100 + sequence_id) for v in values for sequence_id in ids],
            timeout=WAIT_S,
        )
        assert streamed.errors() == [""] * len(expected)
        assert [sum_of(message.infer_response) for message in streamed.messages] == expected


def ensemble_request(value: int, sequence_id: int) -> service_pb2.ModelInferRequest:
    start, end = value == 1, value == 10
    return sequence_request(value, sequence_id, start=start, end=end, model="ensemble")


@pytest.mark.parametrize("path", ["unary", "stream"])
def test_a_killed_triton_loses_its_sequences_and_no_others(
    pair: tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler], path: str
) -> None:
    one, _, scheduler = pair
    ids = [f"sequence {n}" for n in range(SEQUENCES)]
    with connected(scheduler.address) as stub:
        for sequence_id in ids:
            assert step(stub, 1, sequence_id, start=True) == 1
        one.kill()
        lost = kept = 0
        for sequence_id in ids:
            request = sequence_request(2, sequence_id, request_id="r")
            if path == "stream":
                message = converse(stub, [request]).messages[0]
                error = message.error_message
                total = 0 if error else sum_of(message.infer_response)
            else:
                call = stub.ModelInfer.future(request, timeout=WAIT_S)
                failure = call.exception()
                error = failure.details() if failure is not None else ""
                total = 0 if failure is not None else sum_of(call.result())
                if failure is not None:
                    assert failure.code() == grpc.StatusCode.ABORTED
                    assert error_info(failure).reason == "SEQUENCE_LOST"
            if error:
                assert "[request id: r]" in error
                assert "start the sequence again" in error
                lost += 1
            else:
                assert total == 3
                kept += 1
        assert (lost, kept) == (SEQUENCES // 2, SEQUENCES // 2)
        for sequence_id in ids:
            assert step(stub, 5, sequence_id, start=True, end=True) == 5
        assert stub.ModelInfer(infer_request(rows(1)), timeout=WAIT_S).model_name == "identity"


def test_a_stream_tells_what_was_in_flight_at_a_killed_triton(
    pair: tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler],
) -> None:
    one, two, scheduler = pair
    with connected(scheduler.address) as stub, OpenStream(stub, timeout=WAIT_S) as stream:
        for sequence_id in (1, 2):
            stream.send(sequence_request(1, sequence_id, start=True))
            assert sum_of(stream.read().infer_response) == 1
        one.kill()
        two.kill()
        stream.send(sequence_request(1, 1, request_id="a"), sequence_request(1, 2, request_id="b"))
        messages = stream.read_many(2)
        assert [message.infer_response.id for message in messages] == ["a", "b"]
        assert all(message.error_message for message in messages)
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.read()


def test_an_idle_sequence_is_forgotten_as_triton_forgets_it(
    pair: tuple[EmbeddedTriton, EmbeddedTriton, ServedScheduler],
) -> None:
    _, _, scheduler = pair
    started = sequence_request(1, 5, start=True, model="forgetful")
    goes_on = sequence_request(1, 5, model="forgetful")
    with connected(scheduler.address) as stub:
        assert sum_of(stub.ModelInfer(started, timeout=WAIT_S)) == 1
        # Every request would keep it alive.
        left_alone = time.monotonic() + 3 * IDLE_S
        wait_until(lambda: time.monotonic() > left_alone, "three times the idle time")
        error = infer_error(stub, goes_on)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "must specify the START flag" in error.details()
