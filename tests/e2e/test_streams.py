"""Streams as unmodified Triton clients use them; ends, deadlines, cancels, slow readers, load."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.streams import (
    OpenStream,
    converse,
    index_of,
    is_final,
    repeat_request,
    sequence_request,
    sum_of,
)
from tests.wire.calls import CHANNEL_OPTIONS, Stub, connected, infer_request, output, rows

WAIT_S = 30.0
MANY = 100_000


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What became of the requests of the repeat model."""
    return tmp_path_factory.mktemp("journal") / "journal"


@pytest.fixture(scope="module")
def served(
    needs_triton: None, journal: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedScheduler]:
    """A scheduler before a Triton whose repeat model has one instance and a journal."""
    repository = tmp_path_factory.mktemp("streams")
    models.identity(repository)
    models.slow(repository, per_execution_s=0.05)
    models.repeat(repository, journal=journal, instances=1)
    models.sequence(repository)
    with (
        EmbeddedTriton(repository) as triton,
        ServedScheduler(["--backend", triton.grpc_address]) as scheduler,
    ):
        yield scheduler


def tensor(name: str, value: int) -> grpcclient.InferInput:
    data = grpcclient.InferInput(name, [1, 1], "INT32")
    data.set_data_from_numpy(np.array([[value]], np.int32))
    return data


def cancelled_in(journal: Path) -> list[int]:
    """Of each request that was cancelled: the responses sent before."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    ended = [line.rsplit(" ", 2) for line in lines]
    return [int(sent) for _, outcome, sent in ended if outcome == "cancelled"]


class Answers:
    """The callback of the synchronous client, and what it was called with."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def next(self) -> Any:
        result, error = self._queue.get(timeout=WAIT_S)
        assert error is None, error
        return result

    def next_error(self) -> Any:
        result, error = self._queue.get(timeout=WAIT_S)
        assert error is not None, result
        return error


def test_the_synchronous_client_streams(served: ServedScheduler) -> None:
    client = grpcclient.InferenceServerClient(served.address)
    answers = Answers()
    client.start_stream(answers)
    try:
        client.async_stream_infer("repeat", [tensor("COUNT", 3)], request_id="r")
        indices = [int(answers.next().as_numpy("INDEX")[0, 0]) for _ in range(3)]
        assert indices == [0, 1, 2]
        client.async_stream_infer(
            "repeat", [tensor("COUNT", 0)], enable_empty_final_response=True, request_id="e"
        )
        empty = answers.next().get_response()
        assert (empty.id, len(empty.outputs)) == ("e", 0)
        assert empty.parameters["triton_final_response"].bool_param
        for value, start, end, total in ((5, True, False, 5), (6, False, True, 11)):
            client.async_stream_infer(
                "sequence",
                [tensor("VALUE", value)],
                sequence_id=4711,
                sequence_start=start,
                sequence_end=end,
            )
            assert int(answers.next().as_numpy("SUM")[0, 0]) == total
        client.async_stream_infer("nope", [tensor("COUNT", 1)])
        assert "unknown model" in answers.next_error().message()
    finally:
        client.stop_stream()
        client.close()


def test_the_asyncio_client_streams(served: ServedScheduler) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for value in range(1, 6):
            yield {
                "model_name": "sequence",
                "inputs": [tensor("VALUE", value)],
                "sequence_id": "text",
                "sequence_start": value == 1,
                "sequence_end": value == 5,
            }

    async def sums() -> list[int]:
        async with aioclient.InferenceServerClient(served.address) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                found.append(int(result.as_numpy("SUM")[0, 0]))
            return found

    assert asyncio.run(asyncio.wait_for(sums(), WAIT_S)) == [1, 3, 6, 10, 15]


def test_half_closing_lets_what_is_in_flight_finish(served: ServedScheduler) -> None:
    requests = [repeat_request(5, "r", delay_ms=20), infer_request(rows(1), model="slow")]
    with connected(served.address) as stub:
        got = converse(stub, requests)
    assert got.code == grpc.StatusCode.OK
    assert [index_of(message) for message in got.of("r")] == [0, 1, 2, 3, 4]
    assert len(got.messages) == 6


@pytest.mark.parametrize("end", ["cancel", "deadline", "connection"])
def test_a_stream_that_ends_frees_the_model(
    served: ServedScheduler, journal: Path, end: str
) -> None:
    before = len(cancelled_in(journal))
    with grpc.insecure_channel(served.address, options=CHANNEL_OPTIONS) as channel:
        stream = OpenStream(Stub(channel), timeout=2.0 if end == "deadline" else WAIT_S)
        stream.send(repeat_request(MANY, delay_ms=10))
        assert index_of(stream.read()) == 0
        if end == "deadline":
            with pytest.raises(grpc.RpcError) as raised:
                stream.read_many(MANY)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        elif end == "cancel":
            stream.call.cancel()
        if end != "connection":
            wait_until(lambda: len(cancelled_in(journal)) > before, "the model knows", WAIT_S)
    wait_until(lambda: len(cancelled_in(journal)) > before, "the model knows of it", WAIT_S)
    stream.half_close()
    [sent] = cancelled_in(journal)[before:]
    assert 0 < sent < MANY
    with connected(served.address) as stub:
        assert len(converse(stub, [repeat_request(2)]).messages) == 2


