"""Device memory in the control plane: which sources there are, what they tell, who uses what.

    sources (threads) ─ looks ─▶ DeviceTable ─ readings ─▶ the data plane, metrics, Control service

Runs in the loop; of the threads' looks only the hand-over is elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler._native.counters import CountersPage
from scheduler.backends.catalog import ModelSpec
from scheduler.backends.local import LocalServers
from scheduler.backends.pool import BackendPool
from scheduler.backends.remembered import ModelKey
from scheduler.backends.waiting import set_within
from scheduler.config import Backend, Settings
from scheduler.config.address import parse_address
from scheduler.config.device_memory import DEVICES_MAX
from scheduler.control.device_memory.figures import figures
from scheduler.control.device_memory.last_places import LastPlaces
from scheduler.control.device_memory.local_hosts import LocalHosts
from scheduler.control.device_memory.places import Places, places_of
from scheduler.control.device_memory.told import ToldOfDevices
from scheduler.control.executors import gpus_of
from scheduler.control.indices import IndexBook
from scheduler.memory.nvml import NvmlSource
from scheduler.memory.poller import Pace, Poller
from scheduler.memory.sharers import Sharers
from scheduler.memory.source import DeviceReading, MemorySource, SourceError
from scheduler.memory.table import FALLBACK, DeviceMemory, DeviceTable, fixed_reading
from scheduler.memory.triton_metrics import TritonMetricsSource
from scheduler.telemetry.device_metrics import DeviceScope, NeedFigures
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

NVML, CONFIG = "nvml", "the configuration"
# Of two sources that tell of one device the lower one counts.
_RANKS = {NVML: 0, CONFIG: 2}
_PORT_RANK = 1
TRITON_METRICS_PORT = 8002
# How often ages are looked at while nothing is heard.
AGE_PERIOD_S = 0.25
# Of all threads together.
JOIN_TIMEOUT_S = 0.5
# So long the first state waits for the sources' first looks; loading a driver takes its time.
SOURCES_WAIT_S = 3.0
UNKNOWN_SHOWN = 16
# Of what was said once; models may come and go without end.
SAID_MAX = 4096


@dataclass(frozen=True)
class _Wanted:
    """A source as the settings want it; another one is another source."""

    name: str
    pace: Pace
    host: str = ""
    port: int = 0
    timeout_s: float = 0.0


class Devices:
    """`on_figures` is called after every look, `on_places` when a model's devices may be others."""

    def __init__(
        self,
        runtime_directory: Path,
        state_directory: Path,
        pool: BackendPool,
        settings: Callable[[], Settings],
        busy: Callable[[], bool],
        on_figures: Callable[[], None],
        on_places: Callable[[], None],
        metrics_ports: Mapping[str, int] | None = None,
        sharers: Sharers | None = None,
    ) -> None:
        self._told = ToldOfDevices(settings, sharers)
        self.table = DeviceTable(self._told.headroom_of, schedulers_of=self._told.schedulers_of)
        self._sharers = sharers
        # As of the last look; replaced as a whole, for other threads to read.
        self.current: dict[str, DeviceMemory] = {}
        self._book = IndexBook(runtime_directory / "devices.json", DEVICES_MAX)
        self.index = self._book.index
        self.inherited = self._book.given  # numbers that a control plane before this one gave
        self._last = LastPlaces(state_directory)
        self._awaited_since_s: float | None = None
        self._was_ready = False
        self.assigned_heard = False  # as of the last `assign`
        self._pool = pool
        self._settings = settings
        self._busy = busy
        self._on_figures = on_figures
        self._on_places = on_places
        self._metrics_ports = metrics_ports or {}  # of backends by address, where it is another
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pollers: dict[_Wanted, Poller] = {}
        self._local = LocalHosts(self._found_host)
        self._servers = LocalServers()
        self._keys: frozenset[str] = frozenset()
        self._models: dict[str, dict[ModelKey, None]] = {}
        self._gpus: tuple[Settings | None, dict[str, tuple[int, ...]]] = (None, {})
        self._unknown: list[str] = []  # what models and the configuration name, as sentences
        self._said: dict[tuple[str, str], None] = {}  # the latest last
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follows the pool and the settings, and the figures' age; until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            self._find_local_hosts()
            self._choose_sources()
            await self._follow_ages()

    async def _follow_ages(self) -> None:
        """Until the pool or the settings have changed."""
        while True:
            self._aged()
            waits = self._awaited_since_s is not None and not self._was_ready
            if waits and self.ready:
                self._was_ready, waits = True, False
                self._on_places()
            # Nobody looks at the clock where there is nothing that ages.
            timeout_s = AGE_PERIOD_S if waits or (self._pollers and self.current) else None
            if await set_within(self._changed, timeout_s):
                return

    @property
    def heard(self) -> bool:
        """Whether every source that is wanted has been looked at: what none tells of is not there
        then."""
        hosts = {backend.address.host for backend in self._pool.backends.values()}
        if not hosts <= self._local.known.keys():
            return False  # which ones are wanted is being found out
        return self.table.heard_of([wanted.name for wanted in self._wanted()])

    @property
    def ready(self) -> bool:
        """Whether the first state can be built: all is heard, or has been waited for."""
        now_s = time.monotonic()
        if self._awaited_since_s is None:
            self._awaited_since_s = now_s
        return now_s - self._awaited_since_s >= SOURCES_WAIT_S or self.heard

    def look(self) -> None:
        """The pool has changed, or the settings."""
        self._changed.set()

    def stop(self) -> None:
        """Ends the looks; one that hangs is left to itself."""
        self._local.stop()
        if self._sharers is not None:
            self._sharers.close()
        for poller in self._pollers.values():
            poller.stop()
        end_s = time.monotonic() + JOIN_TIMEOUT_S
        for poller in self._pollers.values():
            poller.join(max(end_s - time.monotonic(), 0.0))
        self._pollers.clear()

    def places(self, backend: Backend, spec: ModelSpec) -> Places:
        """Where the instances of a model are, at this backend."""
        local = self._local.known.get(backend.address.host, False)
        port = self._port_of(backend, has_gpus=True)
        return places_of(
            backend,
            spec,
            self._gpus_told(spec.name),
            self.table.of_source(NVML) if local else None,
            self.table.of_source(_port_name(*port)) if port is not None else (),
        )

    def assign(self) -> dict[tuple[ModelKey, str], tuple[int, ...]]:
        """The devices' numbers by model and backend address; also says what is not known."""
        found: dict[tuple[ModelKey, str], Places] = {}
        asked: dict[tuple[ModelKey, str], object] = {}
        nvml = self._settings().device_memory.nvml
        for address, watch in self._pool.watches.items():
            backend = self._pool.backends[address]
            sources = (nvml, backend.metrics)
            for key, spec in watch.models.items():
                found[key, address] = self.places(backend, spec)
                gpus = gpus_of(spec.config)
                groups = None if gpus is None else sorted(gpus)
                gpus_told = self._gpus_told(spec.name)
                asked[key, address] = (backend.devices, gpus_told, groups, sources)
        found = self._last.kept(found, asked)
        self._models = {}
        for (model, _), places in found.items():
            for device in places.keys:
                self._models.setdefault(device, {})[model] = None
        used = set(self._models)
        if self._sharers is not None:
            self._sharers.use(used)
        self.table.forget_gone(used)
        # What is gone and not used needs no number; what may be told of yet keeps its own.
        numbered = used | self.table.told
        self.assigned_heard = self.heard
        kept = () if self.assigned_heard else self._book.index
        self.index = self._book.assign([*sorted(numbered), *kept])
        self._say_unknown(found, used)
        return {
            placement: tuple(self.index[key] for key in places.keys if key in self.index)
            for placement, places in found.items()
        }

    @property
    def problems(self) -> list[str]:
        """What is wrong with devices and their sources, as sentences."""
        failing = self.table.source_problems
        found = [f"{n}: {failing[n]}" for n in self.table.source_errors if failing[n]]
        found += [
            f"device {key}: {device.problem}"
            for key, device in self.current.items()
            if device.problem and not failing.get(device.source)
        ]
        shown = self._unknown[:UNKNOWN_SHOWN]
        more = len(self._unknown) - len(shown)
        return found + shown + ([f"and {more} more like these"] if more else [])

    def reserved_bytes(self, device: str, counters: CountersPage) -> int:
        """What the data plane holds there for batches that the figures may not show yet."""
        number = self.index.get(device)
        found = counters.device(number) if number is not None else None
        return int(found["reserved_bytes"]) if found is not None else 0

    def models_on(self, device: str) -> list[ModelKey]:
        """The models with instances on the device, as of the last `assign`."""
        return list(self._models.get(device, ()))

    def metrics_scope(
        self, needs: Mapping[tuple[ModelKey, str], pb.MemorySnapshot], counters: CountersPage
    ) -> DeviceScope:
        """What a scrape reads; called from other threads."""
        now_ns = time.monotonic_ns()
        sources = [poller.source for poller in list(self._pollers.values())]
        return DeviceScope(
            devices={
                key: figures(device, now_ns, self.reserved_bytes(key, counters))
                for key, device in self.current.items()
            },
            source_errors=self.table.source_errors,
            source_failing={n: bool(text) for n, text in self.table.source_problems.items()},
            needs={
                (*key, device): NeedFigures(
                    predicted_bytes=need.added_bytes,
                    bytes_per_row=need.bytes_per_row,
                    error_ratio=need.error,
                    rows_limit=need.rows_limit,
                )
                for (key, device), need in needs.items()
                if need.known
            },
            nvml_calls=sum(s.calls.total() for s in sources if isinstance(s, NvmlSource)),
        )

    def _find_local_hosts(self) -> None:
        """Which are of other hosts is being found out meanwhile."""
        self._local.look({backend.address.host for backend in self._pool.backends.values()})
        self._name_ports(lambda host: self._local.known.get(host, True))

    def _found_host(self) -> None:
        self._changed.set()
        self._on_places()

    def _name_ports(self, local: Callable[[str], bool]) -> None:
        addresses = [backend.address for backend in self._pool.backends.values()]
        self._servers.ports = frozenset(a.port for a in addresses if local(a.host))

    def _port_of(self, backend: Backend, has_gpus: bool) -> tuple[str, int] | None:
        """Its metrics port, where it is to be asked."""
        if backend.metrics == "off":
            return None
        if backend.metrics != "auto":
            address = parse_address(backend.metrics)
            return address.host, address.port
        here = self._local.known.get(backend.address.host)
        if here is None:
            return None  # it is being found out
        nvml = self._settings().device_memory.nvml != "off"
        seen_here = here and nvml and self._is_seen_by_nvml()
        fixed = self._settings().device_memory.devices
        told = [key in fixed and fixed[key].total > 0 for key in backend.devices]
        if seen_here or not has_gpus or (told and all(told)):
            return None
        port = self._metrics_ports.get(str(backend.address), TRITON_METRICS_PORT)
        if here and self._is_own_listener(backend.address.host, port):
            return None
        return backend.address.host, port

    def _is_own_listener(self, host: str, port: int) -> bool:
        """Whether the metrics port that a Triton has is our own there."""
        listen = self._settings().server.metrics_listen
        if listen is None or listen.port != port:
            return False
        loopback = {"localhost", "127.0.0.1", "::1"}
        return listen.host in {"", "0.0.0.0", "::", host} or {listen.host, host} <= loopback

    def _is_seen_by_nvml(self) -> bool:
        """Also while NVML has not told anything yet."""
        return not self.table.heard_of([NVML]) or bool(self.table.of_source(NVML))

    def _wanted(self) -> set[_Wanted]:
        memory = self._settings().device_memory
        wanted: set[_Wanted] = set()
        if memory.nvml == "auto":
            pace = Pace(memory.poll_period / 1e9, memory.idle_poll_period / 1e9)
            wanted.add(_Wanted(NVML, pace))
        period_s, timeout_s = memory.metrics_poll_period / 1e9, memory.metrics_timeout / 1e9
        for address, backend in self._pool.backends.items():
            watch = self._pool.watches.get(address)
            specs = watch.models.values() if watch is not None else ()
            port = self._port_of(backend, any(self._uses_gpus(spec) for spec in specs))
            if port is not None:
                pace = Pace(period_s, period_s)
                wanted.add(_Wanted(_port_name(*port), pace, *port, timeout_s))
        return wanted

    def _gpus_told(self, name: str) -> tuple[int, ...]:
        """The GPUs that the configuration gives the model."""
        settings = self._settings()
        if self._gpus[0] is not settings:
            self._gpus = (settings, {})
        known = self._gpus[1]
        if name not in known:
            known[name] = settings.batching_for(name).gpus
        return known[name]

    def _uses_gpus(self, spec: ModelSpec) -> bool:
        return bool(self._gpus_told(spec.name)) or gpus_of(spec.config) != frozenset()

    def _choose_sources(self) -> None:
        wanted = self._wanted()
        for gone in self._pollers.keys() - wanted:
            self._pollers.pop(gone).stop()
            if gone.name not in {w.name for w in wanted}:
                self.table.drop_source(gone.name)
        for new in wanted - self._pollers.keys():
            self._start(new)
        fixed = [
            fixed_reading(key, device.total, device.used)
            for key, device in self._settings().device_memory.devices.items()
            if device.total
        ]
        self.table.drop_source(CONFIG)
        if fixed:
            self.table.take(CONFIG, _RANKS[CONFIG], self._told.ages(of_port=False), fixed)

    def _start(self, wanted: _Wanted) -> None:
        source: MemorySource
        if wanted.name == NVML:
            source = NvmlSource(is_own=self._servers.owns)
        else:
            source = TritonMetricsSource(wanted.name, wanted.host, wanted.port, wanted.timeout_s)

        def on_look(readings: Sequence[DeviceReading], error: SourceError | None) -> None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._take, wanted, readings, error)

        poller = Poller(source, wanted.pace, self._busy, on_look)
        self._pollers[wanted] = poller
        poller.start()

    def _take(
        self, wanted: _Wanted, readings: Sequence[DeviceReading], error: SourceError | None
    ) -> None:
        if wanted not in self._pollers:
            return  # a last look
        rank = _RANKS.get(wanted.name, _PORT_RANK)
        first = not self.table.heard_of([wanted.name])
        self.table.take(
            wanted.name, rank, self._told.ages(wanted.name not in _RANKS), readings, error
        )
        self._aged()
        if first:
            self._on_places()  # others may be wanted now, and what is not known can be said
            self._changed.set()

    def _aged(self) -> None:
        now_ns = time.monotonic_ns()
        self.table.say_ages(now_ns)
        self.current = self.table.devices(now_ns)
        known = frozenset(key for key, device in self.current.items() if device.known)
        if known != self._keys:
            self._keys = known
            self._on_places()
        self._on_figures()

    def _say_unknown(self, found: dict[tuple[ModelKey, str], Places], used: set[str]) -> None:
        if not self.table.heard_of([wanted.name for wanted in self._pollers]):
            return  # they may be told yet
        self._unknown = []
        for (key, address), places in found.items():
            if places.problem:
                self._say(f"model {key[0]}", f"it is not known on which devices it runs: "
                          f"{places.problem}", f"; {FALLBACK}", backend=address)  # fmt: skip
        settings = self._settings()
        named = dict.fromkeys(settings.device_memory.devices, "device_memory.devices")
        for address, backend in self._pool.backends.items():
            named.update(dict.fromkeys(backend.devices, f"devices of backend {address}"))
        there = ", ".join(sorted(self.table.keys)) or "none"
        for device in sorted((used | self.table.told) - self.index.keys()):
            self._say(f"device {device}", f"there are more than {DEVICES_MAX} devices; {FALLBACK}")
        for device, place in named.items():
            if device not in self.table.keys:
                effect = FALLBACK if device in used else "it has no effect"
                self._say(f"device {device}", f"{place} names it, and no source tells of it",
                          f" (there are: {there}); {effect}")  # fmt: skip

        # Of what is wrong now nothing is forgotten, however much it is.
        kept = max(SAID_MAX, len(found) + len(named) + len(used | self.table.told))
        for old in list(self._said)[: max(len(self._said) - kept, 0)]:
            del self._said[old]

    def _say(self, what: str, problem: str, more: str = "", **fields: str) -> None:
        """Once, whatever becomes of `more`."""
        self._unknown.append(f"{what}: {problem}")
        is_news = (what, problem) not in self._said
        self._said.pop((what, problem), None)
        self._said[what, problem] = None
        if is_news:
            log(logger, logging.WARNING, f"{what}: {problem}{more}", **fields)


def _port_name(host: str, port: int) -> str:
    return f"metrics of {f'[{host}]' if ':' in host else host}:{port}"
