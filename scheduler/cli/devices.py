"""`infersched devices`: the memory of the devices, as it is used."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

from scheduler.cli.client import TIMEOUT_S, control_option, control_stub
from scheduler.cli.output import (
    make_table,
    message_record,
    output_console,
    output_option,
    print_json,
)
from scheduler.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

COLUMNS = ("DEVICE", "MEMORY", "USED", "FREE", "HEADROOM", "RESERVED", "AGE", "PROCESSES", "SOURCE",
           "MODELS", "STATE")  # fmt: skip
# What a narrow terminal does without, the first one first.
LEAST_NEEDED = ("RESERVED", "PROCESSES", "SOURCE", "AGE", "HEADROOM", "MODELS")


@click.command()
@click.option("--once", is_flag=True, help="Print the table once.")
@click.option("--json", "as_json", is_flag=True, help="As --once --output json.")
@click.option(
    "--period", type=click.FloatRange(0.1, 3600), default=0.5, show_default=True,
    help="Seconds between two looks.",
)  # fmt: skip
@control_option
@output_option
def devices(once: bool, as_json: bool, period: float, control_address: str, output: str) -> None:
    """Show the memory of the devices, until Ctrl-C on a terminal, else once."""
    with control_stub(control_address) as stub:

        def look() -> pb.ListDevicesResponse:
            answer: pb.ListDevicesResponse
            answer = stub.ListDevices(pb.ListDevicesRequest(), timeout=TIMEOUT_S)
            return answer

        if as_json or output == "json":
            print_json(message_record(look()))
            return
        console = output_console()
        if once or not sys.stdout.isatty():
            console.print(_view(look(), console))
            return
        from rich.live import Live

        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(_view(look(), console), console=console, auto_refresh=False) as live,
        ):
            while True:
                time.sleep(period)
                live.update(_view(look(), console), refresh=True)


def _view(answer: pb.ListDevicesResponse, console: Console) -> Group:
    """The devices, and the sources that tell nothing."""
    from rich.console import Group

    parts = [_fitting([_row(device) for device in answer.devices], console)]
    failing = [(source.name, source.problem) for source in answer.sources if source.problem]
    if failing:
        parts.append(make_table(("SOURCE", "TELLS NOTHING"), failing))
    return Group(*parts)


def _fitting(rows: list[tuple[object, ...]], console: Console) -> Table:
    """A table with as many columns as there is room for."""
    from rich.measure import Measurement

    unbounded = console.options.update(max_width=1000)  # or it measures what fits
    shown = list(range(len(COLUMNS)))
    for least in (*LEAST_NEEDED, ""):
        table = make_table(
            [COLUMNS[at] for at in shown], [[row[at] for at in shown] for row in rows]
        )
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
        shown = [at for at in shown if COLUMNS[at] != least]
    return table


def _row(device: pb.DeviceStatus) -> tuple[object, ...]:
    known = device.total_bytes > 0
    name = f"{device.key}\n{device.name}" if device.name and sys.stdout.isatty() else device.key
    return (
        name,
        _size(device.total_bytes) if known else "-",
        f"{_size(device.used_bytes)} ({device.used_bytes / device.total_bytes:.0%})"
        if known
        else "-",
        _size(device.free_bytes) if known else "-",
        _size(device.headroom_bytes) if known else "-",
        _size(device.reserved_bytes) if known else "-",
        f"{device.age_ns / 1e9:.1f} s" if device.age_ns else "-",
        len(device.processes) or "-",
        device.source,
        list(device.models) or "-",
        _state(device),
    )


def _state(device: pb.DeviceStatus) -> str:
    problem = device.problem if device.known else f"not known: {device.problem}"
    words = [problem] if problem else []
    if device.schedulers > 1:
        words.append(f"shared by {device.schedulers} schedulers")
    if device.slowed_by_heat:
        words.append("slowed by heat")
    words += [f"{event.event}: {event.count}" for event in device.events]
    return "; ".join(words) or "ok"


def _size(size_bytes: int) -> str:
    """Rounded: figures move all the time."""
    return f"{size_bytes / 2**30:.2f} GiB"
