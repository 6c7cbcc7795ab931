"""Watches one Triton: is it there, and which models does it serve?

    DOWN ──probe answered──▶ SERVING ──"exiting", or it disowned a model──▶ DRAINING
      ▲                        │  ▲                                             │
      └── refused, or two ─────┘  └───────────── proved ready again ◀───────────┤
          timeouts in a row ◀───────────────────────────────────────────────────┘

What a backend served is remembered while it is away, so that its requests are told "no backend" and
not "unknown model".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import Enum

from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import (
    LOADING,
    READY,
    UNLOADING,
    batching_advice,
    model_specs,
)
from scheduler.backends.probe import Answer, CallError, ProbeResult, TritonCalls
from scheduler.backends.remembered import Described, ModelKey, RememberedModels
from scheduler.backends.waiting import set_within
from scheduler.config.discovery import Discovery
from scheduler.security.tls import ClientTls
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

TIMEOUTS_UNTIL_DOWN = 2
# Between refreshes that somebody waits for, and of one that did not tell all to the next: this is
# doubled up to the usual period.
RETRY_PERIOD_S = 0.1
# Looks that come to nothing before what is there is taken to be unknown for longer.
FIRST_LOOKS_MAX = 6
FAILURE_PAUSE_S = 1.0
PARALLEL_MODEL_READS = 4
# Names that are asked for until the backend has told of them.
NAMES_TO_ASK_MAX = 256


class BackendStatus(Enum):
    """Whether work may be sent."""

    SERVING = "serving"
    DRAINING = "draining"
    DOWN = "down"


class BackendWatch:
    """The known truth about one backend. `on_change` is called after every change of it.

    `progress` returns a number that grows when the data plane gets replies from this backend: one
    that answers inferences is alive even if a probe got lost in the crowd. `sent` returns the names
    of models whose files were sent with a load: an index does not list them.
    """

    def __init__(
        self,
        address: str,
        discovery: Discovery,
        on_change: Callable[[], None],
        progress: Callable[[], int] = lambda: 0,
        calls: TritonCalls | None = None,
        remembered: RememberedModels | None = None,
        tls: ClientTls | None = None,
        sent: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self.address = address
        self.status = BackendStatus.DOWN
        self.reason = "not probed yet"
        self.ready_models: set[ModelKey] = set()
        # Versions that the repository has and that cannot be served: unloaded, or failed to load.
        self.unavailable: set[ModelKey] = set()
        # Names that the repository has and of which no version is served: it may be loaded.
        self.absent: frozenset[str] = frozenset()
        # Names of which a version is being loaded or unloaded, by whomever.
        self.loading: frozenset[str] = frozenset()
        self.unloading: frozenset[str] = frozenset()
        # Versions that it serves, or did when it told last, and that its index does not list.
        self.unlisted: set[ModelKey] = set()
        self.server: service_pb2.ServerMetadataResponse | None = None
        # Whether its models are known: `server` alone comes before them.
        self.catalog_read = False
        self.read_at_s = 0.0  # when the last reading that took effect began
        self.discovery = discovery
        self.calls = calls or TritonCalls(address, tls)
        self._on_change = on_change
        self._progress = progress
        self._sent = sent
        self._told_all = False  # this process has told of everything that it serves
        self._to_ask: set[str] = set()  # nothing that took effect has told of them yet
        self._remembered = remembered
        self._described = remembered.load() if remembered is not None else {}
        self.models = model_specs(self._described)
        # Whether a first look has shown what is there; until then "down" is only ignorance.
        self.settled = False
        self._first_looks = 0  # that came to nothing
        # Of what was ready at the last refresh.
        self._unread: set[tuple[str, str]] = set()
        self._untold = 0  # refreshes in a row that did not tell all
        self._timeouts_in_a_row = 0
        self._suspected = False  # it disowned a model; the next good refresh clears it
        self._suspicions = 0
        self._refreshing = asyncio.Lock()
        self._probe_now = asyncio.Event()
        self._refresh_now = asyncio.Event()
        self._advised: set[ModelKey] = set()
        self._unreadable: set[tuple[ModelKey, str]] = set()

    async def run(self) -> None:
        """Probes and refreshes until cancelled."""
        try:
            await asyncio.gather(self._lasting(self._probe_loop), self._lasting(self._refresh_loop))
        finally:
            await self.calls.close()

    async def _lasting(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A backend that nobody looks at any more would keep its state for ever."""
        while True:
            try:
                await loop()
            except Exception as error:
                log(logger, logging.CRITICAL, "watching a backend failed; it is tried on",
                    backend=self.address, reason=repr(error))  # fmt: skip
                await asyncio.sleep(FAILURE_PAUSE_S)

    def look_now(self) -> None:
        """Probes at once: the data plane lost its connection or got a new one."""
        self._probe_now.set()

    def suspect(self) -> None:
        """It disowned a model it should have: nothing more goes there until it proves ready."""
        self._suspected = True
        self._suspicions += 1
        if self.status is BackendStatus.SERVING:
            self._become(BackendStatus.DRAINING, "it disowned a model")
        self._probe_now.set()
        self._refresh_now.set()

    @property
    def takes_calls(self) -> bool:
        """Whether calls without tensors can be made: it is there and not about to leave."""
        return self.status is BackendStatus.SERVING or (
            self.status is BackendStatus.DRAINING and self._suspected
        )

    def model_ready(self, key: ModelKey) -> bool:
        return self.status is BackendStatus.SERVING and key in self.ready_models

    async def _probe_loop(self) -> None:
        while True:
            self._probe_now.clear()
            before = self._progress()
            result = await self.calls.ready(self.discovery.probe_timeout / 1e9)
            self.take_probe(result, progressed=self._progress() != before)
            if result.answer is Answer.TIMEOUT and self.status is not BackendStatus.DOWN:
                continue
            await set_within(self._probe_now, self.discovery.probe_period / 1e9)

    def take_probe(self, result: ProbeResult, progressed: bool = False) -> None:
        """The state machine of the head of this file."""
        answer = result.answer
        if answer is Answer.LATE or (answer is Answer.TIMEOUT and progressed):
            return
        if answer is Answer.TIMEOUT:
            self._timeouts_in_a_row += 1
            if self._timeouts_in_a_row >= TIMEOUTS_UNTIL_DOWN:
                self._become(BackendStatus.DOWN, result.reason)
            return
        self._timeouts_in_a_row = 0
        if answer is Answer.UNREACHABLE:
            self._become(BackendStatus.DOWN, result.reason)
        elif answer is Answer.LEAVING:
            self._become(BackendStatus.DRAINING, result.reason)
        elif not self._suspected:
            if self.status is not BackendStatus.SERVING:
                self._refresh_now.set()
            self._become(BackendStatus.SERVING, "")

    async def _refresh_loop(self) -> None:
        while True:
            await set_within(self._refresh_now, self._pause_s())
            self._refresh_now.clear()
            if self.status is BackendStatus.DOWN:
                self._untold = 0
                continue
            try:
                await self.refresh()
            except CallError as error:
                log(logger, logging.DEBUG, "refresh failed", backend=self.address, reason=error)
                self._count_first_look()
            told_all = self.catalog_read and not self._unread
            self._untold = 0 if told_all else self._untold + 1

    def _pause_s(self) -> float:
        """Until the next refresh: soon where nothing is known yet, or not all of it."""
        period_s = self.discovery.refresh_period / 1e9
        if not self._untold:
            return period_s
        return min(RETRY_PERIOD_S * 2.0 ** min(self._untold - 1, 32), period_s)

    async def refresh(self, reread: Collection[str] = ()) -> bool:
        """Reads the index, and the models that are new, were reloaded, or have their turn.

        The models named in `reread` are read whatever is known of them. False: what was read is
        not believed, because the backend leaves or did not answer after it. Raises CallError; then
        nothing has changed either.
        """
        async with self._refreshing:
            return await self._refresh(reread)

    async def refresh_within(self, timeout_s: float, reread: Collection[str] = ()) -> bool:
        """Refreshes until one takes effect that tells of all models named in `reread`; False when
        none does in time, or it is down. What one tells without them takes effect all the same.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(CallError):
                if await self.refresh(reread) and self._to_ask.isdisjoint(reread):
                    return True
            if self.status is BackendStatus.DOWN or time.monotonic() >= end_s:
                return False
            await asyncio.sleep(RETRY_PERIOD_S)

    async def _refresh(self, reread: Collection[str]) -> bool:
        suspicions, began_s = self._suspicions, time.monotonic()
        if self.server is None:
            self.server = await self.calls.server_metadata()
        index = await self.calls.index()
        listed = {(m.name, m.version): m.state for m in index.models if m.version and m.state}
        names = frozenset(m.name for m in index.models)
        served, silent = await self._ask_unlisted(names, reread)
        untold = {key for key in self.unlisted if key[0] in silent} - served
        listed.update(dict.fromkeys(served, READY))
        ready = {key for key, state in listed.items() if state == READY}
        ready |= untold & self.ready_models
        kept = _kept(listed) | untold
        self.unavailable = listed.keys() - kept
        stale = {key for key in ready if key not in self.ready_models or key not in self.models}
        stale |= self._next_in_turn(ready)
        stale |= {key for key in ready if key[0] in reread or key in self._unread}
        described = {key: d for key, d in self._described.items() if key in kept}
        # Until what is read now is taken below.
        self._unread |= stale
        read = await self._read_models(stale)
        described.update(read)
        # A Triton that began to leave meanwhile lists models it will not serve, or none at all.
        result = await self.calls.ready(self.discovery.probe_timeout / 1e9)
        if result.answer not in (Answer.READY, Answer.NOT_READY):
            self.take_probe(result)
            return False
        if suspicions == self._suspicions:
            self._suspected = False
        self._unread = stale - read.keys()
        self.unlisted = served | untold
        self._told_all, self._to_ask = "" not in silent, {*self._to_ask, *reread} & silent
        absent = names - {name for name, _ in described}
        moving = [frozenset(n for (n, _), state in listed.items() if state == s) for s in MOVING]
        self.read_at_s = began_s
        self._take_catalog(described, ready & described.keys(), absent, moving)
        self.take_probe(result)
        return True

    async def _ask_unlisted(
        self, listed: Collection[str], reread: Collection[str]
    ) -> tuple[set[ModelKey], set[str]]:
        """What is served beside the index, and the names of which the backend did not tell; "" for
        all. That costs no refresh: what is listed is served all the same.

        After one silence it is asked for no more names: its statistics are restricted, or it is too
        slow now, and each further name would hold up the refresh for another time-out. It is asked
        for all of `reread`, first: somebody waits for these, and where the answer for "" is late
        because it is long, that for one model need not be.
        """
        if len(self._to_ask) > NAMES_TO_ASK_MAX:
            self._to_ask.clear()
        self._to_ask.update(reread)
        known = {name for name, _ in (*self._described, *self.unlisted)}
        names = (known | self._to_ask | set(self._sent())) - set(listed)
        if not self._told_all:
            names.add("")
        gate = asyncio.Semaphore(PARALLEL_MODEL_READS)
        served: set[ModelKey] = set()
        silent: set[str] = set()

        async def ask(name: str) -> None:
            async with gate:
                skipped = silent and name not in reread
                found = None if skipped else await self.calls.served(name)
            if found is None:
                silent.add(name)
            else:
                served.update(key for key in found if key[0] not in listed)

        in_order = sorted(names, key=lambda name: (name not in reread, name))
        await asyncio.gather(*(ask(name) for name in in_order))
        return served, silent

    def _next_in_turn(self, ready: set[ModelKey]) -> set[ModelKey]:
        """One known model a refresh is read again: a fast reload does not show in the index."""
        for key in self._described:
            if key in ready:
                self._described[key] = self._described.pop(key)
                return {key}
        return set()

    async def _read_models(self, keys: set[ModelKey]) -> dict[ModelKey, Described]:
        gate = asyncio.Semaphore(PARALLEL_MODEL_READS)

        async def read(key: ModelKey) -> tuple[ModelKey, Described] | None:
            async with gate:
                try:
                    return key, await self.calls.model(*key)
                except CallError as error:
                    self._report_unreadable(key, str(error))
                    return None

        read_models = await asyncio.gather(*(read(key) for key in sorted(keys)))
        return dict(one for one in read_models if one is not None)

    def _report_unreadable(self, key: ModelKey, reason: str) -> None:
        if (key, reason) not in self._unreadable:
            self._unreadable.add((key, reason))
            log(logger, logging.WARNING, "cannot read a model", backend=self.address,
                model=key[0], version=key[1], reason=reason)  # fmt: skip

    def _take_catalog(
        self,
        described: dict[ModelKey, Described],
        ready: set[ModelKey],
        absent: frozenset[str],
        moving: Sequence[frozenset[str]],
    ) -> None:
        models = model_specs(described)
        # Messages are kept by identity, so that an unchanged model compares cheaply.
        for key, spec in models.items():
            if self.models.get(key) == spec:
                models[key] = self.models[key]
        changed = models != self.models or ready != self.ready_models or not self.catalog_read
        changed = changed or absent != self.absent or moving != [self.loading, self.unloading]
        if self._remembered is not None and models != self.models:
            self._remembered.store(described)
        self._described = described
        self.models, self.ready_models = models, ready & models.keys()
        self.absent, (self.loading, self.unloading) = absent, moving
        self.catalog_read = True
        for key in sorted(models.keys() - self._advised):
            self._advised.add(key)
            advice = batching_advice(models[key].config)
            if advice:
                log(logger, logging.WARNING, f"model {key[0]}: {advice}", backend=self.address)
        settling, self.settled = not self.settled, True
        if changed or settling:
            self._on_change()

    def _count_first_look(self) -> None:
        """One failed call does not tell that there are no models; who never tells its models must
        not keep those of other backends from being served."""
        self._first_looks += 1
        if not self.settled and self._first_looks >= FIRST_LOOKS_MAX:
            self.settled = True
            self._on_change()

    def _become(self, status: BackendStatus, reason: str) -> None:
        changed = status is not self.status
        # A first look that finds nothing is news although the state is what it was.
        settling = not self.settled and status is not BackendStatus.SERVING
        self.status, self.reason = status, reason
        self.settled = self.settled or settling
        if status is BackendStatus.DOWN:
            # The next process at this address may be another Triton with other models.
            self.server = None
            self.catalog_read = self._told_all = False
            self.ready_models = set()
            self._to_ask.clear()
            self.absent = self.loading = self.unloading = frozenset()
            self._suspected = False
        if changed or settling:
            self._report()
            self._on_change()

    def _report(self) -> None:
        level = logging.INFO if self.status is BackendStatus.SERVING else logging.WARNING
        fields = {"backend": self.address, **({"reason": self.reason} if self.reason else {})}
        log(logger, level, f"backend is {self.status.value}", **fields)


# A reload shows as one of these.
MOVING = (LOADING, UNLOADING)


def _kept(listed: Mapping[ModelKey, str]) -> set[ModelKey]:
    """The versions that are served, or will be again soon.

    Beside another version that is ready, the one that is UNLOADING was replaced. UNAVAILABLE has
    been unloaded or failed to load.
    """
    served = {name for (name, _), state in listed.items() if state == READY}
    return {
        key
        for key, state in listed.items()
        if state in (READY, *MOVING) and not (state == UNLOADING and key[0] in served)
    }
