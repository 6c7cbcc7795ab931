"""What the scheduling decision costs: submit, batch, dispatch, complete, without codec and sockets.

    python -m benchmarks.engine [--requests N] [--rounds N]

A closed loop in compiled code keeps a queue of 1,000 requests at one model with batches of 64 rows.
The best of several rounds counts: whatever else runs on the machine can only add time. A figure is
0 when the counters of its run do not show every request completed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass

from scheduler._native.engine import Engine

SECOND = 1_000_000_000
ROWS_MAX = 64


@dataclass(frozen=True)
class Load:
    """One figure: millions of requests a second on one core."""

    figure: str
    queue_length: int
    signatures: int
    budget_ns: int  # time to each request's deadline; 0: none
    must: float
    aim: float


LOADS = (
    Load("engine_plain", 1_000, 1, 0, 3.0, 6.0),
    Load("engine_deadlines", 1_000, 1, 10 * SECOND, 3.0, 6.0),
    Load("engine_32_signatures", 1_000, 32, 10 * SECOND, 1.0, 3.0),
    Load("engine_queue_100000", 100_000, 1, 10 * SECOND, 1.0, 3.0),
)


def measure(load: Load, requests: int) -> float:
    """Millions of requests a second; 0 when one was lost."""
    engine = Engine()
    engine.configure_model(
        0,
        [(0, 1, True)],
        0,
        rows_max=ROWS_MAX,
        queue_requests_max=1 << 30,
        staged_batches_max=4,
    )
    engine.set_backend(0, True, 0)
    started = time.process_time()
    engine.run_closed_loop(requests, load.queue_length, load.signatures, load.budget_ns)
    elapsed = time.process_time() - started
    counters = engine.counters(0)
    lost = counters["admitted"] - counters["completed"] - counters["in_flight"]
    if counters["completed"] < requests or lost:
        return 0.0
    return float(counters["completed"]) / elapsed / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps({"benchmark": "engine", "machine": platform.machine(), **vars(options)}))
    for load in LOADS:
        best = max(measure(load, options.requests) for _ in range(options.rounds))
        line = {
            "figure": load.figure,
            "value": round(best, 2),
            "must": load.must,
            "aim": load.aim,
            "unit": "M requests/s",
            "better": "higher",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
