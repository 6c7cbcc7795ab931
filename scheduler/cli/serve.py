"""`infersched serve`: the supervisor of data plane, control plane and embedded Triton."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from scheduler.cli.options import (
    config_file_option,
    exit_with_config_error,
    setting_options,
    settings_flags,
)


@click.command()
@config_file_option
@setting_options
def serve(config_file: Path | None, **values: Any) -> None:
    """Run the scheduler in front of one or more Tritons.

    SIGTERM drains and exits 0, a second one ends at once; SIGHUP reads the configuration again.
    """
    from scheduler.backends.embedded_triton import TritonStartError
    from scheduler.backends.triton_install import TritonInstallError
    from scheduler.config import ConfigError, load_settings
    from scheduler.supervisor.sockets import ListenError
    from scheduler.supervisor.supervisor import ServeRequest, Supervisor
    from scheduler.telemetry import logs

    config_file = config_file.absolute() if config_file else None
    flags = settings_flags(values)
    try:
        loaded = load_settings(config_file, flags)
    except ConfigError as error:
        exit_with_config_error(error)
    settings = loaded.settings
    if not settings.backends and settings.embedded.model_repository is None:
        click.echo("no backends: pass --backend HOST:PORT or --embedded DIRECTORY", err=True)
        sys.exit(2)
    logs.configure("supervisor", settings.logging.level, settings.logging.format)
    try:
        sys.exit(asyncio.run(Supervisor(ServeRequest(config_file, flags), loaded).run()))
    except (ListenError, TritonInstallError, TritonStartError) as error:
        click.echo(f"infersched: {error}", err=True)
        sys.exit(1)
