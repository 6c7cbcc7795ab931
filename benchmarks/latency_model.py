"""What learning and asking of the latency model cost: observe() and largest_within(), one core.

    python -m benchmarks.latency_model [--batches N] [--rounds N]

Batches of random sizes with 10 % noise. The best of several rounds counts: whatever else runs on
the machine can only add time. A figure is 0 when the model did not learn the times it was given.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from random import Random

from scheduler._native.latency import LatencyModel

ALPHA_NS, BETA_NS = 1_053_000, 5_072_000
SIGMA = 0.1
ROWS_MAX = (1, 20, 64, 1000, 4096)
MUST_NS = {"observe": 1000.0, "largest_within": 1000.0}
AIM_NS = {"observe": 300.0, "largest_within": 100.0}


def latency_ns(rows: int) -> int:
    return ALPHA_NS * rows + BETA_NS


def measure(rows_max: int, batches: int, seed: int) -> dict[str, float]:
    """Nanoseconds a call; 0 when the model's times are not those it was told."""
    random = Random(seed)
    rows = [random.randint(1, rows_max) for _ in range(batches)]
    times = [round(latency_ns(b) * math.exp(SIGMA * random.gauss(0, 1))) for b in rows]
    budgets = [random.randint(1, latency_ns(rows_max)) for _ in range(batches)]
    model = LatencyModel()
    started = time.process_time()
    model.observe_all(rows, times)
    observed = time.process_time()
    model.decide_all(budgets, rows_max)
    decided = time.process_time()
    off = abs(model.expected(rows_max) / latency_ns(rows_max) - 1)
    if off > SIGMA or model.accuracy.observations != batches:
        return dict.fromkeys(MUST_NS, 0.0)
    return {
        "observe": (observed - started) / batches * 1e9,
        "largest_within": (decided - observed) / batches * 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(
        json.dumps({"benchmark": "latency_model", "machine": platform.machine(), **vars(options)})
    )
    for rows_max in ROWS_MAX:
        rounds = [measure(rows_max, options.batches, seed) for seed in range(options.rounds)]
        for call, must in MUST_NS.items():
            line = {
                "figure": f"latency_model_{call}_{rows_max}",
                "value": round(min(each[call] for each in rounds), 1),
                "must": must,
                "aim": AIM_NS[call],
                "unit": "ns",
                "better": "lower",
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
