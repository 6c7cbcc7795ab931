"""`python -m scheduler.control`: the control plane process, started by the supervisor."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import click

from scheduler.config import ConfigError
from scheduler.control.parameters import Parameters
from scheduler.telemetry import logs
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)


async def run(parameters: Parameters) -> int:
    """Serves until SIGTERM, then drains, or until it fails. Returns the exit status."""
    from scheduler.control.plane import ControlPlane
    from scheduler.control.servers import Servers
    from scheduler.control.tasks import watch

    plane = ControlPlane(parameters, parameters.load())
    servers = Servers(plane)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, plane.reload)
    await servers.start()
    tasks = plane.start()
    failed = asyncio.Event()

    def fail() -> None:
        failed.set()
        stop.set()

    watch(tasks, fail)
    try:
        await stop.wait()
        if failed.is_set():
            return 1  # the data plane goes on meanwhile
        await plane.drain()
    except (ConnectionError, asyncio.TimeoutError) as error:
        log(logger, logging.WARNING, "drain was not confirmed", reason=repr(error))
        return 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await plane.close()
        await servers.stop()
    return 0


@click.command()
@click.option("--parameters", required=True, help="JSON from the supervisor.")
def main(parameters: str) -> None:
    logs.configure("control")
    try:
        sys.exit(asyncio.run(run(Parameters.from_json(parameters))))
    except ConfigError as error:
        # The file changed for the worse since the supervisor read it.
        log(logger, logging.ERROR, "the configuration cannot be used", problems=error)
        sys.exit(2)


main()
