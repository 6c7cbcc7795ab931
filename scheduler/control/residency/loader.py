"""Loads models that requests wait for, and unloads those that make room for them.

    data plane ── model_wanted ──▶ want() ─▶ queue ─ policy ─▶ drain and unload the victims ─▶ load
        ▲                                                                                       │
        └──────────────── Apply: loadable models, who refuses, what is ready ◀──────────────────┘

One load or unload at a time on each device; who came first goes first there. The policy is in
residency.py, what it decides by in residents.py, the calls in load_calls.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from scheduler.backends.probe import CallError, RpcError
from scheduler.backends.waiting import result_within, set_within
from scheduler.config.units import format_size
from scheduler.control.residency.explicit_backends import ExplicitBackends
from scheduler.control.residency.external import ExternalChanges
from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.load_calls import Loading, NotLoadedError, says_out_of_memory
from scheduler.control.residency.load_failures import LoadFailures
from scheduler.control.residency.policy import (
    Later,
    NoRoom,
    Plan,
    Resident,
    Site,
    excess,
    idle,
    plan,
)
from scheduler.control.residency.residents import Residents
from scheduler.control.residency.site_loads import SiteLoads
from scheduler.control.residency.starved import Starved
from scheduler.control.residency.unloads import STUCK, UnloadError, Unloads
from scheduler.control.residency.wants import FORGOTTEN_S, Want, waited_for
from scheduler.control.residency.weighing import Scale
from scheduler.telemetry.logs import log
from scheduler.telemetry.residency_metrics import ModelLoads

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)

# How often it is looked who was used, while residency is on.
LOOK_PERIOD_S = 0.5


class Loader:
    """Owns what changes: who is wanted, loaded, unloaded, and what failed."""

    def __init__(
        self, plane: ControlPlane, learned: LearnedLoads, on_look: Callable[[], None]
    ) -> None:
        """`on_look` is called now and then: something may have changed."""
        self.learned = learned
        self.backends = ExplicitBackends(plane)
        self.residents = Residents(plane, learned, self.backends.explicit)
        self.wants: dict[tuple[str, str], Want] = {}  # name and backend ("" = any), in order
        self.loading: dict[str, Loading] = {}
        self.failures = LoadFailures()
        self.counted: dict[tuple[str, str], ModelLoads] = {}
        self.unloads = Unloads(
            plane, self.residents, self._unloaded, self._not_unloaded, self._note_change
        )
        self.leaving = self.unloads.leaving
        self.external = ExternalChanges(plane, self.residents, self.backends.explicit)
        # Of the last change of `wants` or `loading`: what is predicted counts from there.
        self.changed_at_ns = 0
        self.room_ns = 0  # that it takes of late until others have left
        self._plane = plane
        self._on_look = on_look
        self._scale = Scale(plane)
        self._site_loads = SiteLoads(
            plane, self.residents, learned, self._scale, self.external, self._loaded
        )
        self._starved = Starved(learned, self.residents)
        self._places: dict[asyncio.Task[None], frozenset[str]] = {}  # that tasks hold
        self._asking: asyncio.Task[None] | None = None  # who waits still
        self._noted_at_s = -math.inf
        self._changed = asyncio.Event()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def on(self) -> bool:
        return self._plane.settings.residency.on

    def stays_s(self, load_s: float) -> float:
        """How long a model is protected from the end of its load on."""
        return max(self._plane.settings.residency.min_residency / 1e9, load_s)

    def look(self) -> None:
        """Something has changed."""
        self._changed.set()

    def want(self, name: str) -> None:
        """Requests wait for the model."""
        if not self.on or self.failures.active(name):
            return
        known = self.wants.get((name, ""))
        if known is not None:
            known.told_s = time.monotonic()
            return
        self.wants[name, ""] = Want(time.monotonic())
        self._note_change()

    async def next_end(self, name: str, timeout_s: float) -> None:
        """Until a load of the model has ended, well or not. Raises TimeoutError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(name, [])
        waiting.append(future)
        try:
            await result_within(future, timeout_s)
        finally:
            waiting.remove(future)

    async def run(self) -> None:
        """Until cancelled; then the loads under way are left to their Tritons."""
        try:
            while True:
                self._changed.clear()
                self.unloads.look()
                wait_s = self._turn() if self.on else None
                if wait_s is None:
                    self._rest()
                await set_within(self._changed, wait_s)
        finally:
            for task in self._places:
                task.cancel()
            if self._asking is not None:
                self._asking.cancel()
            self.backends.stop()

    def _rest(self) -> None:
        for name in list(self._waiting):
            self._tell_ended(name)
        self.wants.clear()
        self.failures.clear()
        self.external.forget()
        self._on_look()

    def _turn(self) -> float:
        """Starts what can be started; returns the seconds until it is worth another look."""
        now_s = time.monotonic()
        self.backends.look()
        if now_s - self._noted_at_s >= LOOK_PERIOD_S / 2:
            self._noted_at_s = now_s
            self.residents.note_use(now_s)
            self._on_look()
        if self.failures.forgive(now_s):
            self._plane.refresh_state()
        at_s = math.inf
        if self._plane.looked_around:  # or what is wanted seems to be nowhere
            self._want_pinned()
            at_s = self._start(now_s)
            self._shrink(now_s)
        return max(min(now_s + LOOK_PERIOD_S, at_s, self.failures.next_end_s()) - now_s, 0.0)

    def _want_pinned(self) -> None:
        for address, watch in self.residents.watches().items():
            for name in sorted(watch.absent):
                key = (name, address)
                if (
                    self.residents.wanted(name).kind == "pinned"
                    and key not in self.wants
                    and not self.failures.at(name, address)
                    and self.residents.may_load(name)
                ):
                    self.wants[key] = Want(time.monotonic())
                    self._note_change()

    def _start(self, now_s: float) -> float:
        """Starts what the policy lets start; returns when to look again."""
        held, ending = self._held(now_s), self.residents.ending_since(now_s)
        again_s = math.inf
        if not self.wants:
            return again_s
        self._drop_forgotten(now_s)
        settings = self._plane.settings.residency
        min_residency_s, load_timeout_s = settings.min_residency / 1e9, settings.load_timeout / 1e9
        absent = self.residents.absent()
        rooms, there = self.residents.rooms(), self.residents.all()
        for name, target in list(self.wants):
            if name in self.loading:
                continue
            backends = absent.get(name, [])
            backends = [b for b in backends if target in ("", b)]
            is_served = not target and self.residents.served(name)
            left = [b for b in backends if not self.failures.at(name, b)]
            if backends and not left and not target:
                self.failures.conclude(name, backends)
            if not left or is_served or (not target and self.failures.active(name)):
                known = bool(backends or target or is_served)
                if not self._comes_back(name) and (known or not self._may_come(name)):
                    self._end(name, target)
                continue
            self._fail_stuck(name, target, [b for b in left if (name, b) in ending], now_s)
            left = [b for b in left if (name, b) not in ending]
            if not left:
                continue  # it is loaded once its unload has ended
            sites = self.residents.sites(name, left)
            begun = [site for site in sites if name in self.residents.coming(site.backend)]
            if begun:
                found: Plan | Later | NoRoom = Plan(begun[0])  # it is only waited for
            else:
                found = plan(sites, there, rooms, held, now_s)
                found = self._starved.decided(name, found, there, rooms, now_s)
            if isinstance(found, Plan):
                held |= self._begin(name, target, found)
            elif isinstance(found, Later):
                again_s = min(again_s, found.at_s)
                want = self.wants[name, target]
                if found.site and want.holds(found, min_residency_s, load_timeout_s, now_s):
                    held.update(found.site.weights)  # it is the next one
            else:
                self._refuse(name, target, [found.backend] if found.backend else left, found)
        return again_s

    def _fail_stuck(self, name: str, target: str, backends: list[str], now_s: float) -> None:
        """It is being unloaded at these backends: nobody waits longer than that may take."""
        timeout_s = self._plane.settings.residency.unload_timeout / 1e9
        since_s = self.residents.ending_since(now_s)
        stuck = [b for b in backends if now_s - since_s[name, b] >= timeout_s]
        if stuck:
            self._fail(name, target, stuck, STUCK)

    def _held(self, now_s: float) -> set[str]:
        """The places where a load or an unload is under way, also one that is not ours, as long as
        a load may take."""
        held = {place for places in self._places.values() for place in places}
        load_timeout_s = self._plane.settings.residency.load_timeout / 1e9
        for resident, since_s in self.residents.coming_since(now_s):
            if now_s - since_s < load_timeout_s:
                held |= resident.weights.keys()
        return held

    def _drop_forgotten(self, now_s: float) -> None:
        """Of a wait that has ended nobody tells."""
        waits = {name for name, futures in self._waiting.items() if futures} | self.loading.keys()
        old = {
            name
            for (name, target), want in self.wants.items()
            if not target and name not in waits and now_s - want.told_s > FORGOTTEN_S
        }
        if old and (self._asking is None or self._asking.done()):
            told_s = {name: self.wants[name, ""].told_s for name in old}
            self._asking = asyncio.create_task(self._drop(told_s))

    async def _drop(self, told_s: dict[str, float]) -> None:
        waited = await waited_for(self._plane.steering)
        for name in told_s:
            want = self.wants.get((name, ""))
            if want is None or name in self.loading:
                continue
            again = want.told_s != told_s[name]  # told while we asked
            if waited is None or name in waited or again or self._waiting.get(name):
                if waited is not None and name in waited:
                    want.tell_long(name)
                self.want(name)  # it is looked again when it has waited for that long once more
            else:
                self._starved.forget(name)
                self._end(name, "")

    def _comes_back(self, name: str) -> bool:
        """Whether it is wanted while it leaves: it is loaded again then."""
        return any(name in (r.name, *r.steps) for r in self.leaving.values())

    def _may_come(self, name: str) -> bool:
        """Whether one that no backend has to load now waits for one that is away."""
        if not self.residents.may_come(name, self.backends.others):
            log(logger, logging.INFO, f"model {name} is not loaded though it was wanted: "
                "no backend has it to load")  # fmt: skip
            return False
        self.wants[name, ""].tell_away(name)
        self._tell_ended(name)  # who waits for it in a call is told that
        return True

    def _begin(self, name: str, target: str, found: Plan) -> set[str]:
        """Returns the places that it holds now."""
        places = set(found.site.weights)
        for victim in found.victims:
            places.update(victim.weights)
        expected_ns = self.learned.load_ns(name, found.site.backend)
        if found.victims:
            self._starved.ended(name, found.site.backend)
        ready_ns = time.monotonic_ns() + expected_ns if expected_ns else 0
        if ready_ns and found.victims:
            ready_ns += self.room_ns
        backend = found.site.backend
        foreign = name in self.residents.coming(backend)
        self.loading[name] = Loading(backend, ready_ns, frozenset(places), foreign)
        self._note_change()
        self._hold(places, self._bring(name, target, found))
        return places

    def _hold(self, places: Iterable[str], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._places[task] = frozenset(places)

        def ended(done: asyncio.Task[None]) -> None:
            self._places.pop(done, None)
            self.look()
            if not done.cancelled() and done.exception() is not None:
                log(logger, logging.ERROR, "residency: a load ended by a fault of ours",
                    reason=repr(done.exception()))  # fmt: skip

        task.add_done_callback(ended)

    async def _bring(self, name: str, target: str, found: Plan) -> None:
        backend = found.site.backend
        try:
            if found.victims:
                await self._make_room(name, found)
                return  # the policy looks at what is free now
            await self._site_loads.load(name, found.site, self.loading[name])
            self.failures.loaded(name, backend)
            self._starved.ended(name, backend)
            self._end(name, target)
        except NotLoadedError:
            return  # the policy looks again
        except UnloadError as error:
            self._fail(name, target, [backend], str(error))
        except (RpcError, CallError) as error:
            text = error.text if isinstance(error, RpcError) else str(error)
            self._count(name, backend).failures += 1
            if says_out_of_memory(text) and self._starves(name, found.site, text):
                log(logger, logging.WARNING, f"model {name} found no memory to load",
                    backend=backend, reason=text)  # fmt: skip
                return  # somebody else leaves, and it is tried again
            self._fail(name, target, [backend], text)
        except Exception as error:  # it must not be tried again and again without a pause
            log(logger, logging.ERROR, f"model {name}: a load ended by a fault of ours",
                backend=backend, reason=repr(error))  # fmt: skip
            self._fail(name, target, [backend], "internal error")
        finally:
            del self.loading[name]
            self._note_change()

    def _starves(self, name: str, site: Site, text: str) -> bool:
        return self._starved.found_none(name, site, text, self.loading[name].free)

    async def _make_room(self, name: str, found: Plan) -> None:
        places = {place for victim in found.victims for place in victim.weights}
        before, began_ns = self._scale.before(places), time.monotonic_ns()
        for victim in found.victims:
            await self.unloads.unload(victim, f"makes room for {name}")
        weights = sum(sum(victim.weights.values()) for victim in found.victims)
        await self._scale.freed(places, before, weights)
        self.room_ns = (self.room_ns + time.monotonic_ns() - began_ns) // 2

    def _loaded(self, name: str, backend: str, took_s: float) -> None:
        now_s = time.monotonic()
        self.residents.last_used_s[name] = now_s
        self.residents.protected_until_s[name, backend] = now_s + self.stays_s(took_s)
        self.external.loaded(name, backend)
        counted = self._count(name, backend)
        counted.loads += 1
        counted.load_seconds += took_s

    def _unloaded(self, victim: Resident) -> None:
        self._count(victim.name, victim.backend).unloads += 1

    def _not_unloaded(self, victim: Resident) -> None:
        self._count(victim.name, victim.backend).unload_failures += 1

    def _shrink(self, now_s: float) -> None:
        """Who is above a budget leaves, and whom nobody has used for long."""
        held, rooms = self._held(now_s), self.residents.rooms()
        idle_s = self._plane.settings.residency.unload_idle_after / 1e9
        if not idle_s and all(room.budget_bytes is None for room in rooms.values()):
            return
        there = self.residents.all()
        going = [(r, "is above the budget") for r in excess(there, rooms, now_s)]
        if idle_s:
            unused = idle(there, now_s - idle_s, now_s)
            going += [(r, "was not used for long") for r in unused]
        for resident, why in going:
            if not held & resident.weights.keys():
                held |= resident.weights.keys()
                self._hold(resident.weights, self._leave(resident, why))

    async def _leave(self, resident: Resident, why: str) -> None:
        try:
            await self.unloads.unload(resident, why)
        except UnloadError:
            return  # it was told; it is tried again

    def _refuse(self, name: str, target: str, backends: list[str], found: NoRoom) -> None:
        """It has room on none of these."""
        whose = "others leave" if found.others else "there can be for it"
        said = [text for b in backends if (text := self._starved.ended(name, b))]
        # Clients read it: of a backend whose devices are not known they see no address.
        where = found.place if found.place in self._plane.devices.current else "its device"
        if found.need_bytes > 1:  # else it is not known
            error = (
                f"it needs {format_size(found.need_bytes)} of {where}, and "
                f"{format_size(found.free_bytes)} is what {whose}"
            )
            self._fail(name, target, backends, error, found.need_bytes, found.free_bytes)
            return
        error = f"there is no memory left for it on {where}"
        self._fail(name, target, backends, ": ".join([error, *said[:1]]))

    def _fail(
        self,
        name: str,
        target: str,
        backends: list[str],
        error: str,
        need_bytes: int = 0,
        free_bytes: int = 0,
    ) -> None:
        """It cannot be loaded on these backends; another one may be left to try."""
        for backend in backends:
            self.failures.add(name, backend, error, need_bytes, free_bytes)
        possible = self.residents.absent().get(name, backends)
        if all(self.failures.at(name, backend) for backend in possible):
            self.failures.conclude(name, possible)
        if target or self.failures.active(name):
            self._end(name, target)
        self._note_change()

    def _end(self, name: str, target: str) -> None:
        self.wants.pop((name, target), None)
        self._tell_ended(name)
        self._note_change()

    def _tell_ended(self, name: str) -> None:
        for future in self._waiting.pop(name, []):
            if not future.done():
                future.set_result(None)

    def _note_change(self) -> None:
        self.changed_at_ns = time.monotonic_ns()
        self._plane.refresh_state()

    def _count(self, name: str, backend: str) -> ModelLoads:
        return self.counted.setdefault((name, backend), ModelLoads())
