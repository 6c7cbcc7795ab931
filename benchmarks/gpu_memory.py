"""Batches that fit the GPU, on a real one: a PyTorch model in Triton's python backend beside
another tenant that takes and frees most of the device.

* errors that reached clients while the tenant takes and frees memory;
* the need of batches as the scheduler learned it, alone, against what NVML shows of batches that
  are sent to a fresh Triton directly; the worst of the sizes.

Throughput, errors and memory over time go into a picture. Where there is no device the benchmark is
skipped with one line; where something else is missing, it says what has to be carried there.

With the tests' NVML in place (INFERSCHED_TEST_NVML) the arena model stands in for PyTorch, which
shows that every step works. On a real GPU this has not been run yet: unproven are the PyTorch
model and tenant, what the preflight asks there, and both figures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import gpu_preflight as there
from benchmarks.options import Options, say
from benchmarks.results import RESULTS_DIRECTORY, Figure

FIGURES_VARIABLE = "INFERSCHED_TEST_NVML"
NAMES = ("gpu_memory_client_errors", "gpu_memory_prediction_error")


def run(options: Options) -> list[Figure]:
    """No figures where there is no device; unverified ones where something is missing."""
    parts = {
        "Python packages": there.missing_packages,
        "compiled modules": there.missing_modules,
        "Triton": there.missing_triton,
    }
    if FIGURES_VARIABLE not in os.environ:
        parts["PyTorch"] = there.missing_torch
    found = there.preflight(there.nvml_devices, parts)
    if found.skipped:
        say(f"skipped: gpu_memory needs a GPU: {found.skipped}")
        return []
    for missing in found.missing:
        say(f"missing: {missing}")
    if found.missing:
        return [Figure.of(name, 0, "not measured") for name in NAMES]
    return measured(options)


def measured(options: Options) -> list[Figure]:
    """On a machine that has everything."""
    from benchmarks.gpu_load import World, actual_needs, beside_tenant
    from benchmarks.gpu_timeline import svg

    with tempfile.TemporaryDirectory(prefix="infersched-gpu-") as directory:
        world = World(Path(directory))
        say(f"{world.name}: {world.needs}")
        actual = actual_needs(world, world.sizes[:4] if options.short else world.sizes)
        learned, timeline = beside_tenant(world, options)
        error, lines = need_error(learned, actual)
        for row in lines:
            say(row)
        say(
            f"{timeline.per_s:.0f} answers/s beside the tenant, {timeline.errors} errors of "
            f"{len(timeline.answers)}"
        )
        folder = Path(directory) if options.short else RESULTS_DIRECTORY
        picture = folder / f"gpu_memory-{datetime.now(timezone.utc):%Y-%m-%dT%H%M%SZ}.svg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(svg(timeline, f"{world.name}, seed {options.seed}"), encoding="utf-8")
        say(f"picture in {picture}")
    learning = "" if learned else "the need was not learned"
    return [
        Figure.of(NAMES[0], timeline.errors, "" if timeline.answers else "no answer"),
        Figure.of(NAMES[1], error, learning),
    ]


def need_error(
    learned: tuple[float, float] | None, actual: Mapping[int, int]
) -> tuple[float, list[str]]:
    """The worst |predicted / actual - 1| in percent, and a line a size. `learned`: base, a row."""
    if learned is None:
        return 0.0, []
    base_bytes, bytes_per_row = learned
    worst, lines = 0.0, []
    for rows, real in sorted(actual.items()):
        predicted = base_bytes + bytes_per_row * rows
        off = (predicted / real - 1) * 100 if real > 0 else float("inf")
        worst = max(worst, abs(off))
        lines.append(
            f"  {rows:4} rows: {predicted / 2**20:10.0f} MiB predicted, {real / 2**20:10.0f} MiB "
            f"by NVML, {off:+.1f} %"
        )
    return worst, lines
