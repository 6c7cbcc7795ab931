"""All backends together: one catalog out of what each Triton serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.backends.catalog import ModelSpec
from scheduler.backends.remembered import ModelKey, RememberedModels
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.config.discovery import Discovery
from scheduler.config.schema import Backend
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlacementEntry:
    """A model version on one backend. `conflict` says why it is kept out of rotation."""

    address: str
    instances: int
    ready: bool
    conflict: str = ""


@dataclass(frozen=True)
class CatalogEntry:
    """One model version as the pool serves it."""

    spec: ModelSpec
    is_default_version: bool
    placements: tuple[PlacementEntry, ...]

    @property
    def ready(self) -> bool:
        return any(placement.ready for placement in self.placements)


class BackendPool:
    """Watches the configured backends and joins their models into `catalog`."""

    def __init__(
        self,
        on_change: Callable[[], None],
        progress: Callable[[str], int] = lambda address: 0,
        runtime_directory: Path | None = None,
        make_watch: Callable[..., BackendWatch] = BackendWatch,
        sent: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self.backends: dict[str, Backend] = {}
        self.watches: dict[str, BackendWatch] = {}
        self.catalog: dict[ModelKey, CatalogEntry] = {}
        self._on_change = on_change
        self._progress = progress
        self._runtime_directory = runtime_directory
        self._make_watch = make_watch
        self._sent = sent
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def configure(self, backends: Sequence[Backend], discovery: Discovery) -> None:
        """Starts watching what is new, stops what is gone, keeps the rest as it is."""
        wanted = {str(backend.address): backend for backend in backends}
        moved = {a for a in wanted if a in self.backends and wanted[a].tls != self.backends[a].tls}
        for address in self.watches.keys() - (wanted.keys() - moved):
            self._tasks.pop(address).cancel()
            del self.watches[address]
        for address, backend in wanted.items():
            if address in self.watches:
                self.watches[address].discovery = discovery
                continue
            watch = self._watch(backend, discovery)
            self.watches[address] = watch
            self._tasks[address] = asyncio.create_task(watch.run())
        self.backends = wanted
        self._changed()

    def _watch(self, backend: Backend, discovery: Discovery) -> BackendWatch:
        address = str(backend.address)
        directory = self._runtime_directory
        remembered = RememberedModels(directory, address) if directory is not None else None
        return self._make_watch(
            address,
            discovery,
            self._changed,
            lambda: self._progress(address),
            remembered=remembered,
            tls=backend.tls.files if backend.tls is not None else None,
            sent=self._sent,
        )

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def settled(self) -> bool:
        """Whether every backend has been looked at once."""
        return all(watch.settled for watch in self.watches.values())

    @property
    def any_serving(self) -> bool:
        return any(w.status is BackendStatus.SERVING for w in self.watches.values())

    def versions(self, name: str) -> list[CatalogEntry]:
        """The versions of a model, empty for an unknown one."""
        return [entry for (model, _), entry in self.catalog.items() if model == name]

    def find(self, name: str, version: str = "") -> CatalogEntry | None:
        """The entry of a version, or of the default one."""
        if version:
            return self.catalog.get((name, version))
        return next((e for e in self.versions(name) if e.is_default_version), None)

    def _changed(self) -> None:
        self.catalog = join_catalogs(self.watches, self.catalog)
        self._on_change()


def join_catalogs(
    watches: Mapping[str, BackendWatch], previous: Mapping[ModelKey, CatalogEntry]
) -> dict[ModelKey, CatalogEntry]:
    """The catalog of the pool. A backend whose model differs from the others' is kept out.

    The specification served before stays the reference while any ready backend agrees with it, so
    that a rolling reload changes over once.
    """
    keys = sorted({key for watch in watches.values() for key in watch.models}, key=_by_version)
    joined: dict[ModelKey, CatalogEntry] = {}
    for key in keys:
        holders = [watch for watch in watches.values() if key in watch.models]
        known = previous.get(key)
        reference = _reference(key, holders, known.spec if known else None)
        placements = tuple(_placement(key, watch, reference) for watch in holders)
        _flag_conflicts(key, placements, known)
        joined[key] = CatalogEntry(reference, False, placements)
    for name in {name for name, _ in joined}:
        versions = [key for key in joined if key[0] == name]
        # The highest one that can answer; where none can, the highest.
        chosen = max(versions, key=lambda key: (joined[key].ready, int(key[1])))
        entry = joined[chosen]
        joined[chosen] = CatalogEntry(entry.spec, True, entry.placements)
    return joined


def _by_version(key: ModelKey) -> tuple[str, int]:
    return key[0], int(key[1])


def _reference(
    key: ModelKey, holders: Sequence[BackendWatch], known: ModelSpec | None
) -> ModelSpec:
    ready = [watch for watch in holders if watch.model_ready(key)]
    candidates = [watch.models[key] for watch in (ready or holders)]
    if known is not None:
        for spec in candidates:
            if not known.differs_from(spec):
                return spec
    return candidates[0]


def _placement(key: ModelKey, watch: BackendWatch, reference: ModelSpec) -> PlacementEntry:
    spec = watch.models[key]
    conflict = reference.differs_from(spec)
    ready = watch.model_ready(key) and not conflict
    return PlacementEntry(watch.address, spec.instances, ready, conflict)


def _flag_conflicts(
    key: ModelKey, placements: Sequence[PlacementEntry], known: CatalogEntry | None
) -> None:
    flagged = {(p.address, p.conflict) for p in known.placements} if known else set()
    for placement in placements:
        if placement.conflict and (placement.address, placement.conflict) not in flagged:
            log(
                logger,
                logging.ERROR,
                f"model {key[0]} version {key[1]} differs and is kept out of rotation there; "
                "load the same model on every backend",
                backend=placement.address,
                difference=placement.conflict,
            )
