"""Requests/s and CPU through the scheduler against straight to Triton with its own batcher.

One Triton, both ways in turn: rounds are interleaved and each ratio is of loads that ran one after
the other. Both sides choose their best configuration first, by short probes at the same load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from benchmarks.loading import LoadResult, Triton, first_problem
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.processes import process_tree
from benchmarks.results import Figure, rounded
from benchmarks.serving import (
    SCHEDULED,
    TRITON_BATCHING,
    Variant,
    model_name,
    running_scheduler,
    running_triton,
    scheduler_pids,
)

PROBE_S = 0.5
PROBES = 3  # of each variant
# Workload and requests in flight of each comparison.
LOADS = (("simple", 64), ("simple", 256), ("mixed", 64), ("mixed", 256))


@dataclass
class Side:
    """One way to the model: address, variants to choose from, processes whose CPU counts."""

    word: str
    address: str
    variants: tuple[Variant, ...]
    watch: dict[str, list[int]]


@dataclass
class Comparison:
    """All rounds of one load."""

    straight: list[LoadResult]
    scheduled: list[LoadResult]

    @property
    def ratios(self) -> list[float]:
        """Scheduled requests/s against straight ones, by round."""
        pairs = zip(self.scheduled, self.straight, strict=True)
        return [a.requests_per_s / b.requests_per_s for a, b in pairs]

    @property
    def ratio(self) -> float:
        """The median round."""
        return median(self.ratios)

    @property
    def problem(self) -> str:
        return first_problem(self.scheduled + self.straight)


def run(options: Options) -> list[Figure]:
    with (
        running_triton(dict.fromkeys(("simple", "mixed"), TRITON_BATCHING + SCHEDULED)) as (
            server,
            triton,
        ),
        running_scheduler(server.grpc_address) as scheduler,
    ):
        assert server.pid is not None
        triton_pids = {"triton": process_tree(server.pid)}
        straight = Side("straight", server.grpc_address, TRITON_BATCHING, triton_pids)
        watch = {**triton_pids, **scheduler_pids(scheduler)}
        scheduled = Side("scheduled", scheduler.address, SCHEDULED, watch)
        compared = {load: compare(triton, straight, scheduled, *load, options) for load in LOADS}
    return figures(compared, options)


def compare(
    triton: Triton, straight: Side, scheduled: Side, workload: str, in_flight: int, options: Options
) -> Comparison:
    """Probes both sides for their best variant, then measures them in turn."""
    base = LoadSpec(
        target="",
        workload=workload,
        pool=options.pool,
        seed=options.seed,
        connections=options.connections,
        in_flight=in_flight,
        seconds=options.seconds,
    )
    specs = [best_variant(triton, side, base) for side in (straight, scheduled)]
    comparison = Comparison([], [])
    for _ in range(options.rounds):
        for results, spec in zip((comparison.straight, comparison.scheduled), specs, strict=True):
            results.append(triton.verified_load(spec))
            say_result(f"{workload} {in_flight} {spec.model}", results[-1])
    say(f"{workload} {in_flight} in flight: {comparison.ratio:.2f}x {comparison.problem}")
    return comparison


def best_variant(triton: Triton, side: Side, base: LoadSpec) -> LoadSpec:
    """The load on the variant that answered the most requests, by the median of short probes.

    They take turns: the machine's speed swings by more than variants differ.
    """
    specs = [
        replace(
            base,
            target=side.address,
            model=model_name(base.workload, variant),
            watch=side.watch,
        )
        for variant in side.variants
    ]
    rates: list[list[float]] = [[] for _ in specs]
    for _ in range(PROBES):
        for spec, its_rates in zip(specs, rates, strict=True):
            probe = triton.verified_load(replace(spec, seconds=PROBE_S))
            its_rates.append(probe.requests_per_s)
            if probe.problem:
                say(f"  probe {spec.model}: {probe.problem}")
    medians = [median(its_rates) for its_rates in rates]
    for spec, rate in zip(specs, medians, strict=True):
        say(f"  probes {spec.model}: {rate:.0f} requests/s")
    return specs[medians.index(max(medians))]


def say_result(what: str, result: LoadResult) -> None:
    latency = result.latency_ns
    cpu = "  ".join(f"{name} {result.cpu_us(name):.1f}" for name in result.cpu_s)
    own = result.load_cpu_s / max(result.window["ok"], 1) * 1e6
    say(
        f"  {what}: {result.requests_per_s:.0f} requests/s  p50 {latency['p50'] / 1e3:.0f} "
        f"p99 {latency['p99'] / 1e3:.0f} us  CPU us/request: {cpu}  load {own:.1f} "
        f"{result.problem}"
    )


def figures(compared: dict[tuple[str, int], Comparison], options: Options) -> list[Figure]:
    at_64, at_256 = compared["simple", 64], compared["simple", 256]
    mixed = [compared["mixed", n].ratio / compared["simple", n].ratio for n in (64, 256)]
    pairs = list(zip(at_256.scheduled, at_256.straight, strict=True))
    cpu_part = median(
        with_us.cpu_us("triton", "data_plane", "control") / alone_us.cpu_us("triton")
        for with_us, alone_us in pairs
    )
    data_plane_us = median(with_us.cpu_us("data_plane") for with_us, _ in pairs)
    problem = first_problem(compared.values())
    return [
        ratio_figure("throughput_ratio_64", at_64, options),
        ratio_figure("throughput_ratio_256", at_256, options),
        # The worse of both loads.
        Figure.of("mixed_part_of_simple_ratio", min(mixed), problem),
        Figure.of("cpu_per_request_part_of_triton", cpu_part, at_256.problem),
        Figure.of("data_plane_cpu_per_request", data_plane_us, at_256.problem),
    ]


def ratio_figure(name: str, compared: Comparison, options: Options) -> Figure:
    return Figure.of(
        name,
        compared.ratio,
        compared.problem,
        by_round=rounded(compared.ratios),
        round_s=options.seconds,
    )
