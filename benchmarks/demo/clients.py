"""Many concurrent clients: processes of `tritonclient.grpc.aio`, as anybody would write them."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as grpcclient

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Load:
    """Who is asked what, and by how many at a time."""

    address: str
    model: str
    images: npt.NDArray[np.float32]
    rounds: int
    processes: int
    in_flight: int

    @property
    def requests(self) -> int:
        return len(self.images) * self.rounds


@dataclass
class Answers:
    """What came back: digit and latency of each answered request, by image."""

    image: list[int] = field(default_factory=list)
    digit: list[int] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    started_s: float = 0.0
    ended_s: float = 0.0

    def add(self, other: Answers) -> None:
        self.image += other.image
        self.digit += other.digit
        self.latency_s += other.latency_s
        self.errors += other.errors
        self.started_s = min(self.started_s or other.started_s, other.started_s)
        self.ended_s = max(self.ended_s, other.ended_s)

    @property
    def requests_per_s(self) -> float:
        return len(self.digit) / max(self.ended_s - self.started_s, 1e-9)

    def latency_ms(self, percentile: float) -> float:
        return float(np.percentile(self.latency_s, percentile)) * 1e3 if self.latency_s else 0.0


def send(load: Load) -> Answers:
    """Sends every image `rounds` times from all processes; returns when all answers are there."""
    context = multiprocessing.get_context("spawn")  # grpc does not survive a fork
    barrier = context.Barrier(load.processes)
    shares = [(load, barrier, index) for index in range(load.processes)]
    connections = []
    workers = []
    for share in shares:
        receiving, sending = context.Pipe(duplex=False)
        worker = context.Process(target=_client_process, args=(*share, sending), daemon=True)
        worker.start()
        sending.close()
        connections.append(receiving)
        workers.append(worker)
    total = Answers()
    for index, connection in enumerate(connections):
        try:
            total.add(connection.recv())
        except EOFError:
            total.errors.append(f"client process {index} ended without a result")
    for worker in workers:
        worker.join()
    return total


def _client_process(load: Load, barrier: Barrier, index: int, result: Any) -> None:
    result.send(asyncio.run(_client(load, barrier, index)))


async def _client(load: Load, barrier: Barrier, index: int) -> Answers:
    answers = Answers()
    mine = iter(range(index, load.requests, load.processes))
    async with grpcclient.InferenceServerClient(load.address) as client:
        await client.is_server_live()
        await asyncio.to_thread(barrier.wait, START_TIMEOUT_S)
        answers.started_s = time.monotonic()
        workers = max(1, load.in_flight // load.processes)
        await asyncio.gather(*(_worker(client, load, mine, answers) for _ in range(workers)))
        answers.ended_s = time.monotonic()
    return answers


async def _worker(
    client: grpcclient.InferenceServerClient, load: Load, numbers: Iterator[int], answers: Answers
) -> None:
    image = grpcclient.InferInput("IMAGE", [1, 64], "FP32")
    for number in numbers:
        position = number % len(load.images)
        image.set_data_from_numpy(load.images[position : position + 1])
        began = time.perf_counter()
        try:
            result = await client.infer(
                load.model, [image], request_id=str(number), client_timeout=REQUEST_TIMEOUT_S
            )
        except grpcclient.InferenceServerException as error:
            answers.errors.append(str(error))
            continue
        answers.latency_s.append(time.perf_counter() - began)
        if result.get_response().id != str(number):
            answers.errors.append(f"request {number} got the answer of {result.get_response().id}")
            continue
        answers.image.append(position)
        answers.digit.append(int(result.as_numpy("DIGIT")[0, 0]))
