"""Tasks that run as long as the process: one that ends by an error must not end unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


def watch(tasks: Iterable[asyncio.Task[None]], on_failure: Callable[[], None]) -> None:
    """Says the error that a task ends by, and calls `on_failure` then; a cancelled one is well."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        log(logger, logging.CRITICAL, "a task of the control plane has failed; it starts anew",
            task=task.get_name(), reason=repr(task.exception()))  # fmt: skip
        on_failure()

    for task in tasks:
        task.add_done_callback(ended)
