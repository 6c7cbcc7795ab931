"""`python -m benchmarks.openloop HOST:PORT --rate 5000 --seconds 10`: load a server, see latencies.

Open loop with --rate (Poisson) or --arrivals (a file with one offset in seconds a line), closed
loop with --in-flight. Latencies of an open loop count from the intended start of each request.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.openloop.load import LoadError, LoadSpec, run_load
from benchmarks.workloads import WORKLOADS


def parse_arguments(arguments: list[str] | None = None) -> tuple[LoadSpec, bool]:
    """The load and whether the result is to be printed as JSON."""
    parser = argparse.ArgumentParser(prog="openloop", description=__doc__)
    parser.add_argument("target", nargs="?", help="HOST:PORT or unix:PATH")
    parser.add_argument("--spec", help="the whole load as JSON (used by the other benchmarks)")
    parser.add_argument("--model", default="identity")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="simple")
    parser.add_argument("--pool", type=int, default=1024, help="distinct payloads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop, requests/s")
    parser.add_argument("--arrivals", type=Path, help="open loop, offsets in seconds")
    parser.add_argument("--warmup", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="deadline of each request")
    parser.add_argument("--objective", type=float, metavar="SECONDS", help="for the goodput")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.spec is not None:
        return LoadSpec(**json.loads(options.spec)), True
    if options.target is None:
        parser.error("HOST:PORT is missing")
    arrivals = []
    if options.arrivals is not None:
        arrivals = [float(line) for line in options.arrivals.read_text().split()]
    if sum(map(bool, (options.in_flight, options.rate, arrivals))) != 1:
        parser.error("give one of --in-flight, --rate and --arrivals")
    spec = LoadSpec(
        target=options.target,
        model=options.model,
        workload=options.workload,
        pool=options.pool,
        seed=options.seed,
        connections=options.connections,
        in_flight=options.in_flight,
        rate_per_s=options.rate,
        arrivals_s=arrivals,
        warmup_s=options.warmup,
        seconds=options.seconds,
        timeout_s=options.timeout,
        objective_s=options.objective,
        sample_share=0.0,
    )
    return spec, options.json


def summary(result: dict[str, Any]) -> str:
    """The result for a reader: goodput first, then latencies, then what failed."""
    window, totals = result["window"], result["totals"]
    seconds = window["duration_ns"] / 1e9
    latency = {key: value / 1e3 for key, value in window["latency_ns"].items() if key != "count"}
    delay = window["start_delay_ns"]
    quantiles = "  ".join(f"{key} {latency[key]:.0f}" for key in ("p50", "p90", "p99", "p99.9"))
    lines = [
        f"good      {window['good'] / seconds:12.0f} requests/s within the objective",
        f"answered  {window['ok'] / seconds:12.0f} requests/s OK, {window['failed']} failed",
        f"latency   {quantiles}  max {latency['max']:.0f} us",
        f"generator {delay['p99'] / 1e3:12.0f} us late at p99, "
        f"{result['load_cpu_s'] / max(window['ok'], 1) * 1e6:.1f} us CPU a request",
    ]
    if totals["answered"] != totals["ok"]:
        lines.append(f"statuses  {totals['statuses']}: {totals['first_error']}")
    return "\n".join(lines)


def main() -> None:
    spec, as_json = parse_arguments()
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    gc.disable()
    try:
        tell = (lambda edge: print(edge, flush=True)) if spec.tells_edges else None
        result = uvloop.run(run_load(spec, tell))
    except LoadError as error:
        print(f"openloop: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(result) if as_json else summary(result))


if __name__ == "__main__":
    main()
