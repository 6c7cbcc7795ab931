"""`infersched config`: check a configuration offline, show what is in effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from scheduler.cli.options import (
    config_file_option,
    exit_with_config_error,
    setting_options,
    settings_flags,
)
from scheduler.cli.output import output_option, print_rows


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@config_file_option
@setting_options
def validate(file: Path | None, config_file: Path | None, **values: Any) -> None:
    """Check FILE (or --config), environment and flags; print every mistake.

    Profiles that a server would ignore are told, too, and are no mistake.
    """
    from scheduler.config import ConfigError, ignored_profiles, load_settings

    try:
        loaded = load_settings(file or config_file, settings_flags(values))
    except ConfigError as error:
        exit_with_config_error(error)
    for problem in ignored_profiles(loaded):
        click.echo(f"warning: {problem}", err=True)
    click.echo("the configuration is valid", err=True)


@config.command()
@config_file_option
@setting_options
@click.option("--effective", is_flag=True, help="Also the values that are defaults.")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@click.option("--running", is_flag=True, help="Ask the running scheduler instead (--control).")
@click.option("--control", "control_address", metavar="HOST:PORT", default="127.0.0.1:8004",
              envvar="INFERSCHED_CONTROL", show_envvar=True, show_default=True,
              help="Control listener of the running scheduler.")  # fmt: skip
@output_option
def show(
    config_file: Path | None,
    effective: bool,
    origin: bool,
    running: bool,
    control_address: str,
    output: str,
    **values: Any,
) -> None:
    """Show the configuration: what was set, or with --effective all of it."""
    if running:
        entries = _running_entries(control_address)
    else:
        entries = _offline_entries(config_file, settings_flags(values))
    records = []
    for path, value, source in entries:
        if source == "default" and not effective:
            continue
        record = {"key": path, "value": value}
        if origin:
            record["origin"] = source
        records.append(record)
    columns = {"key": "KEY", "value": "VALUE", **({"origin": "ORIGIN"} if origin else {})}
    print_rows(output, columns, records)


def _offline_entries(config_file: Path | None, flags: Any) -> list[tuple[str, Any, str]]:
    from scheduler.config import ConfigError, load_settings
    from scheduler.config.errors import path_text

    try:
        loaded = load_settings(config_file, flags)
    except ConfigError as error:
        exit_with_config_error(error)
    return [(path_text(path), value, source) for path, value, source in loaded.effective()]


def _running_entries(address: str) -> list[tuple[str, Any, str]]:
    from scheduler.cli.client import TIMEOUT_S, control_stub
    from scheduler.v1 import control_pb2 as pb

    with control_stub(address) as stub:
        answer = stub.GetEffectiveConfig(pb.GetEffectiveConfigRequest(), timeout=TIMEOUT_S)
    return [(value.path, json.loads(value.value_json), value.origin) for value in answer.values]
