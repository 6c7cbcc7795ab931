"""Clients that leave while replies are due, again and again: a Triton 2.51 may die of that."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import grpc
import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.streams import OpenStream, converse, repeat_request
from tests.wire.calls import connected

CLIENTS = 8
STREAMS_PER_CLIENT = 100


@pytest.fixture(scope="module")
def repeating(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("repeating")
    models.repeat(repository, instances=4)
    with EmbeddedTriton(repository) as running:
        yield running


def leave_in_the_middle(address: str, rng: random.Random) -> None:
    """By a cancel or a deadline, at any moment of the replies."""
    with connected(address) as stub:
        for _ in range(STREAMS_PER_CLIENT):
            timeout = rng.choice([30.0, rng.uniform(0.002, 0.02)])
            stream = OpenStream(stub, timeout=timeout)
            for _ in range(3):
                stream.send(repeat_request(rng.choice([1, 3, 6]), delay_ms=rng.choice([0, 1])))
            with contextlib.suppress(grpc.RpcError):  # its deadline
                stream.read_many(rng.randrange(4))
            stream.call.cancel()
            stream.half_close()


def test_streams_left_in_the_middle_do_not_end_the_triton(
    repeating: EmbeddedTriton, rng: random.Random
) -> None:
    failures: list[BaseException] = []

    def client(address: str, own: random.Random) -> None:
        try:
            leave_in_the_middle(address, own)
        except BaseException as error:
            failures.append(error)

    with ServedScheduler(["--backend", repeating.grpc_address]) as served:
        seeds = [rng.randrange(2**31) for _ in range(CLIENTS)]
        threads = [
            threading.Thread(target=client, args=(served.address, random.Random(seed)))
            for seed in seeds
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert failures == []
        assert repeating.running
        with connected(served.address) as stub:
            assert len(converse(stub, [repeat_request(5)]).messages) == 5
