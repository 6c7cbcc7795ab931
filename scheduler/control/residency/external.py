"""Models that come and go at a backend without us: another scheduler, or an operator, loads and
unloads there, too.

Neither sees the other's requests, so each may unload what the other one has just loaded. Against
turns without end, what the other one loads is left alone for a while: for twice as long each time
that it has unloaded what we had loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config.units import format_duration
from scheduler.control.residency.residents import Residents
from scheduler.telemetry.logs import log

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)

PAUSE_MIN_S, PAUSE_MAX_S = 2.0, 120.0
# After so many pauses in peace the next one is the shortest again.
PEACE_PAUSES = 10
# So long the last change is told as a problem.
TOLD_S = 600.0


@dataclass
class _Backend:
    """What was there at the last look."""

    loaded: frozenset[str]
    excused: set[str]  # what happens to these began with us, or before us
    ours: set[str] = field(default_factory=set)  # that we have loaded
    changes: int = 0
    last: str = ""
    last_s: float = 0.0
    pause_s: float = 0.0
    contested_s: float = 0.0


class ExternalChanges:
    """By backend, while models are loaded on demand."""

    def __init__(
        self, plane: ControlPlane, residents: Residents, explicit: Collection[str]
    ) -> None:
        """`explicit` has the backends that load what they are told to."""
        self._plane, self._residents, self._explicit = plane, residents, explicit
        self._backends: dict[str, _Backend] = {}
        self._said: set[str] = set()
        self.counts: dict[str, int] = {}  # by backend, since the start

    def look(self) -> None:
        """After every change of the pool: what has changed while nothing of ours was under way."""
        watches = self._plane.pool.watches
        for address, watch in watches.items():
            if watch.status is BackendStatus.DOWN or address not in self._explicit:
                self._backends.pop(address, None)  # the next one there may be another
            elif watch.status is BackendStatus.SERVING and watch.catalog_read:
                self._look_at(address, watch)
        for address in self._backends.keys() - watches.keys():
            del self._backends[address]

    def forget(self) -> None:
        """Nobody looks for a while."""
        self._backends.clear()

    def loaded(self, name: str, address: str) -> None:
        """By us."""
        if address in self._backends:
            self._backends[address].ours.add(name)

    def count(self, address: str) -> int:
        """Grows with every change that is not ours."""
        return self.counts.get(address, 0)

    @property
    def problems(self) -> list[str]:
        """As sentences, for operators."""
        now_s = time.monotonic()
        return [
            f"somebody else loads and unloads models on backend {address}: {found.last} "
            f"{now_s - found.last_s:.0f} s ago"
            for address, found in sorted(self._backends.items())
            if found.changes and now_s - found.last_s < TOLD_S
        ]

    def _look_at(self, address: str, watch: BackendWatch) -> None:
        loaded = frozenset(name for name, _ in watch.ready_models)
        moving = watch.loading | watch.unloading
        before = self._backends.get(address)
        if before is None:
            self._backends[address] = _Backend(loaded, set(moving))
            return
        own = self._own(address, watch, loaded - before.loaded)
        before.excused |= moving & own
        excused = own | before.excused | {n for n, a in self._residents.immovable if a == address}
        came = loaded - before.loaded - excused
        went = before.loaded - loaded - watch.loading - excused
        before.loaded = loaded
        before.excused &= moving
        if went:
            self._note(address, before, f"model {min(went)} was unloaded")
            if went & before.ours:
                self._contested(before)
        if came:
            self._note(address, before, f"model {min(came)} was loaded")
            self._protect(address, before, came)
        before.ours &= loaded

    def _own(self, address: str, watch: BackendWatch, came: Collection[str]) -> set[str]:
        """The models with an operation of ours or of our clients, and the steps of ensembles: of
        one that is not described yet, whatever has come. A load that is only waited for is none."""
        loads = self._plane.residency.loading.items()
        foreign = {n for n, found in loads if found.foreign and found.backend == address}
        names = set(self._plane.turns.names) - foreign
        if names - {name for name, _ in watch.models}:
            return names | (set(came) - foreign)
        steps = {
            step.model_name
            for (name, _), spec in watch.models.items()
            if name in names
            for step in spec.config.ensemble_scheduling.step
        }
        return names | steps

    def _note(self, address: str, backend: _Backend, what: str) -> None:
        backend.changes += 1
        self.counts[address] = self.counts.get(address, 0) + 1
        backend.last, backend.last_s = what, time.monotonic()
        if address not in self._said:
            self._said.add(address)
            log(logger, logging.WARNING, f"{what}, and not by this scheduler: somebody else loads "
                "and unloads models there, too. What they load is not unloaded for a while; two "
                "schedulers before one Triton still take turns, so give each its own",
                backend=address)  # fmt: skip

    def _contested(self, backend: _Backend) -> None:
        now_s = time.monotonic()
        in_peace = now_s - backend.contested_s > PEACE_PAUSES * backend.pause_s
        again_s = PAUSE_MIN_S if in_peace else 2 * backend.pause_s
        backend.pause_s, backend.contested_s = min(again_s, PAUSE_MAX_S), now_s

    def _protect(self, address: str, backend: _Backend, names: frozenset[str]) -> None:
        now_s = time.monotonic()
        stays_s = self._plane.settings.residency.min_residency / 1e9
        if now_s - backend.contested_s <= PEACE_PAUSES * backend.pause_s:
            stays_s = max(stays_s, backend.pause_s)
            log(logger, logging.INFO, "what somebody else loaded stays for "
                f"{format_duration(int(stays_s * 1e9))}", backend=address)  # fmt: skip
        protected = self._residents.protected_until_s
        for name in names:
            protected[name, address] = max(protected.get((name, address), 0.0), now_s + stays_s)