def test_a_deadline_ends_a_stream_nobody_speaks_on(served: ServedScheduler) -> None:
    with (
        connected(served.address) as stub,
        OpenStream(stub, timeout=0.5) as stream,
        pytest.raises(grpc.RpcError) as raised,
    ):
        stream.read()
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_that_reads_slowly_costs_bounded_memory_and_nobody_else(
    served: ServedScheduler,
) -> None:
    """300 MB of responses wait at the model, not here; a second stream goes on beside it."""
    count, size = 300, 1_000_000
    process = served.child("dataplane")
    before = process.memory_info().rss
    with (
        connected(served.address) as slow,
        connected(served.address) as quick,
        OpenStream(slow, timeout=120.0) as stream,
    ):
        stream.send(repeat_request(count, size=size))
        assert index_of(stream.read()) == 0
        sequence = [sequence_request(1, 31 + n, start=True, end=True) for n in range(200)]
        assert len(converse(quick, sequence).messages) == 200
        for n in range(50):
            answer = output(quick.ModelInfer(infer_request(rows(n)), timeout=WAIT_S))
            np.testing.assert_array_equal(answer, rows(n))
        grown = process.memory_info().rss - before
        assert grown < 150_000_000, f"{grown} bytes for a stream that nobody reads"
        rest = stream.read_many(count - 1)
        assert [index_of(message) for message in rest] == list(range(1, count))


def test_streams_and_unary_calls_share_the_model(served: ServedScheduler) -> None:
    """Answers are everyone's own, in order on each stream."""
    failures: list[str] = []

    def stream_client(first: int) -> None:
        with connected(served.address) as stub:
            values = [first + n for n in range(300)]
            got = converse(stub, [infer_request(rows(v), request_id=str(v)) for v in values])
            if got.ids() != [str(v) for v in values]:
                failures.append(f"order of {first}: {got.code} {got.text}")
            for value, message in zip(values, got.messages, strict=False):
                if not is_final(message) or (output(message.infer_response) != rows(value)).any():
                    failures.append(f"value {value}")

    def unary_client(first: int) -> None:
        with connected(served.address) as stub:
            for value in range(first, first + 200):
                answer = output(stub.ModelInfer(infer_request(rows(value)), timeout=WAIT_S))
                if (answer != rows(value)).any():
                    failures.append(f"unary {value}")

    threads = [threading.Thread(target=stream_client, args=(n * 1000,)) for n in range(3)]
    threads += [threading.Thread(target=unary_client, args=(10_000 + n * 1000,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S * 2)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def test_a_decoupled_stream_beside_slow_plain_requests(served: ServedScheduler) -> None:
    """Responses overtake earlier plain requests; those keep their order."""
    requests = [infer_request(rows(n), model="slow", request_id=f"s{n}") for n in range(4)]
    requests.insert(1, repeat_request(4, "r"))
    with connected(served.address) as stub:
        got = converse(stub, requests)
    assert [i for i in got.ids() if i != "r"] == ["s0", "s1", "s2", "s3"]
    assert [index_of(message) for message in got.of("r")] == [0, 1, 2, 3]


def test_sequences_by_unary_calls_with_numbers_and_texts(served: ServedScheduler) -> None:
    with connected(served.address) as stub:
        totals: dict[int | str, int] = {}
        for step in range(1, 5):
            for sequence_id in (77, "77", "another", 2**62):
                request = sequence_request(
                    step, sequence_id, start=step == 1, end=step == 4, request_id="u"
                )
                response = stub.ModelInfer(request, timeout=WAIT_S)
                totals[sequence_id] = totals.get(sequence_id, 0) + step
                assert sum_of(response) == totals[sequence_id]


def test_a_sequence_outlives_a_stream_cancelled_between_its_requests(
    served: ServedScheduler,
) -> None:
    with connected(served.address) as stub:
        stub.ModelInfer(sequence_request(1, 501, start=True), timeout=WAIT_S)
        with OpenStream(stub) as stream:
            stream.send(sequence_request(1, 501))
            assert sum_of(stream.read().infer_response) == 2
            stream.call.cancel()
        assert sum_of(stub.ModelInfer(sequence_request(1, 501, end=True), timeout=WAIT_S)) == 3


def test_memory_of_the_process_does_not_grow_with_streams(served: ServedScheduler) -> None:
    process = psutil.Process(served.child("dataplane").pid)

    def round_of_streams(count: int) -> None:
        with connected(served.address) as stub:
            for n in range(count):
                got = converse(stub, [repeat_request(2), infer_request(rows(n))])
                assert len(got.messages) == 3

    round_of_streams(100)
    before = process.memory_info().rss
    round_of_streams(300)
    assert process.memory_info().rss - before < 8_000_000
