"""What fuzzers have shown, and the file that it is kept in, over all runs of one build.

A build is the last commit of the rooms that a fuzzer exercises. Runs of the same one add up; those
of another begin anew, as do those of sources that were never committed.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results import Figure, header, read_results, write_results

ROOT = Path(__file__).resolve().parents[2]
# By the first word of a fuzzer's name.
ROOMS = {
    "codec": ("kserve", "base"),
    "http2": ("http2", "base"),
    "engine": ("engine", "simulation", "base"),
}
UNCOMMITTED = "+"
# Points of the coverage that are kept: each has so many more inputs than the one before it.
INPUTS_GROWTH = 1.25

# One status line of libFuzzer: "#2048  pulse  cov: 1168 ft: 3327 corp: 421/12Kb ... exec/s: 27341".
STATUS = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)")
RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def build_of(name: str) -> str:
    """The commit of the rooms that the fuzzer exercises, with `+` where they differ from it."""
    rooms = [f"csrc/{room}" for room in ROOMS[name.partition("_")[0]]]
    asked = (["log", "-1", "--format=%h"], ["status", "--porcelain"])
    try:
        commit, changed = (
            subprocess.run(
                ["git", *words, "--", *rooms], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return UNCOMMITTED
    return commit + (UNCOMMITTED if changed else "")


@dataclass
class Target:
    """What the runs of one fuzzer have shown."""

    name: str
    build: str = ""
    inputs: int = 0
    seconds: float = 0.0
    findings: int = 0
    # (inputs so far, edges covered), oldest first
    coverage: list[tuple[int, int]] = field(default_factory=list)

    def read(self, log: str) -> None:
        """Adds what libFuzzer wrote in one turn."""
        begun = self.inputs
        counted = 0
        for line in log.splitlines():
            status = STATUS.match(line)
            if status is not None:
                counted = max(counted, int(status[1]))
                self.coverage.append((begun + int(status[1]), int(status[3])))
            total = RUNS.match(line)
            if total is not None:
                counted = int(total[1])
        self.inputs = begun + counted

    def edges_at(self, part: float) -> int:
        """Edges covered after that part of all inputs; after 0, by the corpus of the first run."""
        seen = [edges for inputs, edges in self.coverage if inputs <= part * self.inputs]
        return max(seen or [edges for _, edges in self.coverage[:1]], default=0)

    def report(self) -> str:
        growth = ", ".join(f"{self.edges_at(p)} at {p:.0%}" for p in (0, 0.1, 0.5, 0.9, 1.0))
        rate = self.inputs / max(self.seconds, 1e-9)
        return f"{self.name:14} {self.inputs:>11,} inputs, {rate:>7,.0f} a second; edges: {growth}"

    def after(self, earlier: Target | None) -> Target:
        """With the runs before it, where they are of the same build."""
        if earlier is None or earlier.build != self.build or UNCOMMITTED in self.build:
            return self
        shifted = [(earlier.inputs + inputs, edges) for inputs, edges in self.coverage]
        return Target(
            self.name,
            self.build,
            earlier.inputs + self.inputs,
            earlier.seconds + self.seconds,
            earlier.findings + self.findings,
            earlier.coverage + shifted,
        )

    def thinned(self) -> list[tuple[int, int]]:
        """The coverage as it is kept: where it rose, but for points close to the one before."""
        kept: list[tuple[int, int]] = []
        for inputs, edges in self.coverage:
            if not kept or (edges > kept[-1][1] and inputs >= INPUTS_GROWTH * kept[-1][0]):
                kept.append((inputs, edges))
        most = max((edges for _, edges in self.coverage), default=0)
        if kept and most > kept[-1][1]:
            kept.append(next(point for point in self.coverage if point[1] == most))
        return kept

    def to_fields(self) -> dict[str, Any]:
        fields = asdict(self) | {"seconds": round(self.seconds), "coverage": self.thinned()}
        del fields["name"]
        # In the beginning, in the middle, and at the end.
        return fields | {"edges": [self.edges_at(part) for part in (0, 0.5, 1.0)]}

    @classmethod
    def from_fields(cls, name: str, fields: dict[str, Any]) -> Target:
        coverage = [(inputs, edges) for inputs, edges in fields["coverage"]]
        numbers = (fields["inputs"], fields["seconds"], fields["findings"])
        return cls(name, fields["build"], *numbers, coverage)


class Kept:
    """The file of earlier runs, to which this run's targets are added."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self._seed = seed
        self._earlier: dict[str, Target] = {}
        self._seeds: list[int] = []
        if path.exists():
            head, _ = read_results(path)
            for name, fields in head.get("targets", {}).items():
                self._earlier[name] = Target.from_fields(name, fields)
            self._seeds = head.get("seeds", [])

    def write(self, targets: list[Target]) -> None:
        """What was kept, with the targets as they are now; those whose turn has come."""
        begun = [target for target in targets if target.inputs or target.findings]
        together = self._earlier | {t.name: t.after(self._earlier.get(t.name)) for t in begun}
        head = header(self._seed, [f"fuzz {name}" for name in together])
        head["seeds"] = [*self._seeds, self._seed]
        head["targets"] = {name: target.to_fields() for name, target in together.items()}
        findings = sum(target.findings for target in together.values())
        write_results(self._path, head, [Figure.of("fuzz_findings", findings)])
