"""Whether this server is ready, as ServerReady, health and /healthz say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from tritonclient.grpc import service_pb2

from scheduler.backends.pool import BackendPool, CatalogEntry
from scheduler.backends.remembered import ModelKey

if TYPE_CHECKING:
    from scheduler.control.residency.on_demand import ModelResidency

SERVICE_NAME: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class Readiness:
    """strict: every served model has a ready backend. lenient: any model has, or there is none.

    Never ready while draining, without a serving backend, or without a data plane. A placement
    counts once the data plane has confirmed it and has a connection to its backend: ready means
    that the next request is served.
    """

    def __init__(
        self,
        pool: BackendPool,
        mode: Callable[[], Literal["strict", "lenient"]],
        data_plane_connected: Callable[[], bool],
        data_plane_serves: Callable[[ModelKey, str], bool] = lambda key, address: True,
        residency: Callable[[], ModelResidency | None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._mode = mode
        self._data_plane_connected = data_plane_connected
        self._data_plane_serves = data_plane_serves
        self._residency = residency
        self.draining = False

    def serves(self, entry: CatalogEntry) -> bool:
        """Whether a request for this model version has somewhere to go."""
        key = (entry.spec.name, entry.spec.version)
        return any(
            placement.ready and self._data_plane_serves(key, placement.address)
            for placement in entry.placements
        )

    @property
    def ready(self) -> bool:
        if self.draining or not self._data_plane_connected() or not self._pool.any_serving:
            return False
        residency = self._residency()
        if residency is not None and self._mode() == "strict" and residency.pinned_missing:
            return False
        # What comes and goes as it is wanted is no fault while it does.
        unready = residency.unready() if residency is not None else frozenset()
        entries = [e for e in self._pool.catalog.values() if e.spec.name not in unready]
        if not entries:
            # An empty repository is ready, as Triton has it, once it has been read.
            return any(watch.catalog_read for watch in self._pool.watches.values())
        names = {entry.spec.name for entry in entries if self.serves(entry)}
        if self._mode() == "lenient":
            return bool(names)
        return names == {entry.spec.name for entry in entries}

    def by_name(self) -> dict[str, bool]:
        """Health of the process ("", and by the name of its service) and of each model name."""
        health = dict.fromkeys(("", SERVICE_NAME), self.ready)
        for entry in self._pool.catalog.values():
            name = entry.spec.name
            serves = self.serves(entry) and not self.draining
            health[name] = health.get(name, False) or serves
        return health
