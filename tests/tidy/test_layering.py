"""A request goes through the rooms in one direction; no room knows one upstream of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, imported_rooms, included_rooms, name, room, sources

# Room -> the other rooms it may include.
CSRC: dict[str, set[str]] = {
    "base": set(),
    "kserve": {"base"},
    "engine": {"base"},
    "http2": {"base"},
    "gateway": {"base", "engine", "http2", "kserve"},
    "loadgen": {"base", "http2", "kserve"},
    "simulation": {"base", "engine"},
}

# Room -> the other rooms it may import.
SCHEDULER: dict[str, set[str]] = {
    "_native": set(),
    "v1": set(),
    "plots": set(),
    "security": set(),
    "config": {"_native", "security"},
    "telemetry": {"config", "_native"},
    "dataplane": {"_native", "security", "telemetry", "v1"},
    "backends": {"config", "security", "telemetry"},
    "memory": {"config", "telemetry"},
    "control": {"_native", "backends", "config", "memory", "security", "telemetry", "v1"},
    "simulation": {"_native", "config", "plots"},
    "profiling": {"_native", "backends", "config", "memory", "plots"},
    "supervisor": {"_native", "backends", "config", "control", "telemetry", "v1"},
    "cli": {
        *("backends", "config", "control", "memory", "plots", "profiling", "simulation"),
        *("supervisor", "telemetry", "v1"),
    },
}


def test_cxx_includes_follow_the_layers() -> None:
    files = sources(".h", ".cc", under="csrc")
    assert upward({path: included_rooms(path) for path in files}, CSRC, "csrc") == []


def test_python_imports_follow_the_layers() -> None:
    imports = {
        path: imported_rooms(path) - {"__version__"}
        for path in sources(".py", ".pyx", ".pxd", under="scheduler")
    }
    # Importing the package must stay cheap: what is in no room imports none.
    assert upward(imports, {"": set(), **SCHEDULER}, "scheduler") == []


def upward(used: dict[Path, set[str]], table: dict[str, set[str]], under: str) -> list[str]:
    """What files use of rooms that their own is not above."""
    found = []
    for path, rooms in used.items():
        here = room(path, under)
        assert here in table, f"give the new room {here} its place in this table"
        found += [f"{name(path)}: {r}" for r in rooms - table[here] - {here}]
    return found


def test_the_product_does_not_import_tests_or_benchmarks() -> None:
    outside = ("from tests", "import tests", "from benchmarks", "import benchmarks")
    lines = (
        f"{name(path)}: {line}"
        for path in sources(".py", under="scheduler")
        for line in path.read_text().splitlines()
        if line.strip().startswith(outside)
    )
    assert list(lines) == []


@pytest.mark.parametrize("table", [CSRC, SCHEDULER], ids=["csrc", "scheduler"])
def test_the_layers_have_no_cycle(table: dict[str, set[str]]) -> None:
    placed: set[str] = set()
    while len(placed) < len(table):
        ready = {here for here, below in table.items() if here not in placed and below <= placed}
        assert ready, f"a cycle among {sorted(set(table) - placed)}"
        placed |= ready


def test_the_data_plane_loads_nothing_of_the_control_plane() -> None:
    program = "import sys, scheduler.dataplane.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    control_plane_only = {"grpc", "numpy", "prometheus_client", "pydantic", "rich", "tritonclient"}
    assert not loaded & control_plane_only
    assert "scheduler.config" not in done.stdout.split()
