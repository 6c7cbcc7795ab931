"""Memory of the data plane with 1,000 connections of which each sends one request a second.

Open loop, real Triton behind, every reply compared with Triton's own. The figure is the largest
resident size seen while the load runs, less the one before it, a connection.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from benchmarks.loading import LoadResult, first_problem
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.processes import allow_open_files, resident_bytes
from benchmarks.results import Figure
from benchmarks.serving import (
    SCHEDULED,
    model_name,
    running_scheduler,
    running_triton,
    scheduler_pids,
)

CONNECTIONS = 1_000
REQUESTS_PER_S = 1.0  # of each
LOAD_S_MIN = 10.0
WARMUP_S = 2.0
SETTLE_S = 1.0
LOOK_PERIOD_S = 0.1
MODEL = model_name("simple", SCHEDULED[0])


def run(options: Options) -> list[Figure]:
    allow_open_files()
    rate = CONNECTIONS * REQUESTS_PER_S
    spec = LoadSpec(
        target="",
        model=MODEL,
        pool=options.pool,
        seed=options.seed,
        connections=options.connections,
        rate_per_s=rate,
        seconds=WARMUP_S,
        sample_share=1.0,
    )
    with (
        running_triton({"simple": SCHEDULED[:1]}) as (server, triton),
        running_scheduler(server.grpc_address) as scheduler,
        ThreadPoolExecutor(1) as executor,
    ):
        (data_plane,) = scheduler_pids(scheduler)["data_plane"]
        spec.target = scheduler.address
        # The same rate before, over a few connections: what requests take is not counted.
        warm = triton.verified_load(spec)
        time.sleep(SETTLE_S)
        before = resident_bytes(data_plane)
        spec.connections = CONNECTIONS
        spec.seconds = max(options.seconds, LOAD_S_MIN)
        running = executor.submit(triton.verified_load, spec)
        most = most_resident(data_plane, running)
        load = running.result()
    problem = first_problem([warm, load])
    a_connection = (most - before) / CONNECTIONS
    say(
        f"  {CONNECTIONS} connections, {load.requests_per_s:.0f} requests/s: "
        f"{before / 1024:.0f} KiB before, {most / 1024:.0f} at most, "
        f"p50 {load.latency_ns['p50'] / 1e3:.0f} p99 {load.latency_ns['p99'] / 1e3:.0f} us; "
        f"{a_connection / 1000:.1f} KB each {problem}"
    )
    return [
        Figure.of("rss_per_active_connection", a_connection / 1000, problem, round_s=spec.seconds)
    ]


def most_resident(pid: int, load: Future[LoadResult]) -> int:
    """The largest resident size of the process until the load has ended, in bytes."""
    most = resident_bytes(pid)
    while not load.done():
        time.sleep(LOOK_PERIOD_S)
        most = max(most, resident_bytes(pid))
    return most
