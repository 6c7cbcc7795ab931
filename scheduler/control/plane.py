"""The control plane: joins discovery, steering, cold RPCs, the Control service and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from scheduler._native.counters import CountersPage
from scheduler.backends.pool import BackendPool, CatalogEntry
from scheduler.backends.remembered import ModelKey
from scheduler.backends.watch import BackendStatus
from scheduler.config import Batching, ConfigError, LoadedSettings, Settings
from scheduler.control.activity import Activity
from scheduler.control.cold.loads import Loads
from scheduler.control.cold.region_sync import RegionSync
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState, served_placements
from scheduler.control.device_memory.devices import Devices
from scheduler.control.device_memory.learned import LearnedMemory
from scheduler.control.device_memory.readings import DeviceReadings
from scheduler.control.health import HealthServicer
from scheduler.control.latency.latencies import Latencies
from scheduler.control.model_moves import ModelMoves
from scheduler.control.parameters import Parameters
from scheduler.control.payload_memory import PayloadMemory
from scheduler.control.readiness import Readiness
from scheduler.control.residency.on_demand import ModelResidency
from scheduler.control.steering import SteeringClient
from scheduler.control.turns import Turns
from scheduler.memory.sharers import Sharers
from scheduler.telemetry.logs import log
from scheduler.telemetry.metrics import SHARED_MEMORY_GAUGES, Scope
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

# Keys read once at start: sockets are bound, and children started, by then. All others reload.
RESTART_ONLY = {
    "server": (
        "listen",
        "metrics_listen",
        "control_listen",
        "tls",
        "state_directory",
        "shared_memory_bytes_max",
        "scheduling_hints",
    ),
    "embedded": ("model_repository", "model_control_mode", "load_models"),
    "device_memory": ("schedulers_directory",),
    "logging": ("level", "format"),
}


class ControlPlane:
    """Owns the wanted state: recomputes it when the pool or the settings change."""

    def __init__(self, parameters: Parameters, loaded: LoadedSettings) -> None:
        self.parameters = parameters
        self.loaded = loaded
        self.started_at_s = time.time()
        self.reload_failures = 0
        self.counters = CountersPage(parameters.counters_fd)
        self.desired = DesiredState(parameters.runtime_directory)
        self.steering = SteeringClient(
            parameters.steering_socket, self.on_event, self._data_plane_changed
        )
        # (model, backend) indices that the data plane sends requests by.
        self._served: set[tuple[int | None, int | None]] = set()
        self.pool = BackendPool(
            self.refresh_state, self._replies_of, parameters.runtime_directory, sent=self._sent
        )
        self.payload = PayloadMemory(self.pool, self.refresh_state)
        activity = Activity(self.counters, lambda: self.desired.backend_index.values())
        state_directory = self.settings.server.state_directory or parameters.runtime_directory
        self.devices = Devices(
            parameters.runtime_directory,
            state_directory,
            self.pool,
            lambda: self.settings,
            activity.busy,
            self._tell_devices,
            self.refresh_state,
            parameters.metrics_ports,
            Sharers(self.settings.device_memory.schedulers_directory),
        )
        self.turns, self.loads = Turns(), Loads(parameters.runtime_directory)
        self._moves = ModelMoves(self.pool, self.turns)
        self._readings = DeviceReadings(
            self.steering.tell_memory,
            activity.busy,
            self.devices.inherited,
            self.turns,
        )
        self.looked_around = False  # every backend and source was looked at once
        self.readiness = Readiness(
            self.pool,
            lambda: self.settings.server.readiness,
            lambda: self.steering.connected and not self._awaits_residency(),
            self._data_plane_serves,
            lambda: self.residency,
        )
        self.health = HealthServicer()
        self.regions = Regions(state_directory)
        self.region_sync = RegionSync(self.pool, self.regions, self.refresh_state, self._steer)
        self.residency = ModelResidency(self, state_directory)
        self.memory = LearnedMemory(
            state_directory, self.pool, self.desired, lambda: self.devices.index
        )
        self.needs = self.memory.needs
        self.latencies = Latencies(
            state_directory,
            self.pool,
            self.steering,
            self.counters,
            lambda: self.settings,
            self.refresh_state,
            self.memory,
        )
        self.desired.priors = self.latencies.priors
        self.desired.memory_priors = self.memory.priors
        # The data plane that was told the priors.
        self._told_pid = 0
        # Called with the address of a backend that serves for the first time or again, in order.
        self.on_rejoin: list[Callable[[str], Coroutine[Any, Any, None]]] = []
        self._joined: set[str] = set()
        self._rejoins: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    def start(self) -> list[asyncio.Task[None]]:
        """Starts discovery and steering."""
        self.pool.configure(self.parameters.backends(self.settings), self.settings.discovery)
        return [
            asyncio.create_task(self.steering.run(), name="steering"),
            asyncio.create_task(self.latencies.run(self.desired), name="latencies"),
            asyncio.create_task(self.devices.run(), name="devices"),
            asyncio.create_task(self.residency.loader.run(), name="residency"),
        ]

    def batching_for(self, model_name: str) -> Batching:
        return self.settings.batching_for(model_name)

    def merging_off(self, entry: CatalogEntry) -> str:
        """Why the entry's requests are not merged, empty when they are."""
        return self.desired.merging_off((entry.spec.name, entry.spec.version), entry.spec)

    def metrics_scope(self) -> Scope:
        """What a scrape reads; called from the listener's threads, so tables are copied."""
        watches, shared = dict(self.pool.watches), self.latencies.shared_memory
        return Scope(
            models=dict(self.desired.model_index),
            backends=dict(self.desired.backend_index),
            backends_up={a: w.status is BackendStatus.SERVING for a, w in watches.items()},
            config_reload_failures=self.reload_failures,
            ready=self.readiness.ready,
            learned=self.latencies.figures(),
            ignored_times=self.latencies.ignored_times(),
            shared_memory={key: getattr(shared, key) for key in SHARED_MEMORY_GAUGES},
            devices=self.devices.metrics_scope(self.needs.current, self.counters),
            residency=self.residency.scope,
        )

    def refresh_state(self) -> None:
        """Computes the wanted state again and says it to the data plane if it changed.

        Nothing is said before every backend has been looked at once, its shared memory too, and
        every source of device memory, if it does not hang: the data plane may serve with the state
        of a control plane that died, and ignorance must not take that away.
        """
        self._note_rejoins()
        self.looked_around = self.looked_around or (
            self.pool.settled
            and self.devices.ready
            and self.residency.settled
            and self.region_sync.settled
        )
        if self.looked_around:
            self.steering.want(
                self.desired.build(
                    self.pool,
                    self.settings,
                    self.regions,
                    self.payload,
                    self.devices.assign(),
                    self.residency.steered(),
                    self.devices.index,
                )
            )
            self.latencies.judge_priors()
        self.devices.look()
        self._moves.look()
        self.residency.look()
        self.publish_health()

    async def confirmed(self) -> None:
        """Waits until the data plane serves by what is wanted now; says so if it does not."""
        try:
            await self.steering.settled()
        except (ConnectionError, asyncio.TimeoutError) as error:
            log(logger, logging.WARNING, "the data plane does not confirm its state",
                reason=repr(error))  # fmt: skip

    async def _steer(self) -> None:
        """Says the wanted state, and waits until the data plane serves by it."""
        self.refresh_state()
        if self.looked_around:  # before, the data plane is told nothing
            await self.confirmed()

    def publish_health(self) -> None:
        self.health.publish(self.readiness.by_name())

    def on_event(self, event: pb.Event) -> None:
        """What the data plane noticed first."""
        kind = event.WhichOneof("event")
        if kind == "backend_connection":
            address = self.desired.backend_at(event.backend_connection.backend_index)
            watch = self.pool.watches.get(address or "")
            if watch is not None:
                watch.look_now()
            self.publish_health()
        elif kind == "backend_leaving":
            address = self.desired.backend_at(event.backend_leaving.backend_index)
            watch = self.pool.watches.get(address or "")
            if watch is not None:
                watch.suspect()
        elif kind == "merging_switched_off":
            self._merging_switched_off(event.merging_switched_off)
        elif kind == "shared_memory_lost":
            address = self.desired.backend_at(event.shared_memory_lost.backend_index)
            if address is not None:
                self.payload.lost(address, event.shared_memory_lost.region)
        elif kind == "model_wanted":
            self.residency.loader.want(event.model_wanted.name)

    def reload(self) -> None:
        """Reads the configuration again; keeps the old one and counts when it cannot be used."""
        try:
            loaded = self.parameters.load()
        except ConfigError as error:
            self.reload_failures += 1
            for problem in error.problems:
                log(logger, logging.ERROR, "configuration not reloaded", problem=problem)
            return
        problems = self._newly_impossible(loaded.settings)
        if problems:
            self.reload_failures += 1
            for text in problems:
                log(logger, logging.ERROR, "configuration not reloaded", problem=text)
            return
        self.loaded = self._with_restart_only_kept(loaded)
        self.pool.configure(self.parameters.backends(self.settings), self.settings.discovery)
        self.refresh_state()
        self.payload.look_at_all()
        log(logger, logging.INFO, "configuration reloaded")

    def _newly_impossible(self, settings: Settings) -> list[str]:
        """Objectives that nothing can meet by what was learned, and that act not yet."""
        return [
            f"models.{key[0]}.{name}: {text}"
            for key in self.pool.catalog
            for name, text in self.latencies.problems(key, settings.batching_for(key[0])).items()
            if name not in self.latencies.problems(key, self.batching_for(key[0]))
        ]

    async def drain(self) -> None:
        """NOT_SERVING, the propagation wait, then no new work and the end of the admitted one."""
        drain = self.settings.server.drain
        self.readiness.draining = True
        self.publish_health()
        await asyncio.sleep(drain.propagation_wait / 1e9)
        unanswered = await self.steering.drain(drain.deadline // 1_000_000)
        await self.latencies.read(self.desired)
        self.latencies.keep()
        log(logger, logging.INFO, "the data plane has drained", unanswered_requests=unanswered)
        await self.payload.leave()

    def _note_rejoins(self) -> None:
        for address, watch in self.pool.watches.items():
            if watch.status is BackendStatus.DOWN and watch.settled:
                self._joined.discard(address)
                self.regions.lost(address)
                self.memory.priors.lost(address)
                self.payload.backend_gone(address)
            elif watch.status is BackendStatus.SERVING and address not in self._joined:
                self._joined.add(address)
                self.payload.look_at(address)
                self.region_sync.look_at(address)
                self._after_joining(self._rejoined(address))
        self._joined &= self.pool.watches.keys()

    def _after_joining(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._rejoins.add(task)
        task.add_done_callback(self._rejoins.discard)

    async def _rejoined(self, address: str) -> None:
        for act in (*self.on_rejoin, self.latencies.joined):
            try:
                await act(address)
            except Exception as error:  # the others have their own work to do
                log(logger, logging.ERROR, "a backend that came back is not wholly provided for",
                    backend=address, reason=repr(error))  # fmt: skip

    def _merging_switched_off(self, event: pb.MergingSwitchedOff) -> None:
        key = self.desired.model_at(event.model_index)
        entry = self.pool.catalog.get(key) if key is not None else None
        if key is None or entry is None:
            return
        self.desired.unmergeable[key] = (entry.spec, event.reason or "its replies have other rows")
        log(
            logger,
            logging.ERROR,
            f"model {key[0]}: its reply could not be split by rows; merging is off until the model "
            "is loaded again. Set max_batch_size: 0 or models."
            f"{key[0]}.merge: false if that is its nature",
            version=key[1],
            reason=event.reason,
        )
        self.refresh_state()

    def _tell_devices(self) -> None:
        devices = self.devices
        self._readings.tell(devices.current, devices.index, devices.assigned_heard)

    def _data_plane_changed(self) -> None:
        if not self.steering.connected:
            self._readings.forget()  # it may forget them, too
        if self.steering.data_plane_pid not in (0, self._told_pid):
            self._told_pid = self.steering.data_plane_pid
            self.latencies.priors.renew()
            self.memory.priors.renew()
            self.refresh_state()
            for address in sorted(self._joined):  # what they have run by now
                self._after_joining(self.latencies.joined(address))
        self._served = served_placements(self.steering.applied)
        self.payload.segment(*self.steering.shared_memory)
        self.publish_health()

    def _awaits_residency(self) -> bool:
        """Whether the data plane has yet to be told which models may be loaded."""
        return self.residency.on and (not self.looked_around or self.steering.applied is None)

    def _data_plane_serves(self, key: ModelKey, address: str) -> bool:
        """Whether the data plane has taken over this placement and has a connection open there.

        A data plane that writes no counters is trusted for the latter.
        """
        model, backend = self.desired.model_index.get(key), self.desired.backend_index.get(address)
        if (model, backend) not in self._served:
            return False
        counters = self.counters.backend(backend) if backend is not None else None
        return not self.counters.valid or (
            counters is not None and counters["connections_open"] > 0
        )

    def _replies_of(self, address: str) -> int:
        """Grows with every reply that the data plane got from this backend."""
        index = self.desired.backend_index.get(address)
        counters = self.counters.backend(index) if index is not None else None
        if counters is None:
            return 0
        return counters["batches"] - counters["inflight_batches"]

    def _sent(self) -> set[str]:
        return self.loads.with_files

    def _with_restart_only_kept(self, loaded: LoadedSettings) -> LoadedSettings:
        kept: dict[str, Any] = {}
        for section, keys in RESTART_ONLY.items():
            old, new = getattr(self.settings, section), getattr(loaded.settings, section)
            changed = {
                key: getattr(old, key) for key in keys if getattr(old, key) != getattr(new, key)
            }
            if changed:
                names = ",".join(f"{section}.{key}" for key in changed)
                log(logger, logging.WARNING, "these keys need a restart", keys=names)
                kept[section] = new.model_copy(update=changed)
        return LoadedSettings(loaded.settings.model_copy(update=kept), loaded.origins)

    async def close(self) -> None:
        self.devices.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await self.payload.close()
            await self.region_sync.close()
            await self.pool.close()
