"""Results as a table for people or as JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Command = Callable[..., Any]


def output_option(command: Command) -> Command:
    """`--output table|json`."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        envvar="INFERSCHED_OUTPUT",
        show_envvar=True,
        help="Form of the result.",
    )(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def check_can_write(path: Path, option: str, suffixes: Sequence[str] = ()) -> None:
    """Before work that takes long: whether its result can be written. Raises UsageError."""
    if suffixes and path.suffix.lower() not in suffixes:
        *others, last = suffixes
        raise click.UsageError(f"{option} {path}: the name ends in {', '.join(others)} or {last}")
    # Those of pathlib raise for directories that must not be looked into.
    if not os.path.isdir(path.parent):
        raise click.UsageError(f"{option} {path}: there is no directory {path.parent}")
    written = path
    try:
        os.stat(path)
    except FileNotFoundError:
        written = path.parent
    except OSError as error:
        raise click.UsageError(f"{option} {path}: {error.strerror}") from error
    if not os.access(written, os.W_OK):
        raise click.UsageError(f"{option} {path}: it must not be written")


def output_console() -> Console:
    """Standard output; without colour where NO_COLOR is set or it is no terminal."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        no_color="NO_COLOR" in os.environ or not is_terminal,
        # A pipe gets whole lines, not ones cut to some width.
        width=None if is_terminal else 500,
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output."""
    output_console().print(make_table(columns, rows))


def make_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table for a console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if is_terminal else None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def print_rows(
    output: str, columns: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> None:
    """`columns` maps the key of a record to the heading of the table; JSON has all keys."""
    if output == "json":
        print_json(list(records))
        return
    print_table(
        list(columns.values()), [[record.get(key) for key in columns] for record in records]
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    return "" if value is None else str(value)


def message_record(message: Any) -> dict[str, Any]:
    """A protobuf message as plain values under its own field names, defaults included."""
    from google.protobuf.json_format import MessageToDict

    record: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _integers(message, record)
    return record


def _integers(message: Any, record: dict[str, Any]) -> None:
    """The JSON mapping writes 64-bit integers as text; ours stay numbers."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and not field.is_repeated:
            if field.name in record:
                _integers(value, record[field.name])
        elif field.message_type is not None:
            for item, entry in zip(value, record.get(field.name, []), strict=False):
                _integers(item, entry)
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            record[field.name] = list(value) if field.is_repeated else value
