"""`python -m benchmarks [NAME ...]`: runs benchmarks, prints one JSON object a figure, keeps them.

Names: frontend, throughput, latency, memory, payload, stream, connections, slo_triton, overload,
decisions, device_memory, gpu_memory; without a name all of them. Exit status 0: every figure
reached its "must", 3: one did not or was not verified, 2: usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.options import SLO_PARTS, Options, say
from benchmarks.results import Figure, default_path, header, write_results

# In the order of the table of figures.
NAMES = (
    "frontend",
    "throughput",
    "latency",
    "memory",
    "payload",
    "stream",
    "connections",
    "slo_triton",
    "overload",
    "decisions",
    "device_memory",
    "gpu_memory",
)


def parse_arguments() -> tuple[list[str], Options, Path | None, bool]:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of one load")
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--short",
        action="store_true",
        help="only see whether slo_triton, overload, decisions, device_memory and gpu_memory run",
    )
    parser.add_argument(
        "--parts",
        default="",
        help=f"of slo_triton, by commas: {', '.join(SLO_PARTS)}",
    )
    parser.add_argument("--output", type=Path, help="default: a new file in benchmarks/results")
    parser.add_argument("--no-file", action="store_true", help="print only")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    parts = tuple(part for part in given.parts.split(",") if part)
    if parts and given.names != ["slo_triton"]:
        parser.error("only slo_triton has parts")
    if set(parts) - set(SLO_PARTS):
        parser.error(f"slo_triton has the parts {', '.join(SLO_PARTS)}")
    options = Options(given.seconds, given.rounds, given.seed, short=given.short, parts=parts)
    return given.names or list(NAMES), options, given.output, given.no_file


def main() -> int:
    names, options, output, no_file = parse_arguments()
    head = header(options.seed, names)
    say(f"{head['machine']}, commit {head['commit']}, seed {options.seed}")
    figures: list[Figure] = []
    for name in names:
        say(f"-- {name}")
        figures += importlib.import_module(f"benchmarks.{name}").run(options)
    for figure in figures:
        say(f"{figure.figure:32} {figure.value:>10g} {figure.unit:5} {figure.grade}")
        print(figure.to_json(), flush=True)
    if not no_file:
        path = output or default_path(head)
        write_results(path, head, figures)
        say(f"kept in {path}")
    return 0 if all(figure.sound for figure in figures) else 3


if __name__ == "__main__":
    sys.exit(main())
