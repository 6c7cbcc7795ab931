"""What the engine's decisions cost on one core: submit to dispatch and complete, random deadlines.

    python -m benchmarks decisions

A closed loop in compiled code: one executor that all models share, batches of 64 rows at most,
every answered request followed by one of the same model. Queues of 10 to 1,000,000 requests of one
model; 1,000,000 requests over 1 to 10,000 models. CPU time; the best of the rounds counts, because
whatever else runs on the machine can only add to it.

Figures: the slowest of all loads in million requests/s; the time of a request with 1,000,000 queued
over that with 10; the longest time of a request with several models over that with one.
"""

from __future__ import annotations

import time

from benchmarks.options import Options, say
from benchmarks.results import Figure
from scheduler._native.simulation import DecisionLoad

QUEUES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MODELS = (1, 10, 100, 1_000, 10_000)


def seconds_a_request(models: int, queue_length: int, requests: int, rounds: int) -> float:
    """CPU seconds; 0 when a request was refused or lost."""
    load = DecisionLoad(models=models, queue_length=queue_length)
    load.fill()
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        if not load.run(requests):
            return 0.0
        best = min(best, (time.process_time() - begun) / requests)
    return best


def run(options: Options) -> list[Figure]:
    requests = 2_000 if options.short else 300_000
    longest = 1_000 if options.short else QUEUES[-1]
    queues = [length for length in QUEUES if length <= longest]
    times: dict[tuple[int, int], float] = {}
    loads = [(1, length) for length in queues] + [(models, longest) for models in MODELS[1:]]
    for models, length in loads:
        took = seconds_a_request(models, length, requests, options.rounds)
        times[models, length] = took
        rate = 1e-6 / took if took else 0.0
        say(f"{models:6} models, {length:9,} queued: {rate:6.2f} M requests/s")
    problem = "" if all(times.values()) else "a request was refused or lost"
    slowest = max(times.values())
    one = times[1, longest] or 1.0
    several = max(times[models, longest] for models in MODELS[1:])
    return [
        Figure.of("decisions_slowest", 1e-6 / (slowest or 1.0), problem),
        Figure.of("decisions_queue_ratio", one / (times[1, queues[0]] or 1.0), problem),
        Figure.of("decisions_models_ratio", several / one, problem),
    ]
