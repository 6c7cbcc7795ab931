"""The table of `infersched devices` on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scheduler.cli.devices import COLUMNS, _view
from scheduler.v1 import control_pb2 as pb

GIB = 2**30
KEY = "GPU-8f1c2d3e-aaaa-bbbb-cccc-0123456789ab"


def shown(width: int, problem: str = "", known: bool = True) -> list[str]:
    device = pb.DeviceStatus(
        key=KEY, source="nvml", known=known, problem=problem, total_bytes=16 * GIB,
        used_bytes=6 * GIB, free_bytes=10 * GIB, headroom_bytes=GIB,
    )  # fmt: skip
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(_view(pb.ListDevicesResponse(devices=[device]), console))
    return out.getvalue().splitlines()


def test_a_wide_terminal_has_every_column() -> None:
    heading = shown(200)[0]
    assert [name for name in COLUMNS if name not in heading] == []


@pytest.mark.parametrize("width", [85, 100, 120])
def test_a_narrow_terminal_has_whole_figures(width: int) -> None:
    heading, row = (line for line in shown(width) if line.strip())
    for name in ("DEVICE", "MEMORY", "USED", "FREE", "STATE"):
        assert name in heading
    assert row.startswith(KEY)
    assert "6.00 GiB (38%)" in row
    assert max(len(heading), len(row)) <= width


def test_the_state_tells_what_figures_are_worth() -> None:
    assert shown(200)[1].rstrip().endswith(" ok")
    assert shown(200, "its figures are old")[1].rstrip().endswith(" its figures are old")
    lost = shown(200, "it is gone", known=False)[1]
    assert lost.rstrip().endswith(" not known: it is gone")
