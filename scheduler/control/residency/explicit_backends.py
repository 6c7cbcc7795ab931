"""Which backends load the models that they are told to: Triton says it when it is asked only."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.control.residency.load_calls import loads_explicitly
from scheduler.telemetry.logs import log

if TYPE_CHECKING:
    from scheduler.control.plane import ControlPlane

logger = logging.getLogger(__name__)

# Between two questions to a backend that does not answer.
ASK_PERIOD_S = 0.5


class ExplicitBackends:
    """By address; each is asked when it comes, and again after it was away."""

    def __init__(self, plane: ControlPlane) -> None:
        self.explicit: set[str] = set()
        self.others: set[str] = set()
        self._plane = plane
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._said: set[str] = set()
        self._silent: set[str] = set()  # to the last question

    @property
    def settled(self) -> bool:
        """Whether every backend that serves has told, or was asked in vain."""
        known = self.explicit | self.others | self._silent
        return all(
            address in known
            for address, watch in self._plane.pool.watches.items()
            if watch.status is BackendStatus.SERVING
        )

    def look(self) -> None:
        """Asks those that have come."""
        watches = self._plane.pool.watches
        for address in (self.explicit | self.others | self._silent) - watches.keys():
            self._forget(address)
        for address, watch in watches.items():
            if watch.status is BackendStatus.DOWN:
                self._forget(address)  # the next one there may be another
            elif (
                watch.status is BackendStatus.SERVING
                and address not in self.explicit | self.others
                and address not in self._asking
            ):
                self._asking[address] = asyncio.create_task(self._ask(watch))

    def stop(self) -> None:
        for task in self._asking.values():
            task.cancel()

    def _forget(self, address: str) -> None:
        self.explicit.discard(address)
        self.others.discard(address)
        self._silent.discard(address)

    async def _ask(self, watch: BackendWatch) -> None:
        address = watch.address
        try:
            if await loads_explicitly(watch):
                self.explicit.add(address)
            else:
                self.others.add(address)
                self._say(address)
            self._silent.discard(address)
        except Exception as error:  # whatever it is: not again without a pause
            level = logging.DEBUG if isinstance(error, RpcError) else logging.ERROR
            log(logger, level, "a backend does not tell whether it loads models",
                backend=address, reason=repr(error))  # fmt: skip
            self._silent.add(address)
            self._plane.refresh_state()
            await asyncio.sleep(ASK_PERIOD_S)
        finally:
            del self._asking[address]
            self._plane.refresh_state()

    def _say(self, address: str) -> None:
        if address not in self._said:
            self._said.add(address)
            log(logger, logging.WARNING, "residency does not act on this backend: it was not "
                "started with --model-control-mode=explicit and loads all of its models by itself",
                backend=address)  # fmt: skip
