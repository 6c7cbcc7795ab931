"""Bytes/s of 600 KB requests against straight to Triton; small requests beside 16 MB ones.

All ways go to one Triton in turn, rounds are interleaved: straight, through the scheduler as it is
by default, which hands payloads to a Triton of the same host in shared memory, and through one that
sends them over the wire, as it does to other hosts. The tail of small requests is measured
on a connection of its own, alone and while another connection keeps a 16 MB request in flight to
another model, whose answers are verified too. The same straight to Triton stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median

from benchmarks.loading import LoadResult, Triton, first_problem
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.processes import process_tree
from benchmarks.results import Figure, rounded
from benchmarks.serving import (
    Variant,
    model_name,
    running_scheduler,
    running_triton,
    scheduler_pids,
)
from benchmarks.throughput import Comparison, Side, best_variant, ratio_figure
from tests.models import DynamicBatching

IN_FLIGHT = 8
IMAGE_BYTES = 3 * 224 * 224 * 4
LARGE_BYTES = 16 << 20
# Distinct payloads; together far more than the caches hold.
IMAGES = 64
LARGE_ONES = 4
SMALL_RATE_PER_S = 500.0
# How much longer than the small load the large one lasts.
OVERLAP_S = 5.0
BEGIN_TIMEOUT_S = 30.0
POLL_S = 0.01

# What the scheduler sends to a Triton of another host.
WIRE_ONLY = {"INFERSCHED_SERVER__SHARED_MEMORY_BYTES_MAX": "0"}

_PLAIN = Variant("plain")
# Either side has the choice of a model that batches and of one that does not.
_SCHEDULED = (
    _PLAIN,
    Variant("plain_2", 2),
    Variant("single", 1, None, 1),
    Variant("single_2", 2, None, 1),
)
_STRAIGHT = (
    *_SCHEDULED,
    Variant("default", 1, DynamicBatching()),
    Variant("default_2", 2, DynamicBatching()),
)


def run(options: Options) -> list[Figure]:
    with (
        running_triton({"image": _STRAIGHT, "simple": (_PLAIN,), "large": (_PLAIN,)}) as (
            server,
            triton,
        ),
        running_scheduler(server.grpc_address) as scheduler,
    ):
        assert server.pid is not None
        triton_pids = {"triton": process_tree(server.pid)}
        straight = Side("straight", server.grpc_address, _STRAIGHT, triton_pids)
        watch = {**triton_pids, **scheduler_pids(scheduler)}
        scheduled = Side("scheduled", scheduler.address, _SCHEDULED, watch)
        with running_scheduler(server.grpc_address, WIRE_ONLY) as another:
            watch = {**triton_pids, **scheduler_pids(another)}
            wire = Side("scheduled by wire", another.address, _SCHEDULED, watch)
            images = compare_images(triton, straight, (scheduled, wire), options)
        tails = [tail_ratios(triton, side, options) for side in (scheduled, straight)]
    return figures(images, tails, options)


def figures(
    images: list[Comparison], tails: list[tuple[list[float], str]], options: Options
) -> list[Figure]:
    """`images`: in shared memory and by the wire; `tails`: through the scheduler and straight."""
    (tail, problem), (straight, _) = tails
    names = ("payload_600kb_ratio", "payload_600kb_wire_ratio")
    return [
        *(ratio_figure(*each, options) for each in zip(names, images, strict=True)),
        Figure.of(
            "small_p99_beside_16mb_ratio",
            median(tail),
            problem,
            by_round=rounded(tail),
            straight=rounded([median(straight)])[0],
            straight_by_round=rounded(straight),
            round_s=options.seconds,
        ),
    ]


# -- 600 KB requests -------------------------------------------------------------------------------


def compare_images(
    triton: Triton, straight: Side, ways: Sequence[Side], options: Options
) -> list[Comparison]:
    """Each way with straight. All requests have as many bytes: requests/s stand for bytes/s."""
    base = LoadSpec(
        target="",
        workload="image",
        pool=IMAGES,
        seed=options.seed,
        connections=options.connections,
        in_flight=IN_FLIGHT,
        seconds=options.seconds,
    )
    sides = (straight, *ways)
    specs = [best_variant(triton, side, base) for side in sides]
    results: list[list[LoadResult]] = [[] for _ in sides]
    for _ in range(options.rounds):
        for side, spec, kept in zip(sides, specs, results, strict=True):
            kept.append(triton.verified_load(spec))
            say_images(f"{side.word} {spec.model}", kept[-1])
    compared = [Comparison(results[0], kept) for kept in results[1:]]
    for side, found in zip(ways, compared, strict=True):
        say(f"600 KB, {IN_FLIGHT} in flight, {side.word}: {found.ratio:.2f}x {found.problem}")
    return compared


def say_images(what: str, result: LoadResult) -> None:
    cpu = "  ".join(f"{name} {result.cpu_us(name):.0f}" for name in result.cpu_s)
    latency = result.latency_ns
    say(
        f"  {what}: {result.requests_per_s * IMAGE_BYTES / 1e6:.0f} MB/s  "
        f"p50 {latency['p50'] / 1e6:.2f} p99 {latency['p99'] / 1e6:.2f} ms  "
        f"CPU us/request: {cpu}  load {result.load_cpu_s / max(result.window['ok'], 1) * 1e6:.0f} "
        f"{result.problem}"
    )


# -- small requests beside large ones --------------------------------------------------------------


def tail_ratios(triton: Triton, side: Side, options: Options) -> tuple[list[float], str]:
    """By round, the small requests' p99 beside 16 MB requests against alone; what was wrong."""
    small = LoadSpec(
        target=side.address,
        model=model_name("simple", _PLAIN),
        pool=options.pool,
        seed=options.seed,
        connections=1,
        rate_per_s=SMALL_RATE_PER_S,
        seconds=options.seconds,
    )
    ratios: list[float] = []
    results: list[LoadResult] = []
    problem = ""
    for _ in range(options.rounds):
        alone = triton.verified_load(small)
        beside, large, rate, too_short = beside_large(triton, small, options)
        results += [alone, beside, large]
        problem = problem or too_short or first_problem(results)
        tails = [result.latency_ns["p99"] / 1e3 for result in (alone, beside)]
        ratios.append(tails[1] / tails[0])
        say(
            f"  {side.word}: p99 of small requests alone {tails[0]:.0f} us, beside "
            f"{rate:.0f} MB/s of 16 MB requests {tails[1]:.0f} us {problem}"
        )
    say(f"{side.word}: p99 of small requests {median(ratios):.2f}x {problem}")
    return ratios, problem


