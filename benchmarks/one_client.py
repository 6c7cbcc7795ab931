"""`python -m benchmarks.one_client ADDRESS MODEL COUNT`: an unmodified tritonclient, one at a time.

Prints p50 and p99 in microseconds, the number of requests sent and what was wrong as JSON. Every
answer is compared with the values sent: the model is an identity.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

WARM_UP = 200


def main() -> None:
    address, model, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rng = np.random.default_rng(1)
    taken_us = []
    problem = ""
    with InferenceServerClient(address) as client:
        tensor = InferInput("INPUT0", [1, 16], "FP32")
        for number in range(WARM_UP + count):
            values = rng.random((1, 16), dtype=np.float32)
            tensor.set_data_from_numpy(values)
            started = time.perf_counter_ns()
            reply = client.infer(model, [tensor])
            taken_us.append((time.perf_counter_ns() - started) / 1e3)
            if not np.array_equal(reply.as_numpy("OUTPUT0"), values):
                problem = problem or f"the answer to request {number} differs"
    p50, p99 = np.quantile(taken_us[WARM_UP:], [0.5, 0.99])
    print(json.dumps({"p50": p50, "p99": p99, "sent": WARM_UP + count, "problem": problem}))


if __name__ == "__main__":
    main()
