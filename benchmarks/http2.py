"""What a small unary call costs the gRPC sessions: client and server in memory, no sockets.

    python -m benchmarks.http2 [--requests N] [--rounds N]

The best of several rounds counts: whatever else runs on the machine can only add time. A figure is
0 when an answer of its run was not the expected one.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass

from scheduler._native import http2


@dataclass(frozen=True)
class Load:
    """One figure: the server's share of a call, nanoseconds."""

    figure: str
    in_flight: int
    message_bytes: int
    must_ns: float
    aim_ns: float
    part: float = 1.0  # of the requests asked for


LOADS = (
    Load("http2_server_64_in_flight", 64, 128, 2500, 1200),
    Load("http2_server_1_in_flight", 1, 128, 4000, 2000, 0.2),
    Load("http2_server_64KiB", 16, 64 << 10, 40_000, 15_000, 0.1),
    Load("http2_server_4MiB", 2, 4 << 20, 3_000_000, 1_000_000, 0.002),
)


def measure(load: Load, requests: int, rounds: int) -> float:
    """Nanoseconds a request in the server session: feed, event, answer, pull."""
    count = max(int(requests * load.part), 50)
    best = float("inf")
    for _ in range(rounds):
        result = http2.loopback(count, load.in_flight, load.message_bytes, load.message_bytes)
        if result["answered"] != count:
            return 0.0
        best = min(best, result["server_ns"])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps({"benchmark": "http2", "machine": platform.machine(), **vars(options)}))
    for load in LOADS:
        line = {
            "figure": load.figure,
            "value": round(measure(load, options.requests, options.rounds), 1),
            "must": load.must_ns,
            "aim": load.aim_ns,
            "unit": "ns",
            "better": "lower",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
