"""Replies/s of a decoupled model over ModelStreamInfer, through the scheduler against straight.

One Triton, both ways in turn. A request asks for REPLIES responses; every stream has one request
outstanding. Every reply is checked, and Triton must have executed every request once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median

from benchmarks.loading import LoadFailed, Triton, first_problem
from benchmarks.options import Options, say
from benchmarks.processes import cpu_seconds, process_tree
from benchmarks.results import ROOT, Figure, rounded
from benchmarks.serving import (
    Variant,
    model_name,
    running_scheduler,
    running_triton,
    scheduler_pids,
)
from benchmarks.stream_load import StreamPlan

REPLIES = 100
CONNECTIONS = 2
STREAMS = 4  # of each connection
LOAD_MARGIN_S = 60.0
_MODEL = Variant("plain")


@dataclass
class StreamResult:
    """What one load measured; `cpu_us` a reply by role, of the whole load process's life."""

    replies_per_s: float
    load_cpu_us: float
    cpu_us: dict[str, float]
    problem: str


def run(options: Options) -> list[Figure]:
    rounds: list[tuple[StreamResult, StreamResult]] = []
    with (
        running_triton({"stream": (_MODEL,)}) as (server, triton),
        running_scheduler(server.grpc_address) as scheduler,
    ):
        assert server.pid is not None
        triton_pids = {"triton": process_tree(server.pid)}
        sides = (
            ("straight", server.grpc_address, triton_pids),
            ("scheduled", scheduler.address, {**triton_pids, **scheduler_pids(scheduler)}),
        )
        for _ in range(options.rounds):
            measured = [load(triton, address, watch, options) for _, address, watch in sides]
            for (word, _, _), result in zip(sides, measured, strict=True):
                say_result(word, result)
            rounds.append((measured[0], measured[1]))
    ratios = [
        through.replies_per_s / max(straight.replies_per_s, 1) for straight, through in rounds
    ]
    ratio = median(ratios)
    problem = first_problem(chain(*rounds))
    say(f"decoupled stream: {ratio:.2f}x {problem}")
    details = {"by_round": rounded(ratios), "round_s": options.seconds}
    return [Figure.of("decoupled_stream_ratio", ratio, problem, **details)]


def load(
    triton: Triton, address: str, watch: dict[str, list[int]], options: Options
) -> StreamResult:
    """One load in a process of its own. Raises LoadFailed."""
    model = model_name("stream", _MODEL)
    plan = StreamPlan(
        target=address,
        model=model,
        replies=REPLIES,
        connections=CONNECTIONS,
        streams=STREAMS,
        seconds=options.seconds,
    )
    executions = triton.executed(model)[1]
    cpu = {role: cpu_seconds(pids) for role, pids in watch.items()}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stream_load"],
        input=json.dumps(asdict(plan)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=plan.seconds + LOAD_MARGIN_S,
    )
    if done.returncode != 0:
        raise LoadFailed(done.stderr.strip()[-2000:])
    result = json.loads(done.stdout)
    executions = triton.executed(model)[1] - executions
    problem = str(result["problem"])
    if not problem and executions != result["requests"]:
        problem = f"Triton executed {executions} of {result['requests']} requests"
    replies = max(result["requests"] * REPLIES, 1)
    used = {role: (cpu_seconds(pids) - cpu[role]) / replies * 1e6 for role, pids in watch.items()}
    return StreamResult(result["replies_per_s"], result["load_cpu_us"], used, problem)


def say_result(word: str, result: StreamResult) -> None:
    cpu = "  ".join(f"{role} {used:.1f}" for role, used in result.cpu_us.items())
    say(
        f"  {word}: {result.replies_per_s:.0f} replies/s  CPU us/reply: {cpu}  "
        f"load {result.load_cpu_us:.1f} {result.problem}"
    )
