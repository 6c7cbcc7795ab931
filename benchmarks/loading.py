"""Runs loads in a process of their own and checks their answers against Triton.

A load counts when every request was answered OK, Triton's ModelStatistics grew by exactly the rows
sent, and the kept replies equal Triton's direct reply to the same payload. A result carries what
was wrong as text in `problem`; empty means verified.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.openloop.load import LoadSpec, read_samples
from benchmarks.results import ROOT

LOAD_MARGIN_S = 90.0
# The generator draws each reply with a probability: far below the wanted share is a fault.
SAMPLE_SHARE_MIN = 0.5
DIRECT_TRIES = 3


class LoadFailed(RuntimeError):
    """The load process ended without a result."""


@dataclass
class LoadResult:
    """What one load measured. Rates are per second of the window; latencies in ns."""

    requests_per_s: float
    rows_per_s: float
    latency_ns: dict[str, float]
    totals: dict[str, Any]
    window: dict[str, Any]
    cpu_s: dict[str, float]
    load_cpu_s: float
    samples: list[tuple[int, bytes]] = field(default_factory=list)
    problem: str = ""

    def cpu_us(self, *groups: str) -> float:
        """CPU time a request of the watched groups together, in microseconds."""
        used = sum(self.cpu_s[group] for group in groups)
        return used / max(int(self.window["ok"]), 1) * 1e6


def run_load(spec: LoadSpec, on_edge: Callable[[], None] | None = None) -> LoadResult:
    """Runs the load in its own process. Raises LoadFailed.

    `on_edge` is called at the beginning and at the end of the window, or soon after.
    """
    with tempfile.TemporaryDirectory(prefix="infersched-load-") as directory:
        path = str(Path(directory) / "samples")
        wanted = replace(spec, samples_path=path, tells_edges=on_edge is not None)
        command = [sys.executable, "-m", "benchmarks.openloop", "--spec"]
        limit_s = spec.warmup_s + (spec.seconds or 0) + LOAD_MARGIN_S
        with (
            open(Path(directory) / "errors", "w+") as errors,
            subprocess.Popen(
                [*command, json.dumps(wanted.to_dict())],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            killer = threading.Timer(limit_s, process.kill)
            killer.start()
            assert process.stdout is not None
            last = ""
            for last in process.stdout:
                if on_edge is not None and last.strip() in ("measuring", "measured"):
                    on_edge()
            status = process.wait()
            killer.cancel()
            if status != 0:
                errors.seek(0)
                raise LoadFailed(errors.read().strip()[-2000:] or f"ended with status {status}")
        result = json.loads(last)
        samples = read_samples(path)
    window = result["window"]
    seconds = window["duration_ns"] / 1e9
    return LoadResult(
        requests_per_s=window["ok"] / seconds,
        rows_per_s=window["ok_rows"] / seconds,
        latency_ns=window["latency_ns"],
        totals=result["totals"],
        window=window,
        cpu_s=result["cpu_s"],
        load_cpu_s=result["load_cpu_s"],
        samples=samples,
        problem=problem_of_totals(result["totals"], len(samples), spec.sample_share),
    )


def problem_of_answers(totals: dict[str, Any]) -> str:
    """Why not every request had one answer, whichever, and every OK one a message."""
    if totals["connections_lost"]:
        return f"{totals['connections_lost']} connections were lost"
    if totals["answered"] != totals["sent"] or totals["sent"] == 0:
        return f"{totals['answered']} answers to {totals['sent']} requests"
    if totals["ok_empty"]:
        return f"{totals['ok_empty']} OK answers without a message"
    return ""


def problem_of_totals(totals: dict[str, Any], samples: int, sample_share: float) -> str:
    """Why these counts cannot be a faultless load; empty when they can."""
    if problem := problem_of_answers(totals):
        return problem
    if totals["ok"] != totals["sent"]:
        return f"answers that are not OK: {totals['statuses']}: {totals['first_error']}"
    if samples < totals["ok"] * sample_share * SAMPLE_SHARE_MIN - 10:
        return f"only {samples} of {totals['ok']} replies were kept for comparison"
    return ""


def compare_replies(samples: list[tuple[int, bytes]], direct: dict[int, bytes]) -> str:
    """Why the kept replies differ from the direct ones; empty when all are equal.

    Compared are parsed messages: model, version, id, parameters, names, datatypes, shapes, bytes.
    """
    parsed = {
        payload: service_pb2.ModelInferResponse.FromString(reply)
        for payload, reply in direct.items()
    }
    for payload, reply in samples:
        if payload not in parsed:
            return f"no direct reply to payload {payload}"
        if reply == direct[payload]:
            continue
        answer = service_pb2.ModelInferResponse.FromString(reply)
        if answer != parsed[payload]:
            return f"the reply to payload {payload} is not the direct one:\n{answer}"
    return ""


class Triton:
    """What the benchmarks ask Triton beside the load: executed rows and direct replies."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
        self._direct: dict[tuple[str, str, int, int], dict[int, bytes]] = {}

    def executed(self, model: str) -> tuple[int, int]:
        """Rows and executions since Triton's start (ModelStatistics)."""
        request = service_pb2.ModelStatisticsRequest(name=model)
        (statistics,) = self._stub.ModelStatistics(request, timeout=10).model_stats
        return statistics.inference_count, statistics.execution_count

    def direct_replies(self, spec: LoadSpec) -> dict[int, bytes]:
        """Triton's reply to each payload of the pool, asked one at a time."""
        key = (spec.model, spec.workload, spec.pool, spec.seed_of_pool)
        if key not in self._direct:
            asked = LoadSpec(
                target=self.address,
                model=spec.model,
                workload=spec.workload,
                pool=spec.pool,
                seed=spec.seed_of_pool,
                connections=1,
                in_flight=1,
                requests_max=spec.pool,
                warmup_s=0.0,
                seconds=60.0,
                sample_share=1.0,
            )
            # One that has time-outs of its own may refuse some while the machine is busy.
            for _ in range(DIRECT_TRIES):
                result = run_load(asked)
                if not result.problem:
                    break
            else:
                raise LoadFailed(f"direct replies of {spec.model}: {result.problem}")
            self._direct[key] = dict(result.samples)
        return self._direct[key]

    def verified_load(self, spec: LoadSpec) -> LoadResult:
        """Runs the load and checks rows and replies against this Triton."""
        direct = self.direct_replies(spec)
        rows_before, _ = self.executed(spec.model)
        result = run_load(spec)
        rows = self.executed(spec.model)[0] - rows_before
        if not result.problem and rows != result.totals["sent_rows"]:
            result.problem = f"Triton executed {rows} rows of {result.totals['sent_rows']} sent"
        result.problem = result.problem or compare_replies(result.samples, direct)
        result.samples = []
        return result


class Verified(Protocol):
    """What has been checked; `problem` is empty when nothing was wrong."""

    @property
    def problem(self) -> str: ...


def first_problem(results: Iterable[Verified]) -> str:
    """The first thing that was wrong in any of the loads."""
    return next((result.problem for result in results if result.problem), "")
