"""Figures and the files they are kept in: one JSON object a line, a header line first.

A figure that was not verified in its own run has the value 0, which no measured one has: those are
kept at 0.0001 or above. So 0 is a failure whichever direction is better.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIRECTORY = ROOT / "benchmarks" / "results"
SMALLEST_VALUE = 0.0001


@dataclass(frozen=True)
class Goal:
    """What a figure must reach and aims for, None: it only informs. `better`: higher or lower."""

    must: float | None
    aim: float | None
    unit: str
    better: str


# The table of figures, in the order they are reported.
GOALS: dict[str, Goal] = {
    "frontend_ratio": Goal(25, 60, "x", "higher"),
    "throughput_ratio_64": Goal(2.5, 5, "x", "higher"),
    "throughput_ratio_256": Goal(6, 10, "x", "higher"),
    "mixed_part_of_simple_ratio": Goal(0.5, 0.8, "part", "higher"),
    "cpu_per_request_part_of_triton": Goal(0.4, 0.15, "part", "lower"),
    "data_plane_cpu_per_request": Goal(10, 4, "us", "lower"),
    "added_median_latency_part": Goal(0.35, 0.15, "part", "lower"),
    "added_p99_latency_part": Goal(1.0, 0.3, "part", "lower"),
    "p99.9_with_scrape_ratio": Goal(3, 1.5, "x", "lower"),
    "rss_growth_1m_requests": Goal(1.05, 1.0, "x", "lower"),
    "rss_per_idle_connection": Goal(64, 24, "KB", "lower"),
    "idle_cpu": Goal(1, 0.1, "%", "lower"),
    "payload_600kb_ratio": Goal(0.8, 1.0, "x", "higher"),
    # Where payloads take the wire to Triton, as they do to one of another host.
    "payload_600kb_wire_ratio": Goal(None, None, "x", "higher"),
    "small_p99_beside_16mb_ratio": Goal(3, 1.5, "x", "lower"),
    "decoupled_stream_ratio": Goal(0.8, 1.0, "x", "higher"),
    "rss_per_active_connection": Goal(64, 24, "KB", "lower"),
    "noise_part_of_goodput": Goal(0.88, 0.95, "part", "higher"),
    "overload_part_of_goodput": Goal(0.97, 1.0, "part", "higher"),
    "overload_top_class_in_time": Goal(0.99, 0.999, "part", "higher"),
    "added_wait_median": Goal(1.0, 0.1, "ms", "lower"),
    "false_refusals": Goal(0.005, 0.001, "part", "lower"),
    # No more than may miss at all.
    "wrong_give_ups": Goal(0.01, 0.001, "part", "lower"),
    "simulated_requests": Goal(0.3, 0.3, "M/s", "higher"),
    "decisions_slowest": Goal(1.0, 3.0, "M/s", "higher"),
    "decisions_queue_ratio": Goal(4, 4, "x", "lower"),
    "decisions_models_ratio": Goal(2, 2, "x", "lower"),
    # Where none is aimed at, 0 is shown as the smallest value.
    "differential_unlisted": Goal(SMALLEST_VALUE, SMALLEST_VALUE, "requests", "lower"),
    "fuzz_findings": Goal(SMALLEST_VALUE, SMALLEST_VALUE, "inputs", "lower"),
    "device_memory_client_errors": Goal(SMALLEST_VALUE, SMALLEST_VALUE, "requests", "lower"),
    "device_memory_part_of_best_cap": Goal(0.95, 1.0, "x", "higher"),
    "device_memory_ratio_to_safe_cap": Goal(1.3, 1.6, "x", "higher"),
    "device_memory_prediction_error": Goal(10, 3, "%", "lower"),
    "device_memory_real_client_errors": Goal(SMALLEST_VALUE, SMALLEST_VALUE, "requests", "lower"),
    "device_memory_real_prediction_error": Goal(10, 3, "%", "lower"),
    "device_memory_nvml_calls": Goal(20, 20, "1/s", "lower"),
    "device_memory_real_ratio_to_safe_cap": Goal(1.3, 1.6, "x", "higher"),
    "device_memory_shrink_at_rest": Goal(250, 100, "ms", "lower"),
    "device_memory_shrink_moving": Goal(250, 100, "ms", "lower"),
    "device_memory_ledger_cost": Goal(2, 0.5, "%", "lower"),
    "gpu_memory_client_errors": Goal(SMALLEST_VALUE, SMALLEST_VALUE, "requests", "lower"),
    "gpu_memory_prediction_error": Goal(10, 3, "%", "lower"),
    "slo_prediction_attainment_error": Goal(3, 1.5, "points", "lower"),
    "slo_prediction_batch_error": Goal(10, 5, "%", "lower"),
    "slo_goodput_ratio_default": Goal(1.8, 2.2, "x", "higher"),
    "slo_goodput_ratio_grid": Goal(1.0, 1.1, "x", "higher"),
    "slo_overload_ratio_timeout": Goal(0.98, 1.05, "x", "higher"),
    "slo_overload_ratio_queue_size": Goal(5, 10, "x", "higher"),
    "slo_stalls_in_time_ratio": Goal(None, None, "x", "higher"),
    "slo_after_stalls_in_time": Goal(None, None, "part", "higher"),
    "slo_shared_worst_class_ratio": Goal(1.2, 2, "x", "higher"),
    "slo_shared_worst_class_ratio_tuned": Goal(1.2, 2, "x", "higher"),
}


@dataclass(frozen=True)
class Figure:
    """One line of a result. `value` 0: not verified. `note`: what the value rests on, if told.

    `details` are further keys of the line, such as the values of its rounds.
    """

    figure: str
    value: float
    must: float | None
    aim: float | None
    unit: str
    better: str
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, value: float, problem: str = "", note: str = "", **details: Any
    ) -> Figure:
        """The figure `name` of the table; a `problem` found in its run makes it 0."""
        goal = GOALS[name]
        shown = 0.0 if problem else max(float(f"{value:.4g}"), SMALLEST_VALUE)
        return cls(name, shown, goal.must, goal.aim, goal.unit, goal.better, note, details)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Figure:
        """From what `to_json` wrote. Raises TypeError where an agreed key is missing."""
        agreed = {key: value for key, value in fields.items() if key in AGREED_KEYS}
        details = {key: value for key, value in fields.items() if key not in AGREED_KEYS}
        return cls(**agreed, details=details)

    @classmethod
    def of_study(cls, fields: dict[str, Any]) -> Figure:
        """A line of benchmarks.goodput or benchmarks.noise, which have no goals."""
        told = {key: fields[key] for key in ("figure", "value", "unit", "better")}
        return cls(**told, must=0.0, aim=0.0)

    @property
    def verified(self) -> bool:
        return self.value > 0

    @property
    def sound(self) -> bool:
        """Whether it is verified and what it must be."""
        return self.reaches(self.must)

    def reaches(self, bound: float | None) -> bool:
        """Whether the value is verified and at `bound`, where there is one, or beyond."""
        if not self.verified or bound is None:
            return self.verified
        return self.value >= bound if self.better == "higher" else self.value <= bound

    @property
    def grade(self) -> str:
        if not self.verified:
            return "NOT VERIFIED"
        if self.must is None:
            return "no goal"
        if self.reaches(self.aim):
            return "aim reached"
        return "must reached" if self.reaches(self.must) else "BELOW MUST"

    def to_json(self) -> str:
        told = {key: value for key, value in asdict(self).items() if value != ""}
        return json.dumps(told | told.pop("details"))


AGREED_KEYS = frozenset(field.name for field in fields(Figure)) - {"details"}


def rounded(values: Iterable[float]) -> list[float]:
    """As a figure's value is, for its details."""
    return [float(f"{value:.4g}") for value in values]


