"""The engine's closed loop, with a device of known need or without: what callgrind looks at.

    python -m benchmarks.ledger_loop REQUESTS [--with-device]

It imports as little as can be: instructions of a start are not what is wanted.
"""

from __future__ import annotations

import sys

from scheduler._native.engine import OWN_EXECUTORS, Engine

MIB = 1 << 20
TOTAL = 16 << 30
ROWS_MAX = 64
QUEUED = 1_000


def drive(with_device: bool, requests: int) -> None:
    """Requests through one model, in compiled code."""
    engine = Engine()
    devices = [0] if with_device else []
    engine.configure_model(
        0,
        [(0, 1, True, OWN_EXECUTORS, devices)],
        0,
        rows_max=ROWS_MAX,
        queue_requests_max=1 << 30,
        staged_batches_max=4,
    )
    if with_device:
        engine.prime_memory(0, 0, 800.0 * MIB, 64.0 * MIB)
        engine.set_device(0, 0, free_bytes=TOTAL, total_bytes=TOTAL, headroom_bytes=TOTAL // 20)
    engine.set_backend(0, True, 0)
    engine.run_closed_loop(requests, QUEUED, 1, 0)
    completed = engine.counters(0)["completed"]
    if completed < requests:
        raise SystemExit(f"{completed} of {requests} requests were completed")


if __name__ == "__main__":
    drive("--with-device" in sys.argv, int(sys.argv[1]))
