"""`infersched triton`: the tritonserver that `serve --embedded` starts."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.backends import triton_install

directory_option = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=triton_install.TOOL_DIRECTORY_VARIABLE,
    show_envvar=True,
    default=None,
    help="Tool directory.  [default: ~/.cache/infersched/triton]",
)


@click.group()
def triton() -> None:
    """Install and find the embedded tritonserver."""


@triton.command()
@directory_option
def install(directory: Path | None) -> None:
    """Put tritonserver with its python backend into the tool directory."""
    try:
        found = triton_install.install(directory, lambda line: click.echo(line, err=True))
    except triton_install.TritonInstallError as error:
        raise click.ClickException(str(error)) from error
    click.echo(found.server)


@triton.command()
@directory_option
def path(directory: Path | None) -> None:
    """Print the path of the installed tritonserver."""
    found = triton_install.locate(directory)
    if found is None:
        where = directory or triton_install.default_tool_directory()
        raise click.ClickException(f"no tritonserver in {where}; run: infersched triton install")
    click.echo(found.server)
