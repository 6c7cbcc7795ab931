"""`infersched`: finds the command and loads only its module.

Exit status: 0 ok, 1 failed, 2 usage or configuration, 3 a gate failed.
"""

from __future__ import annotations

import importlib

import click

# Command -> (module, attribute, one line of help shown without loading the module).
COMMANDS = {
    "serve": ("scheduler.cli.serve", "serve", "Run the scheduler."),
    "config": ("scheduler.cli.config", "config", "Check and show the configuration."),
    "models": ("scheduler.cli.models", "models", "The models of a running scheduler."),
    "backends": ("scheduler.cli.backends", "backends", "The Tritons of a running scheduler."),
    "devices": ("scheduler.cli.devices", "devices", "Device memory, as it is used."),
    "status": ("scheduler.cli.status", "status", "Status, queues and batches now."),
    "profile": ("scheduler.cli.profile", "profile", "Measure how long batches of MODEL take."),
    "simulate": ("scheduler.cli.simulate", "simulate", "Simulate WORKLOAD: policies compared."),
    "triton": ("scheduler.cli.triton", "triton", "Install and find the embedded tritonserver."),
    "version": ("scheduler.cli.version", "version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry[0]), entry[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 ok, 1 failed, 2 usage or configuration, 3 a gate failed (not ready).",
)
def main() -> None:
    """A batching inference scheduler in front of Triton Inference Servers."""
