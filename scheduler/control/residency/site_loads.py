"""One load at one site, from the turn of its model to the catalog that has it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2

from scheduler.backends.probe import CallError, RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.config.units import format_size
from scheduler.control.residency.external import ExternalChanges
from scheduler.control.residency.learned_loads import LearnedLoads
from scheduler.control.residency.load_calls import Loading, NotLoadedError, load_model
from scheduler.control.residency.policy import Site
from scheduler.control.residency.residents import Residents
from scheduler.control.residency.weighing import LOOK_S, Scale, told_bytes
from scheduler.telemetry.logs import log

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)

# A backend has so long to describe what it has loaded.
REFRESH_MAX_S = 10.0


class SiteLoads:
    """`on_loaded(name, backend, seconds)` is called when a model is there."""

    def __init__(
        self,
        plane: ControlPlane,
        residents: Residents,
        learned: LearnedLoads,
        scale: Scale,
        external: ExternalChanges,
        on_loaded: Callable[[str, str, float], None],
    ) -> None:
        self._plane, self._residents, self._learned = plane, residents, learned
        self._scale, self._external = scale, external
        self._on_loaded = on_loaded

    async def load(self, name: str, site: Site, loading: Loading) -> None:
        """Raises RpcError, CallError and NotLoadedError."""
        plane = self._plane
        watch = self._watch(site.backend)
        async with plane.turns.of([name], residency=True):
            if not self._residents.may_load(name):
                return  # it was unloaded meanwhile, to stay so
            taken, took_s = await self._weighed(watch, name, site, loading)
            self._on_loaded(name, site.backend, took_s)
        seen = {"taken": format_size(sum(taken.values()))} if taken else {}
        log(logger, logging.INFO, f"model {name} loaded", backend=site.backend,
            seconds=round(took_s, 3), **seen)  # fmt: skip
        plane.refresh_state()
        await plane.confirmed()

    async def _weighed(
        self, watch: BackendWatch, name: str, site: Site, loading: Loading
    ) -> tuple[dict[str, int], float]:
        """What it was seen to take by place, and the seconds."""
        if not site.certain:
            await self._scale.looked(site.weights, LOOK_S)  # or it weighs what ran just now
        others = self._external.count(site.backend)
        alone = not self._residents.coming(site.backend)
        before = self._scale.before(site.weights)
        loading.free = before.free
        weighed = not (site.certain or loading.foreign)
        loading.weighing = weighed and self._scale.all_nvml(site.weights)
        started_s = time.monotonic()
        await self._call(watch, name, loading)
        took_s = time.monotonic() - started_s
        taken: dict[str, int] = {}
        if not loading.foreign:
            self._learned.took(name, site.backend, int(took_s * 1e9))
            taken = await self._scale.after(site.weights, before, took_s, site.certain)
        loading.weighing = False
        self._plane.refresh_state()  # requests need not wait for what follows
        described = await watch.refresh_within(REFRESH_MAX_S, [name])
        alone = alone and not self._residents.coming(site.backend)
        if not alone or self._external.count(site.backend) != others:
            taken = {}  # what somebody else loaded or unloaded meanwhile is in it, too
        if not taken and not site.certain:
            taken = await told_bytes(watch, name, site.weights)
        self._learned.weighed(name, site.backend, taken)
        self._learned.store()
        if not described or name in watch.absent:  # or it would be loaded again at once
            log(logger, logging.WARNING, f"model {name} was loaded, and is not described",
                backend=site.backend)  # fmt: skip
            raise CallError("it was loaded, and its backend does not describe it")
        return taken, took_s

    async def _call(self, watch: BackendWatch, name: str, loading: Loading) -> None:
        """Raises RpcError and NotLoadedError."""
        wish = self._plane.loads.by_name.get(name)
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        if wish is not None and wish.load is not None:
            request = wish.load
        timeout_s = self._plane.settings.residency.load_timeout / 1e9
        try:
            await load_model(watch, request, timeout_s, loading)
        except (RpcError, NotLoadedError):
            # Whether it goes on all the same: its memory counts as taken then.
            await watch.refresh_within(REFRESH_MAX_S)
            raise

    def _watch(self, address: str) -> BackendWatch:
        """Raises CallError when the configuration has it no more."""
        watch = self._plane.pool.watches.get(address)
        if watch is None:
            raise CallError("its backend is gone")
        return watch
