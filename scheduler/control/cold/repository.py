"""The model repositories of the pool as one: RepositoryIndex, -ModelLoad and -ModelUnload.

An unload makes the data plane refuse new requests for the model, waits until the admitted ones are
answered, and only then goes to the backends; its answer, and that of a load, comes when the data
plane serves by the new catalog. Operations on one model follow each other, and end even if the
client has gone: a Triton does not stop in the middle either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import READY, CatalogError, model_spec
from scheduler.backends.pool import CatalogEntry
from scheduler.backends.probe import CallError, RpcError
from scheduler.backends.remembered import ModelKey
from scheduler.backends.watch import RETRY_PERIOD_S, BackendStatus, BackendWatch
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.fan_out import (
    PASSING,
    READ_TIMEOUT_S,
    UPDATE_TIMEOUT_S,
    Outcome,
    ask_all,
    reachable,
)
from scheduler.control.cold.loads import Wish
from scheduler.control.plane import ControlPlane
from scheduler.control.unloading import drained, until_unloaded
from scheduler.control.versions import until_nul
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
LOAD_TIMEOUT_S = 3600.0
# An index lists the best state of a version over the pool.
_STATES = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE", "")


class Repository:
    """Carries out repository RPCs on every reachable backend."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._turns, self._loads = plane.turns, plane.loads
        plane.on_rejoin.append(self._rejoined)
        self._operations: set[asyncio.Task[Any]] = set()

    async def index(
        self, request: service_pb2.RepositoryIndexRequest
    ) -> service_pb2.RepositoryIndexResponse:
        """The union of the indices. Raises ColdError."""
        _refuse_repository_name(request.repository_name)
        pool = self._plane.pool
        outcome = await ask_all(pool, reachable(pool), "RepositoryIndex", request, READ_TIMEOUT_S)
        outcome.raise_unless_answered()
        return merged_index(outcome.answers)

    async def load(
        self, request: service_pb2.RepositoryModelLoadRequest
    ) -> service_pb2.RepositoryModelLoadResponse:
        """Loads, or loads again, on every reachable backend. Raises ColdError."""
        _refuse_repository_name(request.repository_name)
        request.model_name = until_nul(request.model_name)
        return await self._to_the_end([request.model_name], lambda: self._load(request))

    async def unload(
        self, request: service_pb2.RepositoryModelUnloadRequest
    ) -> service_pb2.RepositoryModelUnloadResponse:
        """Unloads on every reachable backend once our queue is empty. Raises ColdError."""
        _refuse_repository_name(request.repository_name)
        request.model_name = until_nul(request.model_name)
        dependents = self._dependents(request)
        names = {request.model_name, *dependents}
        return await self._to_the_end(names, lambda: self._unload(request, dependents))

    async def _to_the_end(
        self, names: Collection[str], operation: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> Answer:
        async def in_turn() -> Answer:
            async with self._turns.of(names):
                return await operation()

        task = asyncio.create_task(in_turn())
        self._operations.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def finished(self) -> None:
        """Returns when no operation is under way, nor what follows one."""
        while self._operations:
            await asyncio.wait(set(self._operations))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # fetched, for the client may not be there to get it

    async def _load(
        self, request: service_pb2.RepositoryModelLoadRequest
    ) -> service_pb2.RepositoryModelLoadResponse:
        pool = self._plane.pool
        watches = reachable(pool)
        outcome = await ask_all(pool, watches, "RepositoryModelLoad", request, LOAD_TIMEOUT_S)
        await self._take_over(watches, [request.model_name])
        if outcome.answers:
            entry = pool.find(request.model_name)
            config = entry.spec.config if entry is not None else None
            missed = self._unasked(watches, outcome)
            self._loads.loaded(request, config, outcome.answers, missed)
            self._tell_later(request.model_name, missed)
        self._report("loaded", request.model_name, outcome)
        outcome.raise_failures()
        return service_pb2.RepositoryModelLoadResponse()

    async def _unload(
        self, request: service_pb2.RepositoryModelUnloadRequest, dependents: Collection[str]
    ) -> service_pb2.RepositoryModelUnloadResponse:
        plane, pool = self._plane, self._plane.pool
        names = {request.model_name, *dependents}
        watches = reachable(pool)
        await self._would_be_taken(watches, request)
        plane.desired.refusing.update(names)
        plane.residency.held_back.update(names)
        try:
            plane.refresh_state()
            await self._drain(names)
            outcome = await ask_all(pool, watches, "RepositoryModelUnload", request)
            wished = bool(outcome.answers)
            if wished:
                self._loads.unloaded(request.model_name)
            outcome = await self._until_gone(outcome, watches, request.model_name, dependents)
            await self._take_over(watches, names)
            missed = self._unasked(watches, outcome)
            if wished:
                self._tell_later(request.model_name, missed)
            if outcome.answers:
                # What one that went down has is ended when it comes back.
                there = [
                    watch
                    for watch in watches
                    if watch.address in outcome.answers or not self._is_down(watch.address)
                ]
                for name in _gone(dependents, there):
                    self._loads.unloaded(name)
                    self._tell_later(name, missed)
        finally:
            plane.desired.refusing.difference_update(names)
            plane.residency.held_back.difference_update(names)
            plane.refresh_state()
        self._report("unloaded", request.model_name, outcome)
        outcome.raise_failures()
        return service_pb2.RepositoryModelUnloadResponse()

    async def _would_be_taken(
        self, watches: Sequence[BackendWatch], request: service_pb2.RepositoryModelUnloadRequest
    ) -> None:
        """Asks for the unload of no model: bad parameters, or a Triton that unloads nothing, show
        before our queue is drained for it. Raises ColdError.
        """
        trial = service_pb2.RepositoryModelUnloadRequest()
        trial.CopyFrom(request)
        trial.model_name = ""
        outcome = await ask_all(self._plane.pool, watches, "RepositoryModelUnload", trial)
        outcome.raise_failures()

    def _dependents(self, request: service_pb2.RepositoryModelUnloadRequest) -> set[str]:
        """What may end with the model. Triton may leave some, such as were loaded by themselves."""
        wanted = request.parameters.get("unload_dependents")
        if wanted is None or not wanted.bool_param:
            return set()
        return steps_ended_with(request.model_name, self._plane.pool.catalog)

    async def _drain(self, names: Collection[str]) -> None:
        """Returns when nothing of these models is queued or out, at the latest at the deadline of
        a drain: Triton ends what still runs there, the rest finds no backend.
        """
        plane = self._plane
        indices = {index for key, index in plane.desired.model_index.items() if key[0] in names}
        deadline_s = plane.settings.server.drain.deadline / 1e9
        try:
            await drained(plane.steering, plane.counters, indices, deadline_s)
        except (ConnectionError, asyncio.TimeoutError) as error:
            log(logger, logging.WARNING, "a model is unloaded that is not drained",
                models=",".join(sorted(names)), reason=repr(error))  # fmt: skip

    async def _until_gone(
        self,
        outcome: Outcome,
        watches: Sequence[BackendWatch],
        name: str,
        dependents: Collection[str],
    ) -> Outcome:
        """Triton answers an unload before it is done: waits for the end of it."""
        told = [watch for watch in watches if watch.address in outcome.answers]
        waits = (until_unloaded(watch, [name], dependents=dependents) for watch in told)
        late = [failure for failure in await asyncio.gather(*waits) if failure is not None]
        lost = {failure.address for failure in late}
        answers = {a: answer for a, answer in outcome.answers.items() if a not in lost}
        return Outcome(answers, (*outcome.failures, *late), outcome.named)

    async def _take_over(self, watches: Sequence[BackendWatch], names: Collection[str]) -> None:
        """Reads the catalog of these backends and waits until the data plane serves by it."""

        async def read(watch: BackendWatch) -> None:
            if not await watch.refresh_within(READ_TIMEOUT_S, names):
                log(logger, logging.WARNING, "cannot read the catalog", backend=watch.address,
                    models=",".join(sorted(names)))  # fmt: skip

        await asyncio.gather(*(read(watch) for watch in watches))
        self._plane.refresh_state()
        await self._plane.confirmed()

    def _unasked(self, watches: Sequence[BackendWatch], outcome: Outcome) -> set[str]:
        """The backends that have neither done it nor refused to."""
        refused = {failure.address for failure in outcome.failures if failure.code not in PASSING}
        return self._plane.pool.watches.keys() - refused - outcome.answers.keys()

    def _tell_later(self, name: str, addresses: Collection[str]) -> None:
        """Tells those that are back already; the others are told when they come back."""
        for address in addresses:
            if not self._is_down(address):
                task = asyncio.create_task(self._rejoined(address, [name]))
                self._operations.add(task)
                task.add_done_callback(self._ended)

    async def _rejoined(self, address: str, names: Collection[str] | None = None) -> None:
        """A backend that came (back) serves what clients loaded, and not what they unloaded.

        One that was only out of reach is told what it missed. What it does not tell at first is
        asked again, for nobody asks later: twice at least, however slow it is, and after all other
        models. One that goes away meanwhile is told when it comes back once more. `names`: only of
        these models.
        """
        names = sorted(self._loads.by_name if names is None else names)
        end_s = time.monotonic() + READ_TIMEOUT_S
        while True:
            began_s = time.monotonic()
            untold: dict[str, CallError] = {}
            for name in names:
                try:
                    await self._told_again(address, name)
                except CallError as error:
                    untold[name] = error
                    if self._is_down(address):
                        break
            names = list(untold)
            if not names or began_s >= end_s or self._is_down(address):
                break
            await asyncio.sleep(RETRY_PERIOD_S)
        for name, reason in untold.items():
            _cannot_be_told(address, name, reason)

    async def _told_again(self, address: str, name: str) -> None:
        """Raises CallError when it does not tell what it has; nothing has been done then."""
        async with self._turns.of([name]):
            watch = self._plane.pool.watches.get(address)
            wish = self._loads.by_name.get(name)
            if watch is None or wish is None:
                return
            on_demand = wish.load is not None and self._plane.residency.loads(name, address)
            if on_demand and address not in wish.missed:
                return  # the first request for it does, by this wish
            try:
                done = await self._fulfil(watch, name, wish, on_demand)
                self._loads.made_up(name, address)
                if done:
                    await self._take_over([watch], [name])
                    log(logger, logging.INFO, "told of a model again", backend=address,
                        model=name)  # fmt: skip
            except (RpcError, CatalogError) as error:
                _cannot_be_told(address, name, error)

    def _is_down(self, address: str) -> bool:
        watch = self._plane.pool.watches.get(address)
        return watch is None or watch.status is BackendStatus.DOWN

    async def _fulfil(self, watch: BackendWatch, name: str, wish: Wish, on_demand: bool) -> bool:
        """Whether anything had to be done. Raises RpcError, CatalogError, and CallError before
        anything was done.
        """
        ready = await _ready_versions(watch, name)
        if wish.load is None:
            if not ready:
                return False
            request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
            await watch.calls.rpc("RepositoryModelUnload", request, UPDATE_TIMEOUT_S)
            failure = await until_unloaded(watch, [name])
            if failure is not None:
                raise failure
            return True
        if not ready and on_demand:
            return False
        has_missed = watch.address in wish.missed
        if ready and not has_missed and not await _differs(watch, name, ready[0], wish):
            return False
        await watch.calls.rpc("RepositoryModelLoad", wish.load, LOAD_TIMEOUT_S)
        return True

    def _report(self, done: str, name: str, outcome: Outcome) -> None:
        failed = ", ".join(str(failure) for failure in outcome.failures)
        level = logging.WARNING if failed else logging.INFO
        missed = [w.address for w in self._plane.pool.watches.values() if not w.takes_calls]
        fields = {"backends": ",".join(outcome.answers), "failed": failed,
                  "missed": ",".join(missed)}  # fmt: skip
        log(logger, level, f"model {name} {done}", **{k: v for k, v in fields.items() if v})


def steps_ended_with(name: str, catalog: Mapping[ModelKey, CatalogEntry]) -> set[str]:
    """The steps of an ensemble, and of those that end with it, that no ensemble has which stays."""
    steps: dict[str, set[str]] = {}
    for (ensemble, _), entry in catalog.items():
        if entry.ready or ensemble == name:
            its = {step.model_name for step in entry.spec.config.ensemble_scheduling.step}
            steps.setdefault(ensemble, set()).update(its)
    ending = {name}
    while True:
        stay = {step for ensemble, its in steps.items() if ensemble not in ending for step in its}
        found = {step for ensemble in ending for step in steps.get(ensemble, ())} - stay - ending
        if not found:
            return ending - {name}
        ending |= found


def _gone(names: Collection[str], asked: Sequence[BackendWatch]) -> list[str]:
    """Those that none of these backends has, nor one that failed. One that was away may be
    remembered with them: it was not asked, and ends them when it comes back.
    """
    there = {name for watch in asked for name, _ in watch.models}
    return sorted(set(names) - there)


def merged_index(
    answers: Mapping[str, service_pb2.RepositoryIndexResponse],
) -> service_pb2.RepositoryIndexResponse:
    """The union by name and version, each in the best state of any backend.

    A model that is not loaded here has no version here; it is listed so if no backend knows more.
    """
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for address, answer in answers.items():
        for model in answer.models:
            states = found.setdefault((model.name, model.version), {})
            reasons = states.setdefault(model.state, [])
            reason = model.reason
            if reason and len(answers) > 1:
                reason = f"{reason} (backend {address})"
            if reason:
                reasons.append(reason)
    versioned = {name for name, version in found if version}
    merged = service_pb2.RepositoryIndexResponse()
    for (name, version), states in sorted(found.items(), key=lambda item: _by_number(item[0])):
        if not version and name in versioned:
            continue
        state = min(states, key=_rank)
        merged.models.add(name=name, version=version, state=state, reason="; ".join(states[state]))
    return merged


def _rank(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)


def _by_number(key: tuple[str, str]) -> tuple[str, int]:
    return key[0], int(key[1]) if key[1].isdigit() else 0


def _refuse_repository_name(name: str) -> None:
    if name:
        raise ColdError(
            grpc.StatusCode.UNIMPLEMENTED, "'repository_name' specification is not supported"
        )


def _cannot_be_told(address: str, name: str, error: Exception) -> None:
    log(logger, logging.WARNING, "cannot be told of a model again", backend=address, model=name,
        reason=error)  # fmt: skip


async def _ready_versions(watch: BackendWatch, name: str) -> list[str]:
    """Raises CallError where the backend does not tell."""
    index = await watch.calls.index()
    if any(m.name == name for m in index.models):
        return [m.version for m in index.models if m.name == name and m.state == READY]
    served = await watch.calls.served(name)
    if served is None:
        raise CallError("it does not tell whether it serves the model")
    return [version for _, version in served]


async def _differs(watch: BackendWatch, name: str, version: str, wish: Wish) -> bool:
    """Whether an override that was loaded is not in effect there. Raises CallError."""
    if wish.load is None or not wish.load.parameters or wish.config is None:
        return False
    metadata, config = await watch.calls.model(name, version)
    wanted, found = (model_spec(version, metadata, c) for c in (wish.config, config))
    return bool(wanted.differs_from(found))
