"""Models on demand, as the rest of the control plane sees it: what the data plane is told, who may
wait for a load, what is shown."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from scheduler.control.cold.errors import ColdError
from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.load_calls import Loading
from scheduler.control.residency.loader import Loader
from scheduler.control.residency.policy import Resident
from scheduler.control.residency.predictions import Predictions
from scheduler.control.residency.unloads import STUCK
from scheduler.control.steered import NOTHING_STEERED, Steered
from scheduler.telemetry.residency_metrics import ResidencyScope
from scheduler.v1 import dataplane_pb2 as pb

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

OUT_OF_REACH = "no backend that can load it is reachable"
# A client of a cold call that names no deadline.
WAIT_MAX_S = 3600.0
STATES = ("not_loaded", "waiting", "loading", "loaded", "leaving", "stuck_unloading", "failed")


@dataclass(frozen=True)
class Shown:
    """One model that is governed, for people."""

    name: str
    state: str  # of STATES
    pinned: bool
    backends: tuple[str, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    idle_s: float = -1.0  # since its last use; below 0: not used yet
    load_ns: int = 0
    error: str = ""


class ModelResidency:
    """Wholly idle while the configuration has it off."""

    def __init__(self, plane: ControlPlane, state_directory: Path) -> None:
        self.held_back: set[str] = set()  # a client unloads them
        self._plane = plane
        self.loader = Loader(plane, LearnedLoads(state_directory), self._looked)
        self.predictions = Predictions(self.loader)
        self.scope = ResidencyScope()  # replaced as a whole, for other threads to read

    @property
    def on(self) -> bool:
        return self._plane.settings.residency.on

    @property
    def settled(self) -> bool:
        """Whether it is known which models may be loaded."""
        return not self.on or self.loader.backends.settled

    def look(self) -> None:
        """The pool has changed, or the settings."""
        if self.on:
            self.loader.external.look()
        self.loader.look()

    @property
    def loading(self) -> Mapping[str, Loading]:
        """The loads under way, by model."""
        return self.loader.loading

    def leaving(self, address: str) -> set[str]:
        """The models that are being unloaded there by us."""
        leaving = self.loader.leaving.values()
        return {n for r in leaving if r.backend == address for n in (r.name, *r.steps)}

    def loads(self, name: str, address: str) -> bool:
        """Whether a model that this backend lacks is left to the first request for it: not one
        whose files came with the load, of which nobody knows then that the backend may load it.
        """
        if name in self._plane.loads.with_files:
            return False
        kind = self.loader.residents.wanted(name).kind
        return self.on and kind != "never" and address not in self.loader.backends.others

    def steered(self) -> Steered:
        """As of now; the same while nothing happens."""
        loader = self.loader
        withheld = [*loader.unloads.withheld]
        withheld += [Resident(n, found.backend, {}) for n, found in loader.loading.items()
                     if found.weighing]  # fmt: skip
        if not self.on and not withheld:
            return NOTHING_STEERED
        absent, ready = loader.residents.absent(), loader.residents.ready_names()
        leaving = {
            (name, resident.backend)
            for resident in withheld
            for name in (resident.name, *resident.steps)
        }
        refusing = {
            name
            for resident in withheld
            if not loader.unloads.served_elsewhere(resident)
            for name in (resident.name, *resident.steps)
        }
        # A queue goes on where it is until it is empty.
        elsewhere = frozenset(placement for placement in leaving if placement[0] not in refusing)
        if not self.on:  # unloads that have begun are ended
            stuck = [self._loadable(name, {}, {}) for name in sorted(refusing & self._stuck())]
            return Steered(tuple(stuck), frozenset(refusing), elsewhere)
        # Those whose only backend is away may be loaded on another one.
        away = {n for n, _ in self._plane.pool.catalog if n in absent and n not in ready}
        names = (absent.keys() - ready) | refusing | (loader.loading.keys() - ready)
        back = {name: [*backends] for name, backends in absent.items()}
        for name, backend in leaving:
            back.setdefault(name, []).append(backend)
        load_ns = self.predictions.load_ns(names, back)
        loadable = [self._loadable(name, absent, load_ns) for name in sorted(names)]
        loadable += [
            pb.LoadableModel(name=name, error=OUT_OF_REACH)
            for name in sorted(self._out_of_reach() - names)
        ]
        return Steered(tuple(loadable), frozenset(refusing | away), elsewhere)

    def _out_of_reach(self) -> set[str]:
        """Without what is loaded somewhere, or was on a backend that is away."""
        loader = self.loader
        known = {name for name, _ in self._plane.pool.catalog}
        return loader.residents.out_of_reach(loader.backends.others) - known

    def unready(self) -> frozenset[str]:
        """Names whose not being served is no fault: they leave, or are loaded when wanted."""
        leaving = self.loader.unloads.withheld
        return frozenset(n for r in leaving for n in (r.name, *r.steps)) | frozenset(
            self.loader.loading
        )

    @property
    def pinned_missing(self) -> list[str]:
        """Pinned models that no backend has loaded yet."""
        if not self.on:
            return []
        residents = self.loader.residents
        pinned = {n for n in residents.absent() if residents.wanted(n).kind == "pinned"}
        return sorted(pinned - residents.ready_names())

    async def wait_loaded(self, name: str, timeout_s: float | None) -> bool:
        """Loads a model that is asked for by a call without tensors; False for one that it does
        not load. Raises ColdError where it fails or would take too long.
        """
        loader = self.loader
        bound_s = WAIT_MAX_S if timeout_s is None else timeout_s
        end_s = time.monotonic() + bound_s
        while self.on and not self._plane.pool.versions(name):
            if name not in loader.residents.absent() and name not in loader.loading:
                if name not in self._out_of_reach():
                    return False
                raise ColdError(
                    grpc.StatusCode.UNAVAILABLE, f"model '{name}' cannot be loaded: {OUT_OF_REACH}"
                )
            failure = loader.failures.active(name)
            if failure is not None:
                code = grpc.StatusCode.UNAVAILABLE
                if failure.need_bytes:
                    code = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise ColdError(code, f"model '{name}' cannot be loaded: {failure.error}")
            left_s = end_s - time.monotonic()
            self._refuse_if_late(name, left_s)
            loader.want(name)
            try:
                await loader.next_end(name, max(left_s, 0.0))
            except asyncio.TimeoutError as error:
                text = f"model '{name}' is being loaded"
                raise ColdError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from error
        return self.on

    def _refuse_if_late(self, name: str, left_s: float) -> None:
        absent = self.loader.residents.absent()
        wanted = self._loadable(name, absent, self.predictions.load_ns({name}, absent))
        load_s = wanted.load_ns / 1e9
        if wanted.ready_at_ns:
            load_s = max(wanted.ready_at_ns - time.monotonic_ns(), 0) / 1e9
        if load_s > left_s:
            self.loader.want(name)
            raise ColdError(
                grpc.StatusCode.UNAVAILABLE,
                f"model '{name}' is being loaded: it is predicted to be ready "
                f"{load_s * 1000:.0f} ms from now, later than the {left_s * 1000:.0f} ms that "
                "there are",
            )

    def _loadable(
        self, name: str, absent: Mapping[str, list[str]], load_ns: Mapping[str, int]
    ) -> pb.LoadableModel:
        loader = self.loader
        found = pb.LoadableModel(name=name)
        failure = loader.failures.active(name)
        if failure is not None:
            found.error = failure.error
            found.ready_at_ns = int(failure.until_s * 1e9)
            found.need_bytes, found.free_bytes = failure.need_bytes, failure.free_bytes
            if not found.need_bytes:
                found.free_bytes = 0
            return found
        if name not in absent and name in self._stuck():
            found.error = STUCK
            return found
        loading = loader.loading.get(name)
        if loading is not None:
            found.ready_at_ns = loading.ready_at_ns
            found.load_ns = self.predictions.own_ns(name, absent.get(name, []))
        else:
            found.load_ns = load_ns.get(name, 0)
        return found

    def _stuck(self) -> set[str]:
        stuck = [found.victim for found in self.loader.unloads.stuck.values()]
        return {name for resident in stuck for name in (resident.name, *resident.steps)}

    @property
    def problems(self) -> list[str]:
        """As sentences, for operators."""
        loader = self.loader
        stuck = [
            f"model {found.victim.name} is stuck: backend {found.victim.backend} has not ended "
            "unloading it"
            for found in loader.unloads.stuck.values()
        ]
        if not self.on:
            return stuck
        found = list(loader.residents.problems.values())
        found += [
            f"residency does not act on backend {address}: its models are not loaded explicitly"
            for address in sorted(loader.backends.others)
        ]
        found += loader.external.problems
        found += stuck
        found += [
            f"model {name} cannot be loaded: {failure.error}"
            for name, failure in sorted(loader.failures.by_name.items())
            if failure.until_s and not loader.residents.served(name)
        ]
        return found

    def shown(self) -> list[Shown]:
        """Every model that is governed, by name."""
        if not self.on:
            return []
        loader, now_s = self.loader, time.monotonic()
        residents = loader.residents
        absent = residents.absent()
        by_name = _by_name(residents.all())
        return [
            self._show(name, by_name.get(name, []), absent, now_s)
            for name in sorted(absent.keys() | by_name.keys())
        ]

    def _show(
        self,
        name: str,
        there: list[Resident],
        absent: Mapping[str, list[str]],
        now_s: float,
    ) -> Shown:
        loader, residents = self.loader, self.loader.residents
        weights: dict[str, int] = {}
        for resident in there:
            if resident.name == name:  # a step's are its ensemble's
                weights.update(resident.weights)
        if not there:
            for site in residents.sites(name, absent.get(name, [])):
                weights.update((p, w) for p, w in site.weights.items() if w)
        loaded_on = tuple(sorted(r.backend for r in there if not r.coming))
        failure = loader.failures.by_name.get(name)
        error = failure.error if failure is not None and not loaded_on else ""
        used_s = residents.last_used_s.get(name)
        return Shown(
            name,
            self._state(name, there),
            residents.wanted(name).kind == "pinned",
            loaded_on,
            weights,
            now_s - used_s if used_s is not None else -1.0,
            self.predictions.own_ns(name, absent.get(name, [])),
            error or (STUCK if name in self._stuck() else ""),
        )

    def _state(self, name: str, there: Sequence[Resident]) -> str:
        """`there` are its copies, if any."""
        loader = self.loader
        if any(name in (r.name, *r.steps) for r in loader.leaving.values()):
            return "leaving"
        if name in self._stuck():
            return "stuck_unloading"
        if any(not resident.coming for resident in there):
            return "loaded"
        if there or name in loader.loading:
            return "loading"
        if any(wanted == name for wanted, _ in loader.wants):
            return "waiting"
        return "failed" if loader.failures.active(name) is not None else "not_loaded"

    def weights_by_place(self) -> dict[str, tuple[int, int]]:
        """By device the known weights of what is loaded, and the budget; 0: it has none. What is
        being loaded is not yet in it."""
        return self._weights_by_place(self.loader.residents.all())

    def _weights_by_place(self, there: Sequence[Resident]) -> dict[str, tuple[int, int]]:
        used: dict[str, int] = {}
        for resident in (found for found in there if not found.coming):
            for place, weight in resident.weights.items():
                used[place] = used.get(place, 0) + weight
        rooms = self.loader.residents.rooms()
        return {
            place: (used.get(place, 0), rooms[place].budget_bytes or 0 if place in rooms else 0)
            for place in sorted(used.keys() | self._plane.devices.current.keys())
        }

    def _looked(self) -> None:
        """For the metrics: their listener reads in a thread of its own."""
        if not self.on:
            self.scope = ResidencyScope()
            return
        loader = self.loader
        there = loader.residents.all()
        by_name = _by_name(there)
        names = by_name.keys() | loader.residents.absent().keys()
        states = Counter(dict.fromkeys(STATES, 0))
        states.update(self._state(name, by_name.get(name, [])) for name in names)
        places = self._weights_by_place(there)
        self.scope = ResidencyScope(
            {labels: replace(counted) for labels, counted in loader.counted.items()},
            {place: used for place, (used, _) in places.items()},
            {place: budget for place, (_, budget) in places.items() if budget},
            states,
            dict(loader.external.counts),
        )


def _by_name(residents: Sequence[Resident]) -> dict[str, list[Resident]]:
    """The copies of each model; a step of an ensemble that leaves with it is there with it."""
    found: dict[str, list[Resident]] = {}
    for resident in residents:
        for name in (resident.name, *resident.steps):
            found.setdefault(name, []).append(resident)
    return found