def beside_large(
    triton: Triton, small: LoadSpec, options: Options
) -> tuple[LoadResult, LoadResult, float, str]:
    """The small load while a 16 MB request is always in flight, the large one, its MB/s meanwhile.

    The text says so when the large load did not last as long as the small one.
    """
    large = LoadSpec(
        target=small.target,
        model=model_name("large", _PLAIN),
        workload="large",
        pool=LARGE_ONES,
        seed=options.seed,
        connections=1,
        in_flight=1,
        warmup_s=0.0,
        seconds=options.seconds + small.warmup_s + OVERLAP_S,
        sample_share=1.0,
    )
    triton.direct_replies(large)
    with ThreadPoolExecutor(1) as executor:
        background = executor.submit(triton.verified_load, large)
        await_execution(triton, large.model, background)
        rows, began_s = triton.executed(large.model)[0], time.monotonic()
        beside = triton.verified_load(small)
        rows, seconds = triton.executed(large.model)[0] - rows, time.monotonic() - began_s
        problem = "the 16 MB load ended before the small one" if background.done() else ""
        return beside, background.result(), rows * LARGE_BYTES / 1e6 / seconds, problem


def await_execution(triton: Triton, model: str, load: Future[LoadResult]) -> None:
    """Until Triton has executed something more of the model, or the load has ended."""
    rows = triton.executed(model)[0]
    end_s = time.monotonic() + BEGIN_TIMEOUT_S
    while triton.executed(model)[0] == rows and not load.done() and time.monotonic() < end_s:
        time.sleep(POLL_S)
