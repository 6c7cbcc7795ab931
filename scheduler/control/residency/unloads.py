"""Models that leave: nothing new goes there, what runs ends, then Triton ends them.

One that its Triton has not ended in time is *stuck*: nothing is sent to it, nobody waits for it,
and its memory counts as taken, until the Triton tells what became of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from scheduler.backends.probe import CallError, RpcError
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.control.residency.load_calls import unload_model
from scheduler.control.residency.policy import Resident
from scheduler.control.residency.residents import Residents
from scheduler.control.unloading import drained
from scheduler.telemetry.logs import log

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)

STUCK = "its Triton has not ended unloading it"
# After a failed unload of one that was to make room: it served nobody while it was drained. At
# least so many times as long as that took, twice as long after each further one.
STAYS_S, STAYS_PART, STAYS_MAX_S = 5.0, 10, 3600.0
REFRESH_MAX_S = 10.0
POLL_PERIOD_S = 0.1


class UnloadError(Exception):
    """A model that was to make room is there still; clients may read it, so it names nobody."""


class _Truth(Enum):
    """What became of a model, as far as its backend has told."""

    GONE = "gone"
    THERE = "there"
    NOT_TOLD = "not told"  # it is being unloaded, or nobody answers


@dataclass(frozen=True)
class Stuck:
    """A model that its backend has not ended in time."""

    victim: Resident
    since_s: float
    watch: BackendWatch


class Unloads:
    """Those under way are in `leaving`."""

    def __init__(
        self,
        plane: ControlPlane,
        residents: Residents,
        on_unloaded: Callable[[Resident], None],
        on_failed: Callable[[Resident], None],
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called after every change of `leaving` and `stuck`."""
        self.leaving: dict[tuple[str, str], Resident] = {}  # by name and backend
        self.stuck: dict[tuple[str, str], Stuck] = {}
        self._failed: dict[tuple[str, str], int] = {}  # how often in a row, by name and backend
        self._plane = plane
        self._residents = residents
        self._on_unloaded, self._on_failed = on_unloaded, on_failed
        self._on_change = on_change

    @property
    def withheld(self) -> Iterable[Resident]:
        """To which nothing may be sent."""
        return [*self.leaving.values(), *(stuck.victim for stuck in self.stuck.values())]

    async def unload(self, victim: Resident, why: str) -> None:
        """Raises UnloadError."""
        names, key = [victim.name, *victim.steps], (victim.name, victim.backend)
        began_s = time.monotonic()
        try:
            watch = self._plane.pool.watches.get(victim.backend)
            if watch is None:
                raise CallError(f"backend {victim.backend} is gone")
            async with self._plane.turns.of(names, residency=True):
                began_s = time.monotonic()
                self.leaving[key] = victim
                self._plane.refresh_state()
                await self._drain(victim, names)
                await self._end(watch, victim)
                self._failed.pop(key, None)
                self._on_unloaded(victim)
        except (RpcError, CallError, ConnectionError, asyncio.TimeoutError) as error:
            self._has_failed(key, time.monotonic() - began_s)
            reason = error if isinstance(error, (RpcError, CallError)) else "it does not end"
            if key not in self.stuck:
                log(logger, logging.WARNING, f"model {victim.name} cannot be unloaded: {reason}",
                    backend=victim.backend)  # fmt: skip
            self._on_failed(victim)
            raise UnloadError("other models have its memory and cannot leave now") from error
        except Exception:
            self._has_failed(key, time.monotonic() - began_s)
            raise
        finally:
            self.leaving.pop(key, None)
            self._on_change()
        log(logger, logging.INFO, f"model {victim.name} unloaded: it {why}",
            backend=victim.backend)  # fmt: skip

    def _has_failed(self, key: tuple[str, str], took_s: float) -> None:
        protected = self._residents.protected_until_s
        self._failed = {k: count for k, count in self._failed.items() if k in protected}
        self._failed[key] = self._failed.get(key, 0) + 1
        self._stays(key, max(STAYS_S, STAYS_PART * took_s))

    def _stays(self, key: tuple[str, str], stays_s: float) -> None:
        """Others are preferred, and it serves."""
        stays_s *= 2 ** min(self._failed.get(key, 1) - 1, 16)
        until_s = time.monotonic() + min(stays_s, STAYS_MAX_S)
        self._residents.protected_until_s[key] = until_s

    async def _end(self, watch: BackendWatch, victim: Resident) -> None:
        """Returns once it is known to be gone: until then nothing may be sent to the victim.
        Raises RpcError when it stays, or nobody can tell; CallError when it is stuck.
        """
        failure: RpcError | None = None
        timeout_s = self._plane.settings.residency.unload_timeout / 1e9
        end_s = time.monotonic() + timeout_s
        try:
            await unload_model(watch, victim.name, victim.steps, timeout_s)
        except RpcError as error:
            failure = error  # it may have been taken all the same
        watches = self._plane.pool.watches
        while True:
            left_s = max(end_s - time.monotonic(), 0.0)
            known = await watch.refresh_within(min(left_s, REFRESH_MAX_S))
            truth = _truth(watch, victim) if known else _Truth.NOT_TOLD
            if truth is not _Truth.NOT_TOLD or watches.get(victim.backend) is not watch:
                break
            if watch.status is BackendStatus.DOWN:
                break  # whatever comes back there is read before anything is sent
            if time.monotonic() >= end_s:
                self._is_stuck(watch, victim, timeout_s)
                raise CallError("its Triton does not end it")
            await asyncio.sleep(POLL_PERIOD_S)
        if failure is not None and truth is not _Truth.GONE:
            raise failure

    def _is_stuck(self, watch: BackendWatch, victim: Resident, timeout_s: float) -> None:
        self.stuck[victim.name, victim.backend] = Stuck(victim, time.monotonic(), watch)
        self._residents.immovable.add((victim.name, victim.backend))
        log(logger, logging.WARNING, f"model {victim.name} is stuck: its Triton has not ended "
            f"unloading it after {timeout_s:g} s (residency.unload_timeout). Requests for it are "
            "refused and its memory counts as taken until the Triton tells what became of it",
            backend=victim.backend)  # fmt: skip

    def look(self) -> None:
        """What is stuck may be known by now."""
        watches = self._plane.pool.watches
        for key, stuck in list(self.stuck.items()):
            victim, watch = stuck.victim, stuck.watch
            truth = _truth(watch, victim)
            away = watches.get(victim.backend) is not watch or watch.status is BackendStatus.DOWN
            if not away and (truth is _Truth.NOT_TOLD or watch.read_at_s < stuck.since_s):
                continue
            del self.stuck[key]
            self._residents.immovable.discard(key)
            if away or truth is _Truth.GONE:
                # What is loaded there next is another one.
                self._residents.protected_until_s.pop(key, None)
            else:
                self._stays(key, STAYS_S)  # what it took to learn that drained nobody
            if truth is _Truth.GONE and not away:
                self._failed.pop(key, None)
                self._on_unloaded(victim)
            what = "its backend is away" if away else f"it is {truth.value}"
            log(logger, logging.INFO, f"model {victim.name} is stuck no more: {what}",
                backend=victim.backend)  # fmt: skip
            self._on_change()

    async def _drain(self, victim: Resident, names: list[str]) -> None:
        """Nothing new goes there, what is queued or running ends."""
        plane = self._plane
        indices = [index for (n, _), index in plane.desired.model_index.items() if n in names]
        timeout_s = plane.settings.residency.drain_timeout / 1e9
        backend = None
        if self.served_elsewhere(victim):
            backend = plane.desired.backend_index.get(victim.backend)
        await drained(plane.steering, plane.counters, indices, timeout_s, backend)

    def served_elsewhere(self, victim: Resident) -> bool:
        """Whether other backends have it that stay: its queue goes on."""
        return any(
            placement.ready
            and placement.address != victim.backend
            and (victim.name, placement.address) not in self.leaving
            and (victim.name, placement.address) not in self.stuck
            for entry in self._plane.pool.versions(victim.name)
            for placement in entry.placements
        )


def _truth(watch: BackendWatch, victim: Resident) -> _Truth:
    """By what was read last."""
    names = {victim.name, *victim.steps}
    if names & watch.unloading:
        return _Truth.NOT_TOLD
    return _Truth.GONE if victim.name in watch.absent else _Truth.THERE
