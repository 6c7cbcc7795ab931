"""The servers and the load of the benchmark on a GPU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.gpu_tenant import FiguresTenant, Playing, ProcessTenant, Tenant, schedule
from benchmarks.gpu_timeline import Timeline
from benchmarks.options import Options, say
from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.memory.nvml import NvmlSource
from scheduler.memory.source import DeviceReading
from scheduler.v1 import control_pb2, control_pb2_grpc
from tests import models
from tests.nvml.figures import FILE_VARIABLE, Figures
from tests.serving import ServedScheduler

MIB = 2**20
MODEL = "activations"
ROWS_MAX = 64
# Of what is free, that the largest batch takes.
LARGEST_PART, BASE_PART = 0.5, 0.02
CLIENTS = 96
TIMEOUT_S = 30.0
SETTLE_S = 10.0
LEARN_S, BESIDE_S = 15.0, 60.0
SHORT_S = 4.0
LOOK_S = 0.05


@dataclass(frozen=True)
class Needs:
    """Of a batch: base_bytes + rows * bytes_per_row, in whole 2 MiB."""

    base_bytes: int
    bytes_per_row: int

    @classmethod
    def of(cls, free_bytes: int) -> Needs:
        row = int(free_bytes * LARGEST_PART / ROWS_MAX)
        return cls(*(max(part // (2 * MIB), 1) * 2 * MIB for part in
                     (int(free_bytes * BASE_PART), row)))  # fmt: skip


class World:
    """A device, a model for it and another tenant: real ones, or what stands in for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._nvml = NvmlSource()
        first = self.look()
        self.name, self.total_bytes, self.free_bytes = (
            first.name, first.total_bytes, first.free_bytes,
        )  # fmt: skip
        self.needs = Needs.of(first.free_bytes)
        self.sizes = tuple(b for b in (1, 2, 4, 8, 16, 24, 32, 48, 64) if b <= ROWS_MAX)
        self._figures = os.environ.get(FILE_VARIABLE)
        self.repository = directory / "models"
        needs = {"base_bytes": self.needs.base_bytes, "bytes_per_row": self.needs.bytes_per_row}
        if self._figures:
            arena = models.Arena(Path(self._figures), **needs)
            models.arena(self.repository, arena, MODEL, max_batch_size=ROWS_MAX, per_row_s=1e-4)
        else:
            models.activations(self.repository, MODEL, max_batch_size=ROWS_MAX, **needs)

    def look(self) -> DeviceReading:
        """The first device by NVML, now."""
        return self._nvml.poll()[0]

    def tenant(self) -> Tenant:
        return FiguresTenant(Figures(self._figures)) if self._figures else ProcessTenant()


def request_of(rows: int) -> service_pb2.ModelInferRequest:
    values = np.arange(rows * 16, dtype=np.float32)
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[values.tobytes()])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[rows, 16])
    return request


def actual_needs(world: World, sizes: Sequence[int]) -> dict[int, int]:
    """What batches of these sizes, rising, have added to the memory in use of a fresh Triton."""
    found = {}
    with (
        EmbeddedTriton(world.repository) as triton,
        grpc.insecure_channel(triton.grpc_address) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        before = world.look().used_bytes
        for rows in sizes:
            stub.ModelInfer(request_of(rows), timeout=TIMEOUT_S)
            found[rows] = world.look().used_bytes - before
    settle(world)
    return found


def settle(world: World) -> None:
    """Waits until a server that has ended holds no memory any more, a while at most."""
    until = time.monotonic() + SETTLE_S
    if os.environ.get(FILE_VARIABLE):
        Figures(os.environ[FILE_VARIABLE]).forget_dead(0)
    while world.look().free_bytes < world.free_bytes and time.monotonic() < until:
        time.sleep(LOOK_S)


@contextlib.contextmanager
def serving(world: World) -> Iterator[ServedScheduler]:
    config = world.directory / "infersched.yaml"
    config.write_text("defaults: {gpus: [0]}\n")
    with (
        EmbeddedTriton(world.repository) as triton,
        ServedScheduler(["--backend", triton.grpc_address, "--config", str(config)]) as served,
    ):
        yield served


def beside_tenant(world: World, options: Options) -> tuple[tuple[float, float] | None, Timeline]:
    """What was learned alone (base, a row), and what happened beside the tenant afterwards."""
    seconds = SHORT_S if options.short else BESIDE_S
    with serving(world) as served:
        alone = asyncio.run(Load(world, served.address).run(SHORT_S if options.short else LEARN_S))
        say(f"{alone.per_s:.0f} answers/s alone, {alone.errors} errors")
        learned = learned_need(served)
        tenant = world.tenant()
        try:
            changes = schedule(options.seed, seconds, world.look().free_bytes)
            with Playing(tenant, changes) as playing:
                timeline = asyncio.run(Load(world, served.address).run(seconds))
        finally:
            tenant.close()
    return learned, Timeline(
        timeline.seconds, timeline.total_bytes, timeline.used, playing.held, timeline.answers
    )


def learned_need(served: ServedScheduler) -> tuple[float, float] | None:
    """As the control plane tells it: it reads the data plane once in a while."""
    until = time.monotonic() + SETTLE_S
    with grpc.insecure_channel(served.control_address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        while time.monotonic() < until:
            answer = stub.ListModels(control_pb2.ListModelsRequest(name=MODEL), timeout=TIMEOUT_S)
            for model in answer.models:
                for memory in model.memory:
                    if memory.need.known and memory.need.rows_high >= ROWS_MAX // 2:
                        return memory.need.base_bytes, memory.need.bytes_per_row
            time.sleep(LOOK_S)
    return None


class Load:
    """Clients that ask again as soon as they are answered."""

    def __init__(self, world: World, address: str) -> None:
        self._world, self._address = world, address
        self._answers: list[tuple[float, bool]] = []
        self._used: list[tuple[float, int]] = []
        self._errors: set[str] = set()

    async def run(self, seconds: float) -> Timeline:
        self._began_s = time.monotonic()
        until = self._began_s + seconds
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            clients = (self._ask(stub, until) for _ in range(CLIENTS))
            await asyncio.gather(self._watch(until), *clients)
        for error in sorted(self._errors)[:5]:
            say(f"  error: {error}")
        lasted = time.monotonic() - self._began_s
        return Timeline(lasted, self._world.total_bytes, self._used, (), self._answers)

    async def _ask(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, until: float) -> None:
        request = request_of(1)
        while time.monotonic() < until:
            ok = False
            try:
                answer = await stub.ModelInfer(request, timeout=TIMEOUT_S)
                ok = list(answer.raw_output_contents) == list(request.raw_input_contents)
                if not ok:
                    self._errors.add("an answer that is not what was sent")
            except grpc.aio.AioRpcError as error:
                self._errors.add(f"{error.code().name}: {error.details()}")
            self._answers.append((time.monotonic() - self._began_s, ok))

    async def _watch(self, until: float) -> None:
        while time.monotonic() < until:
            self._used.append((time.monotonic() - self._began_s, self._world.look().used_bytes))
            await asyncio.sleep(LOOK_S)