def header(seed: int, names: Iterable[str]) -> dict[str, Any]:
    """Where, when and from what the figures of a file come."""
    return {
        "header": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": seed,
        "benchmarks": list(names),
        "machine": machine(),
    }


def machine() -> str:
    """Processor, cores, memory, kernel and Python, in words."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """The short commit, with `+` when the sources differ from it; "unknown" outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def write_results(path: Path, head: dict[str, Any], figures: Iterable[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(head), *(figure.to_json() for figure in figures)]
    path.write_text("\n".join(lines) + "\n")


def read_results(path: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Header (empty when there is none) and figures by name. Raises ValueError on other lines.

    The studies benchmarks.goodput and benchmarks.noise begin theirs with `benchmark`, its name.
    """
    head: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            read = json.loads(line)
            if isinstance(read, dict) and ("header" in read or "benchmark" in read):
                head = read
                continue
            figure = Figure.of_study(read) if "benchmark" in head else Figure.from_fields(read)
        except KeyError as error:
            raise ValueError(
                f"{path}:{number}: not a result line: it has no {error}; files of `python -m "
                "benchmarks`, benchmarks.goodput and benchmarks.noise can be compared"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: not a result line: {error}") from error
        figures[figure.figure] = figure
    return head, figures


def default_path(head: dict[str, Any]) -> Path:
    """A file name by date and commit in the directory of results."""
    date = head["date"].replace(":", "").replace("+0000", "Z")
    return RESULTS_DIRECTORY / f"{date}-{head['commit'].rstrip('+')}.jsonl"
