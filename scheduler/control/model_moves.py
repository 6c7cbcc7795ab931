"""Models that come and go at the backends, by whomever, as the watches see it: what that does to a
device's memory is of no batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scheduler.control.turns import Turns

if TYPE_CHECKING:
    from scheduler.backends.pool import BackendPool

# A change is noticed about so long after it has begun.
NOTICED_NS = 2_000_000_000


class ModelMoves:
    """Tells `turns` of them."""

    def __init__(self, pool: BackendPool, turns: Turns) -> None:
        self._pool, self._turns = pool, turns
        # By backend whose catalog was read, at the last look.
        self._ready: dict[str, frozenset[str]] = {}
        self._moving_since_ns: dict[tuple[str, str], int] = {}  # by backend and model

    def look(self) -> None:
        """After every change of the pool."""
        watches, began_ns = self._pool.watches, time.monotonic_ns() - NOTICED_NS
        before, ready = self._moving_since_ns, self._ready
        self._moving_since_ns = {
            (address, name): before.get((address, name), began_ns)
            for address, watch in watches.items()
            for name in watch.loading | watch.unloading
        }
        self._ready = {
            address: frozenset(name for name, _ in watch.ready_models)
            for address, watch in watches.items()
            if watch.catalog_read
        }
        # What is ready at a first look was so before any figures.
        changed = any(ready.get(address, now) != now for address, now in self._ready.items())
        self._turns.moving_since_ns = tuple(self._moving_since_ns.values())
        if changed or self._moving_since_ns.keys() != before.keys():
            ended = [since for key, since in before.items() if key not in self._moving_since_ns]
            self._turns.noticed(min([began_ns, *ended]))
