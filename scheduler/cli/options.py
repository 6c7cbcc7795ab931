"""Options shared by commands, and the bridge from flags to configuration paths."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from scheduler.config.errors import ConfigError

Command = Callable[..., Any]
Flags = dict[tuple[str, ...], tuple[Any, str]]

# Option -> (path in the configuration, metavar, help, whether it may be repeated).
SETTING_OPTIONS: dict[str, tuple[tuple[str, ...], str, str, bool]] = {
    "--backend": (("backends",), "HOST:PORT", "A Triton's gRPC address; repeatable.", True),
    "--embedded": (
        ("embedded", "model_repository"),
        "DIRECTORY",
        "Start and supervise a Triton on this model repository.",
        False,
    ),
    "--listen": (
        ("server", "listen"),
        "HOST:PORT",
        "Client listener; repeatable; port 0 takes a free one. Like any gRPC server it listens on "
        "every IPv4 interface unless told otherwise.  [default: 0.0.0.0:8001]",
        True,
    ),
    "--metrics-listen": (
        ("server", "metrics_listen"),
        "HOST:PORT",
        "Prometheus listener, or none.  [default: 127.0.0.1:8002]",
        False,
    ),
    "--control-listen": (
        ("server", "control_listen"),
        "HOST:PORT",
        "Control service for this command line, or none.  [default: 127.0.0.1:8004]",
        False,
    ),
    "--log-level": (
        ("logging", "level"),
        "LEVEL",
        "debug, info, warning or error.  [default: info]",
        False,
    ),
}


def config_file_option(command: Command) -> Command:
    """`--config FILE`."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="INFERSCHED_CONFIG",
        show_envvar=True,
        help="Configuration file (YAML).",
    )(command)


def setting_options(command: Command) -> Command:
    """The options of SETTING_OPTIONS; the function gets them in `**flags`, see `settings_flags`.

    The environment variables are read with the other sources of configuration, so that each value
    knows where it came from; here they are only shown.
    """
    for option, (path, metavar, text, repeatable) in reversed(SETTING_OPTIONS.items()):
        variable = "INFERSCHED_" + "__".join(part.upper() for part in path)
        command = click.option(
            option, metavar=metavar, multiple=repeatable, help=f"{text}  [env var: {variable}]"
        )(command)
    return command


def settings_flags(values: dict[str, Any]) -> Flags:
    """The configuration layer of the flags that were given."""
    flags: Flags = {}
    for option, (path, _, _, repeatable) in SETTING_OPTIONS.items():
        value = values.get(option.removeprefix("--").replace("-", "_"))
        if value is None or value == ():
            continue
        if path == ("embedded", "model_repository"):
            value = str(Path(value).absolute())
        flags[path] = (list(value) if repeatable else value, option)
    return flags


def exit_with_config_error(error: ConfigError) -> NoReturn:
    """Prints every problem and exits 2."""
    for problem in error.problems:
        click.echo(f"configuration error: {problem}", err=True)
    sys.exit(2)
