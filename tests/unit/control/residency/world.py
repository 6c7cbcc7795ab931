"""The real loader between Tritons and a data plane that only play: for faults no real one has."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.pool import BackendPool, join_catalogs
from scheduler.backends.probe import Answer, CallError, ProbeResult, RpcError
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config import Backend, Settings
from scheduler.config.schema import Discovery
from scheduler.control.cold.loads import Loads
from scheduler.control.device_memory.places import Places
from scheduler.control.model_moves import ModelMoves
from scheduler.control.residency.on_demand import ModelResidency
from scheduler.control.turns import Turns
from scheduler.memory.source import DeviceReading
from scheduler.memory.table import DeviceMemory
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.triton_answers import ScriptedCalls

GIB = 2**30
HEADROOM = GIB // 4
ONE, TWO = "127.0.0.1:1", "127.0.0.1:2"
GROUP = "instance_group { kind: KIND_GPU gpus: 0 }"
SEQUENCE = f"sequence_batching {{ max_sequence_idle_microseconds: 1000000 }} {GROUP}"
LOAD_S = 0.25
_HAVE_MEMORY = ("READY", "UNLOADING")


class FakeTriton(ScriptedCalls):
    """Explicit mode; `sizes` are what the models take of its device of `total` bytes."""

    def __init__(self, models: Mapping[str, str], sizes: Mapping[str, int], total: int) -> None:
        texts = {n: f'name: "{n}" max_batch_size: 8 {groups}' for n, groups in models.items()}
        super().__init__(**texts)
        self.states = {(name, "1"): "UNAVAILABLE" for name in models}
        self.sizes, self.total = sizes, total
        self.taken = 0  # by another process
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.asked = 0  # whether it loads models
        self.stuck: set[str] = set()  # it takes unloads of these, and does not end them
        self.silent = False  # it answers probes and nothing else
        self.faults: dict[str, Exception] = {}  # of loads, by name; "" of that question

    async def index(self) -> service_pb2.RepositoryIndexResponse:
        if self.silent:
            await asyncio.sleep(2)
            raise CallError("DEADLINE_EXCEEDED")
        return await super().index()

    @property
    def loaded(self) -> set[str]:
        return {name for (name, _), state in self.states.items() if state == "READY"}

    @property
    def free(self) -> int:
        there = {name for (name, _), state in self.states.items() if state in _HAVE_MEMORY}
        return self.total - self.taken - sum(self.sizes.get(name, GIB) for name in there)

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        if self.silent:
            await asyncio.sleep(timeout_s)
            raise RpcError("fake", grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if method == "RepositoryIndex":
            return await self.index()
        if method == "ModelStatistics":
            return service_pb2.ModelStatisticsResponse()
        name = request.model_name
        if method == "RepositoryModelUnload":
            if name:
                self.unloads.append(name)
                self.states[name, "1"] = "UNLOADING" if name in self.stuck else "UNAVAILABLE"
            else:
                self.asked += 1
                self._raise("")
            return service_pb2.RepositoryModelUnloadResponse()
        assert method == "RepositoryModelLoad"
        self.loads.append(name)
        await asyncio.sleep(LOAD_S)
        self._raise(name)
        if self.sizes.get(name, GIB) > self.free:
            raise failure("CUDA out of memory. Tried to allocate 20.00 GiB")
        self.states[name, "1"] = "READY"
        return service_pb2.RepositoryModelLoadResponse()

    def _raise(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name]


def device_of(address: str) -> str:
    return "gpu" + address.rpartition(":")[2]


def failure(text: str) -> RpcError:
    return RpcError("fake", grpc.StatusCode.INTERNAL, text)


class FakeDataPlane:
    """Its counters and its answers; by the indices of models."""

    valid = True

    def __init__(self) -> None:
        self.returned: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}
        self.waiting: dict[str, int] = {}  # for loads

    def batches_returned(self, index: int) -> int:
        return self.returned.get(index, 0)

    def model(self, index: int) -> dict[str, Any]:
        return {"in_flight": self.in_flight.get(index, 0)}

    async def settled(self, timeout_s: float = 0.0) -> None:
        pass

    async def snapshot(self, *args: Any) -> pb.Snapshot:
        found = pb.Snapshot()
        for index, count in self.in_flight.items():
            found.models.add(index=index, inflight_batches=count)
            for backend in range(2 if count else 0):
                found.batches.add(model_index=index, backend_index=backend)
        for name, requests in self.waiting.items():
            found.loading.add(name=name, requests=requests)
        return found


class FakeDevices:
    """One of each Triton, by its address; without `figures` nothing is known of them."""

    def __init__(self, tritons: Mapping[str, FakeTriton], figures: bool) -> None:
        self._tritons, self._figures = tritons, figures

    @property
    def current(self) -> dict[str, DeviceMemory]:
        if not self._figures:
            return {}
        return {
            device_of(address): self._device(t, address) for address, t in self._tritons.items()
        }

    def _device(self, triton: FakeTriton, address: str) -> DeviceMemory:
        key, now_ns = device_of(address), time.monotonic_ns()
        reading = DeviceReading(key, now_ns, total_bytes=triton.total, free_bytes=triton.free)
        return DeviceMemory(key, True, "nvml", "", 0, HEADROOM, reading)

    def places(self, backend: Backend, spec: object) -> Places:
        return Places((device_of(str(backend.address)),) if self._figures else ())

    def models_on(self, device: str) -> list[Any]:
        return []


class World:
    """Give it models by address, then `start` it within the loop."""

    def __init__(
        self,
        folder: Path,
        *tritons: tuple[str, Mapping[str, str]],
        sizes: Mapping[str, int] | None = None,
        total: int = 2 * GIB,
        figures: bool = True,
        residency: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        on = {"mode": "on_demand", **(residency or {})}
        self.tritons = {a: FakeTriton(models, sizes or {}, total) for a, models in tritons}
        self.data_plane = FakeDataPlane()
        self.pool = BackendPool(lambda: None)
        self.plane: Any = SimpleNamespace(
            pool=self.pool,
            settings=Settings.model_validate({"residency": on, **settings}),
            counters=self.data_plane,
            steering=self.data_plane,
            desired=SimpleNamespace(model_index={}, backend_index={}),
            devices=FakeDevices(self.tritons, figures),
            loads=Loads(folder),
            turns=Turns(),
            looked_around=True,
            refresh_state=self._refresh,
            confirmed=self.data_plane.settled,
        )
        self.residency = self.plane.residency = ModelResidency(self.plane, folder)
        self.loader = self.residency.loader
        self.moves = ModelMoves(self.pool, self.plane.turns)
        self.hold_readings = False  # what the Tritons have is not read again meanwhile

    async def start(self) -> None:
        """The Tritons are found as they are."""
        for index, (address, triton) in enumerate(self.tritons.items()):
            self.pool.backends[address] = Backend.model_validate({"address": address})
            calls: Any = triton
            self.pool.watches[address] = BackendWatch(
                address, Discovery(), self._refresh, calls=calls
            )
            self.plane.desired.backend_index[address] = index
        for watch in self.pool.watches.values():
            watch.take_probe(ProbeResult(Answer.READY))
            await watch.refresh()
        self._running = asyncio.create_task(self.loader.run())
        self._reading = asyncio.create_task(self._read_again())
        await self.until(lambda: self.residency.settled, "all have told")

    async def _read_again(self) -> None:
        """As the watches do it when they run."""
        while True:
            await asyncio.sleep(1)
            for watch in self.pool.watches.values():
                if self.hold_readings or watch.status is BackendStatus.DOWN:
                    continue
                with contextlib.suppress(CallError):
                    await watch.refresh()

    def _refresh(self) -> None:
        self.pool.catalog = join_catalogs(self.pool.watches, {})
        for key in self.pool.catalog:
            indices = self.plane.desired.model_index
            indices.setdefault(key, len(indices))
        self.moves.look()
        self.residency.look()

    async def until(self, condition: Callable[[], object], what: str, bound_s: float = 60) -> None:
        end_s = time.monotonic() + bound_s
        while not condition():
            assert time.monotonic() < end_s, what
            assert not self._running.done(), "the loader has ended"
            await asyncio.sleep(0.05)

    async def wanted_for(self, seconds: float, *names: str) -> None:
        """Requests for the models come again and again."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            for name in names:
                if not self.residency.loader.residents.served(name):
                    self.loader.want(name)
            await asyncio.sleep(0.1)

    async def load(self, name: str) -> None:
        self.loader.want(name)
        await self.until(lambda: self.loaded(name), f"{name} is loaded")

    def loaded(self, name: str) -> bool:
        return any(name in triton.loaded for triton in self.tritons.values())

    def use(self, name: str, in_flight: int = 0) -> None:
        """Batches have come back; so many are out still."""
        index = self.plane.desired.model_index[name, "1"]
        self.data_plane.returned[index] = self.data_plane.returned.get(index, 0) + 1
        self.data_plane.in_flight[index] = in_flight

    def told(self, name: str) -> pb.LoadableModel | None:
        """What the data plane knows of one that is not loaded."""
        return next((m for m in self.residency.steered().loadable if m.name == name), None)

    def error(self, name: str) -> str:
        told = self.told(name)
        return told.error if told is not None else ""
