"""What residency decides by: who is loaded where, who may be, and what room there is.

Reads the catalog, the counters and the figures of the devices; changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.catalog import ModelSpec, model_spec
from scheduler.backends.remembered import ModelKey
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config import Settings
from scheduler.config.units import format_size
from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.policy import Resident, Room, Site
from scheduler.telemetry.logs import log

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What the configuration says of a model."""

    kind: str  # on_demand, pinned or never
    weight_bytes: int


class Residents:
    """`explicit` has the backends that were found to load models when they are told to."""

    def __init__(self, plane: ControlPlane, learned: LearnedLoads, explicit: set[str]) -> None:
        self._plane = plane
        self._learned = learned
        self._explicit = explicit
        self.last_used_s: dict[str, float] = {}
        self._seen_s: dict[str, float] = {}  # since when it is loaded, as far as is known
        self.protected_until_s: dict[tuple[str, str], float] = {}  # by model and backend
        self.immovable: set[tuple[str, str]] = set()  # by model and backend: it cannot leave
        self._coming_since_s: dict[tuple[str, str], float] = {}
        self._ending_since_s: dict[tuple[str, str], float] = {}
        self.problems: dict[str, str] = {}  # by device: its budget
        self._said: set[str] = set()
        self._returned: dict[ModelKey, int] = {}
        self._configured: tuple[Settings | None, dict[str, Wanted]] = (None, {})
        self._specs: dict[tuple[str, str], ModelSpec] = {}  # of models that were loaded before
        self._last_absent: dict[str, frozenset[str]] = {}  # by backend, when it was last asked

    def wanted(self, name: str) -> Wanted:
        settings = self._plane.settings
        if self._configured[0] is not settings:
            self._configured = (settings, {})
        known = self._configured[1]
        if name not in known:
            batching = settings.batching_for(name)
            known[name] = Wanted(batching.residency, batching.weights)
        return known[name]

    def watches(self) -> dict[str, BackendWatch]:
        """The backends that serve and load what they are told to, and have told what they have."""
        return {
            address: watch
            for address, watch in self._plane.pool.watches.items()
            if address in self._explicit
            and watch.status is BackendStatus.SERVING
            and watch.catalog_read
        }

    def absent(self) -> dict[str, list[str]]:
        """The backends by each model that they may load: it is not loaded there."""
        found: dict[str, list[str]] = {}
        for address, watch in self.watches().items():
            self._last_absent[address] = watch.absent
            for name in watch.absent:
                if self.may_load(name):
                    found.setdefault(name, []).append(address)
        return found

    def out_of_reach(self, others: Container[str]) -> set[str]:
        """Models that backends could load which are away, or are not known yet to load models as
        they did before; `others` do not.
        """
        configured = self._plane.pool.watches
        for address in list(self._last_absent):
            if address not in configured or address in others:
                del self._last_absent[address]
        there = self.watches()
        away = [names for address, names in self._last_absent.items() if address not in there]
        return {name for names in away for name in names if self.may_load(name)}

    def may_come(self, name: str, others: Container[str]) -> bool:
        """Whether a backend may have it to load that is away, or has not told yet what it has;
        `others` load nothing that they are told to.
        """
        away = [a for a in self._plane.pool.watches.keys() - self.watches() if a not in others]
        return self.may_load(name) and any(
            name in self._last_absent.get(address, (name,)) for address in away
        )

    def served(self, name: str) -> bool:
        """Whether a version of the model is ready somewhere."""
        return any(entry.ready for entry in self._plane.pool.versions(name))

    def ready_names(self) -> set[str]:
        return {name for (name, _), entry in self._plane.pool.catalog.items() if entry.ready}

    def note_use(self, now_s: float) -> None:
        """Looks who has been used since the last look."""
        plane = self._plane
        indices = plane.desired.model_index
        for key, index in indices.items():
            returned = plane.counters.batches_returned(index) if plane.counters.valid else 0
            if returned != self._returned.get(key, 0):
                self.last_used_s[key[0]] = now_s
            self._returned[key] = returned
        for key in self._returned.keys() - indices.keys():
            del self._returned[key]
        for address, watch in plane.pool.watches.items():
            for (name, _), spec in watch.models.items():
                self._specs[name, address] = spec
                self._learned.fits(name, address)
        there = {name for name, _ in plane.pool.catalog}
        self._seen_s = {name: self._seen_s.get(name, now_s) for name in there}
        listed = {n for watch in plane.pool.watches.values() for n in watch.absent}
        listed |= there
        for name in self.last_used_s.keys() - listed:
            del self.last_used_s[name]
        for known in (self._specs, self.protected_until_s):
            for placement in [p for p in known if p[0] not in listed]:
                del known[placement]

    def all(self) -> list[Resident]:
        """Every model on every backend that loads what it is told to."""
        found = []
        busy = self._busy_names()
        for address, watch in self.watches().items():
            specs = {name: spec for (name, _), spec in sorted(watch.models.items())}
            steps = {name: _steps(spec) & specs.keys() for name, spec in specs.items()}
            owners: dict[str, list[str]] = {}
            for name, its in steps.items():
                for step in its:
                    owners.setdefault(step, []).append(name)
            for name, spec in specs.items():
                if len(owners.get(name, ())) == 1:
                    continue  # it leaves with its ensemble
                own = {step for step in steps[name] if len(owners[step]) == 1}
                shared = bool(owners.get(name))
                found.append(self._resident(address, spec, own, specs, shared, busy))
            found += [self._coming(name, address) for name in self.coming(address) - specs.keys()]
        return found

    def coming(self, address: str) -> frozenset[str]:
        """The models that are being loaded there, and not by us now: by a control plane before
        this one, by somebody else, or after we have ceased to wait for it.
        """
        loading = self._plane.residency.loading
        ours = {n for n, its in loading.items() if its.backend == address and not its.foreign}
        watch = self._plane.pool.watches.get(address)
        return watch.loading - ours if watch is not None else frozenset()

    def coming_since(self, now_s: float) -> list[tuple[Resident, float]]:
        """The same everywhere, and since when that is known."""
        before, watches = self._coming_since_s, self.watches()
        loading = {(name, a) for a, watch in watches.items() for name in watch.loading}
        since = self._coming_since_s = {key: before.get(key, now_s) for key in loading}
        return [
            (self._coming(name, address), since[name, address])
            for address in watches
            for name in self.coming(address)
        ]

    def ending_since(self, now_s: float) -> Mapping[tuple[str, str], float]:
        """The models that are being unloaded, by whomever, before they could be described, and
        since when that is known; by name and backend."""
        before = self._ending_since_s
        self._ending_since_s = {
            (name, address): before.get((name, address), now_s)
            for address, watch in self.watches().items()
            for name in watch.unloading & watch.absent
        }
        return self._ending_since_s

    def _coming(self, name: str, address: str) -> Resident:
        (site,) = self.sites(name, [address])
        return Resident(name, address, site.weights, kept=True, coming=True)

    def sites(self, name: str, backends: Iterable[str]) -> list[Site]:
        """Where the model may be loaded, of these backends."""
        found = []
        for address in backends:
            certain = True
            weights, least = {}, {}
            missing = self._missing_steps(name, address)
            for place in self._places(name, address):
                weights[place], seen = self.weight(name, address, place)
                if missing and not self._learned.weight(name, address, place)[0]:
                    weights[place] = sum(self.weight(s, address, place)[0] for s in missing)
                    seen = False
                certain = certain and seen
                total = self.total_bytes(place)
                least[place] = self._learned.least(name, address, place, total)
            found.append(Site(address, weights, certain, least))
        return found

    def total_bytes(self, place: str) -> int:
        """Of a device; 0 = not known."""
        device = self._plane.devices.current.get(place)
        return device.reading.total_bytes if device is not None else 0

    def _missing_steps(self, name: str, address: str) -> set[str]:
        """Of an ensemble that was loaded before: its load loads them, too."""
        spec = self._specs.get((name, address))
        return (
            _steps(spec) & self._plane.pool.watches[address].absent if spec is not None else set()
        )

    def weight(self, name: str, address: str, place: str) -> tuple[int, bool]:
        """Bytes, 0 = not known, and whether they may refuse the model."""
        learned, certain = self._learned.weight(name, address, place)
        configured = self.wanted(name).weight_bytes
        return (learned, certain) if learned else (configured, configured > 0)

    def rooms(self) -> dict[str, Room]:
        """Of all devices and, for models whose devices are not known, of all backends."""
        residency = self._plane.settings.residency
        rooms = {a: Room(residency.budget or None) for a in self._plane.pool.watches}
        self.problems = {}
        for key, device in self._plane.devices.current.items():
            budget = residency.budget_of(key) or None
            reading, headroom = device.reading, device.headroom_bytes
            if not device.known:
                rooms[key] = Room(budget)
                continue
            has = reading.total_bytes - reading.reserved_bytes
            self._check_budget(key, budget, has)
            if reading.measured_at_ns == 0:  # nothing that runs changes the figures
                has = max(reading.free_bytes - headroom, 0)
                rooms[key] = Room(has if budget is None else min(budget, has))
            else:
                rooms[key] = Room(budget, reading.free_bytes - headroom, max(has - headroom, 0))
        return rooms

    def _check_budget(self, key: str, budget: int | None, has: int) -> None:
        if budget is not None and budget > has:
            problem = (
                f"residency: the budget of {format_size(budget)} is above the {format_size(has)} "
                f"that device {key} has; what is free there counts"
            )
            self._say(key, problem)
            self.problems[key] = problem

    def _say(self, key: str, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            log(logger, logging.WARNING, problem, device=key)

    def may_load(self, name: str) -> bool:
        plane = self._plane
        wish = plane.loads.by_name.get(name)
        unloaded = wish is not None and wish.load is None
        return (
            not unloaded
            and name not in plane.residency.held_back
            and self.wanted(name).kind != "never"
        )

    def _places(self, name: str, address: str) -> tuple[str, ...]:
        """The devices of a model that is or would be loaded there, all that it may be on where that
        is not known, else the backend itself."""
        backend = self._plane.pool.backends[address]
        spec = self._specs.get((name, address)) or _unseen(name)
        found = self._plane.devices.places(backend, spec)
        if found.keys:
            return found.keys
        ensemble = spec.config.HasField("ensemble_scheduling")
        places: list[str] = []
        if found.problem or ensemble:
            there = self._plane.devices.current
            places = [p for p in self._learned.places(name, address) if p in there]
        if ensemble and not places:
            known = [step for step in sorted(_steps(spec)) if (step, address) in self._specs]
            places = [place for step in known for place in self._places(step, address)]
        return tuple(dict.fromkeys(places)) or found.candidates or (address,)

    def _resident(
        self,
        address: str,
        spec: ModelSpec,
        steps: set[str],
        specs: Mapping[str, ModelSpec],
        needed: bool,
        busy: set[str],
    ) -> Resident:
        name = spec.name
        places = self._places(name, address)
        if _steps(spec):  # it has nothing itself; it may have been weighed with its steps
            weights = {place: self._learned.weight(name, address, place)[0] for place in places}
        else:
            weights = {place: self.weight(name, address, place)[0] for place in places}
        whole = any(weights.values())
        for step in steps:
            for place in self._places(step, address):
                own = 0 if whole else self.weight(step, address, place)[0]
                weights[place] = weights.get(place, 0) + own
        names = {name, *steps}
        watch = self._plane.pool.watches[address]
        # One that we are unloading has left soon: nobody is refused for it.
        moving = watch.loading | (watch.unloading - self._plane.residency.leaving(address))
        moving |= {n for n, a in self.immovable if a == address}
        used_s = max(max(self.last_used_s.get(n, 0.0), self._seen_s.get(n, 0.0)) for n in names)
        protected_s = max(self.protected_until_s.get((n, address), 0.0) for n in names)
        for n in names:
            if specs[n].sequence:
                # What a sequence has brought is lost with the model.
                protected_s = max(protected_s, used_s + specs[n].sequence_idle_us / 1e6)
        return Resident(
            name,
            address,
            weights,
            used_s,
            protected_s,
            busy=bool(names & busy),
            # One that the index does not list could not be loaded again by its name.
            kept=needed
            or bool(names & (moving | {n for n, _ in watch.unlisted}))
            or any(self.wanted(n).kind != "on_demand" for n in names),
            steps=tuple(sorted(steps)),
        )

    def _busy_names(self) -> set[str]:
        """The models with requests that are not answered."""
        counters, busy = self._plane.counters, set()
        if counters.valid:
            for key, index in self._plane.desired.model_index.items():
                found = counters.model(index)
                if found is not None and found["in_flight"]:
                    busy.add(key[0])
        return busy


def _steps(spec: ModelSpec) -> set[str]:
    return {step.model_name for step in spec.config.ensemble_scheduling.step}


def _unseen(name: str) -> ModelSpec:
    """Of a model that is not loaded Triton tells nothing: it may use any device."""
    config = model_config_pb2.ModelConfig(name=name)
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU)
    return model_spec("1", service_pb2.ModelMetadataResponse(name=name), config)
