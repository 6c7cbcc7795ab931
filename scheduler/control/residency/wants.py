"""Models that are wanted: for how long others wait behind one, and whether anybody waits still."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass

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


async def nobody_waits(steering: SteeringClient, names: Collection[str]) -> set[str]:
    """For which of these no request waits in the data plane; none where it does not tell."""
    try:
        snapshot = await steering.snapshot()
    except (ConnectionError, asyncio.TimeoutError) as error:
        log(logger, logging.DEBUG, "the data plane does not tell for which models requests wait",
            reason=repr(error))  # fmt: skip
        return set()
    return set(names) - {model.name for model in snapshot.loading if model.requests}
