"""Models that are wanted: for how long others wait behind one, and whether anybody waits still."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field

from scheduler.control.residency.policy import Later
from scheduler.control.steering import SteeringClient
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Since it was last told as wanted: then somebody has to wait for it, or it is dropped.
FORGOTTEN_S = 60.0
# After others had to wait behind it for as long as they may, they need not for so many times that.
REST = 10


@dataclass
class Want:
    """One model, on any backend or on one. Times are of the monotonic clock."""

    told_s: float
    held_since_s: float = math.inf  # that others wait behind it
    _since_s: float = field(init=False)
    _told_away: bool = False

    def __post_init__(self) -> None:
        self._since_s = self.told_s

    def holds(
        self, found: Later, min_residency_s: float, load_timeout_s: float, now_s: float
    ) -> bool:
        """Whether nobody else may load where it waits: while a load is under way there, or shortly
        before others may leave, and not for long. Who is in use goes on being protected, and those
        behind may fit beside.
        """
        loading = math.isinf(found.at_s)
        if not loading and found.at_s - now_s > min_residency_s:
            return False
        longest_s = load_timeout_s if loading else 2 * min_residency_s
        if now_s - self.held_since_s > (1 + REST) * longest_s:
            self.held_since_s = now_s
        self.held_since_s = min(self.held_since_s, now_s)
        return now_s - self.held_since_s < longest_s

    def tell_away(self, name: str) -> None:
        """In the log, once."""
        if not self._told_away:
            self._told_away = True
            log(logger, logging.WARNING, f"model {name} is wanted, and no backend that can load it "
                "is reachable: it is loaded when one is back")  # fmt: skip

    def tell_long(self, name: str) -> None:
        """In the log: requests have waited for long, and others had to stay."""
        log(logger, logging.WARNING, f"requests wait for model {name}, which others leave no room "
            "for", waited_s=round(time.monotonic() - self._since_s))  # fmt: skip


async def waited_for(steering: SteeringClient) -> set[str] | None:
    """For which models requests wait in the data plane; None where it does not tell."""
    try:
        snapshot = await steering.snapshot()
    except (ConnectionError, asyncio.TimeoutError) as error:
        log(logger, logging.DEBUG, "the data plane does not tell for which models requests wait",
            reason=repr(error))  # fmt: skip
        return None
    return {model.name for model in snapshot.loading if model.requests}
