"""Requests with an objective on a real Triton: through the scheduler, and by Triton's own batcher.

A python model sleeps 5.072 + 1.053 * rows ms on four instances; a request is in time when it is
answered OK within 25 ms of its intended start. Goodput is the highest offered rate at which 99 %
of all requests are; refused ones are misses. The scheduler is told the objective and nothing else.
What Triton's batcher can do is the best of a grid of its settings. The simulator runs the same
engine on latencies that were measured here before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from statistics import NormalDist, median

from benchmarks import slo_shared, slo_stalls
from benchmarks.loading import first_problem
from benchmarks.options import SLO_PARTS, Options, say
from benchmarks.results import Figure
from benchmarks.slo_compared import Way, against_the_best, compared, in_time_per_s
from benchmarks.slo_goodput import LEAST_PER_S, Contender, Search, compare, near_the_best
from benchmarks.slo_servers import (
    SETTLED_S,
    Batcher,
    Measured,
    Offered,
    Sleeper,
    TunableTriton,
    offer,
    scheduler_before,
    tunable_triton,
)
from scheduler.profiling.inputs import RequestMaker, random_inputs
from scheduler.profiling.measure import Plan, Server, measure
from scheduler.simulation.engine import EngineSettings, ModelSetup, Placement
from scheduler.simulation.goodput import search
from scheduler.simulation.scenario import (
    Arrivals,
    Latency,
    Model,
    Outcome,
    Scenario,
    engine,
    simulate,
)

# Requests/s of Triton's: a ratio to less would be one to nothing.
LEAST_RATE = 1.0
MODEL = Sleeper("sleeper", 1.053, 5.072, objective_ms=25.0, instances=4)
SCHEDULED, BATCHED = "scheduled", "batched"
# Of the model, and what the scheduler is told of it.
ROWS_MAX, PRIORITY_LEVELS = 64, 2
TOP_SHARE = 0.3
SWEEP = (0.2, 0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
PREDICTED_AT = (0.5, 0.8, 0.9, 1.0, 1.2)
PROFILED_ROWS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)

AS_IT_COMES = Batcher()
# A time-out must leave room for the batch: with rows up to n, objective - l(n). The first is the
# best where it was measured: what is worse than the best so far takes one load.
GRID = (
    Batcher(64, 4.0, preferred=12),
    *(
        Batcher(rows, delay_ms=delay, timeout_ms=timeout)
        for rows in (8, 12, 64)
        for delay in (0.0, 2.0)
        for timeout in (0.0, MODEL.objective_ms - MODEL.holds_ms(min(rows, 14)))
    ),
    Batcher(64, 2.0, preferred=8),
    Batcher(14),
    Batcher(10),
)
TIMEOUTS = tuple(
    Batcher(rows, timeout_ms=timeout) for rows in (8, 12, 16) for timeout in (3.0, 6.0, 9.0, 12.0)
)
QUEUE_SIZES = tuple(Batcher(queue_max=size) for size in (32, 64, 128, 512))

# Of goodput: to find what is worth comparing, and to compare.
ROUGH = Search(seconds=3.0, resolution=1.04)
FINE = Search(seconds=10.0, resolution=1.0075)
HASTY = Search(seconds=0.8, resolution=1.04, loads_max=2)


@dataclass(frozen=True)
class Extent:
    """How much of everything is tried."""

    grid: Sequence[Batcher] = GRID
    timeouts: Sequence[Batcher] = TIMEOUTS
    queue_sizes: Sequence[Batcher] = QUEUE_SIZES
    sweep: Sequence[float] = SWEEP
    predicted_at: Sequence[float] = PREDICTED_AT
    profile_repeats: int = 60
    simulated_requests: int = 60_000
    rough: Search = ROUGH
    fine: Search = FINE
    rounds: int = 5
    rates_part: float = 1.0  # of what the simulator predicts


SHORT = Extent(
    grid=GRID[1:2],
    timeouts=TIMEOUTS[4:5],
    queue_sizes=QUEUE_SIZES[:1],
    sweep=(0.2,),
    predicted_at=(0.5,),
    profile_repeats=3,
    simulated_requests=5_000,
    rough=HASTY,
    fine=HASTY,
    rounds=1,
    rates_part=0.1,
)


def run(options: Options) -> list[Figure]:
    parts = options.parts or SLO_PARTS
    if options.short:
        options = replace(options, seconds=min(options.seconds, 0.8))
    figures: list[Figure] = []
    if set(parts) - {"two"}:
        figures += one_model(options, parts)
    if "two" in parts:
        figures += slo_shared.run(options)
    return figures


def one_model(options: Options, parts: Sequence[str]) -> list[Figure]:
    extent = SHORT if options.short else Extent(rounds=max(options.rounds, 5))
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="infersched-slo-") as directory:
        repository = Path(directory) / "models"
        for name in (SCHEDULED, BATCHED):
            MODEL.write(repository, name)
        with tunable_triton(repository) as triton:
            triton.load(SCHEDULED, None)
            triton.load(BATCHED, AS_IT_COMES)
            simulated = Simulated(measured_latency(triton, extent), extent)
            say(f"the simulator predicts {simulated.goodput_per_s:.0f} requests/s")
            config = {"models": {SCHEDULED: {"slo": f"{MODEL.objective_ms:g}ms",
                                             "priority_levels": PRIORITY_LEVELS}}}  # fmt: skip
            with scheduler_before(triton, config) as address:
                capacity = simulated.goodput_per_s * extent.rates_part
                bench = Bench(triton, address, capacity, extent, options)
                if "prediction" in parts:
                    figures += predictions(bench, simulated)
                if "goodput" in parts:
                    figures += goodputs(bench)
                if "overload" in parts:
                    figures += overload(bench)
                if "stalls" in parts:
                    figures += stalled(bench)
                if "sweep" in parts:
                    sweep(bench)
    return figures


@dataclass
class Bench:
    """The two ways to one Triton, and the rate that loads are multiples of."""

    triton: TunableTriton
    scheduler: str
    capacity_per_s: float
    extent: Extent
    options: Options
    _batcher: Batcher | None = None

    def scheduled(
        self, rate_per_s: float, turn: int = 0, seconds: float = 0.0, warm_up_s: float = 1.5
    ) -> Measured:
        """`seconds`: 0 is what the options say."""
        offered = Offered(SCHEDULED, rate_per_s, MODEL.objective_ms, warm_up_s=warm_up_s)
        return self._load(self.scheduler, offered, turn, seconds)

    def batched_by(
        self, batcher: Batcher, rate_per_s: float, turn: int = 0, seconds: float = 0.0
    ) -> Measured:
        self.set_batcher(batcher)
        offered = Offered(BATCHED, rate_per_s, MODEL.objective_ms)
        return self._load(self.triton.address, offered, turn, seconds)

    def _load(self, target: str, offered: Offered, turn: int, seconds: float) -> Measured:
        options = replace(self.options, seconds=seconds or self.options.seconds)
        return offer(self.triton, target, [offered], options, turn)[0]

    def set_batcher(self, batcher: Batcher) -> None:
        if self._batcher != batcher:
            self.triton.load(BATCHED, batcher)
        self._batcher = batcher

    def contender(self, batcher: Batcher) -> Contender:
        def load(rate_per_s: float, turn: int, seconds: float) -> Measured:
            return self.batched_by(batcher, rate_per_s, turn, seconds)

        return Contender(f"Triton's batcher ({batcher})", load)


# -- the simulator's prediction --------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of the model before any load: l(b) as measured, and its noise."""

    latency: Latency
    noise_sigma: float


def measured_latency(triton: TunableTriton, extent: Extent) -> Known:
    """As `infersched profile` measures it, overheads of Triton, machine and wire included."""
    server = Server(triton.address)
    try:
        spec = server.model(SCHEDULED, "")
        maker = RequestMaker(spec, random_inputs(spec, {}, 1))
        plan = Plan(PROFILED_ROWS, extent.profile_repeats, 3, MODEL.instances)
        profile = measure(server, spec, maker, plan)
    finally:
        server.close()
    medians = {size.rows: size.median_ns / 1e6 for size in profile.sizes}
    sigma = noise_sigma([size.p99_ns / size.median_ns for size in profile.sizes])
    fit = profile.fit
    say(
        f"l(b) = {fit.alpha_ns / 1e6:.3f} b + {fit.beta_ns / 1e6:.3f} ms, R2 {fit.r_squared:.4f}, "
        f"noise {sigma:.1%}; slept are {MODEL.alpha_ms} b + {MODEL.beta_ms} ms"
    )
    table = tuple(interpolated(medians, b) for b in range(1, max(medians) + 1))
    return Known(Latency(table_ms=table), sigma)


def noise_sigma(p99_ratios: Sequence[float]) -> float:
    """The deviation of a lognormal factor whose 99 % quantile is the usual one of these."""
    return log(median(p99_ratios)) / NormalDist().inv_cdf(0.99)


def interpolated(known: dict[int, float], rows: int) -> float:
    """Between the neighbours of a size that was not measured."""
    low, high = max(b for b in known if b <= rows), min(b for b in known if b >= rows)
    if low == high:
        return known[low]
    return known[low] + (known[high] - known[low]) * (rows - low) / (high - low)


class Simulated:
    """The engine under the simulator's clock, placed and configured as it is here."""

    def __init__(self, known: Known, extent: Extent) -> None:
        self._known = known
        self._requests = extent.simulated_requests
        setup = ModelSetup(
            placements=(Placement(0, MODEL.instances),),
            rows_max=ROWS_MAX,
            slo_ms=MODEL.objective_ms,
            priority_levels=PRIORITY_LEVELS,
            default_priority=(PRIORITY_LEVELS + 1) // 2,
        )
        self._policy = engine(EngineSettings(models=(setup,)))
        top = 2 * MODEL.instances * 16 / MODEL.holds_ms(16) * 1000
        found = search(self._scenario, self._policy, from_per_s=top, to_per_s=LEAST_PER_S)
        self.goodput_per_s = found.per_s

    def at(self, rate_per_s: float) -> Outcome:
        return simulate(self._scenario(rate_per_s), self._policy)

    def _scenario(self, rate_per_s: float) -> Scenario:
        known = self._known
        model = Model(known.latency, MODEL.objective_ms, Arrivals(rate_per_s=rate_per_s))
        return Scenario([model], 1, noise_sigma=known.noise_sigma, requests=self._requests)


def predictions(bench: Bench, simulated: Simulated) -> list[Figure]:
    """Real runs against simulated ones, interleaved; the worst of the rates counts."""
    rates = [part * bench.capacity_per_s for part in bench.extent.predicted_at]
    loads: dict[float, list[Measured]] = {rate: [] for rate in rates}
    for turn in range(bench.extent.rounds):
        for rate in rates:
            loads[rate].append(bench.scheduled(rate, turn, warm_up_s=SETTLED_S))
        say(f"  round {turn + 1} of {bench.extent.rounds}")
    points, parts = 0.0, 0.0
    for rate in rates:
        outcome = simulated.at(rate)
        attained = median(load.attainment for load in loads[rate])
        batch = median(load.mean_batch for load in loads[rate])
        say(
            f"  {rate:6.0f}/s real {attained:.4f} in time, batch {batch:.2f}; simulated "
            f"{outcome.attainment:.4f}, {outcome.mean_batch:.2f}"
        )
        points = max(points, abs(attained - outcome.attainment) * 100)
        parts = max(parts, abs(batch / outcome.mean_batch - 1) * 100)
    problem = first_problem([load for rate in rates for load in loads[rate]])
    return [
        Figure.of("slo_prediction_attainment_error", points, problem),
        Figure.of("slo_prediction_batch_error", parts, problem),
    ]


# -- goodput and overload --------------------------------------------------------------------------


def goodputs(bench: Bench) -> list[Figure]:
    """Ours against Triton's batcher as it comes, and at the best of the grid."""
    rough, fine, top_per_s = bench.extent.rough, bench.extent.fine, bench.capacity_per_s
    ours = Contender("the scheduler", bench.scheduled, top_per_s)
    default = bench.contender(AS_IT_COMES)
    default.about_per_s = default.search(rough, top_per_s)
    say(f"Triton's batcher as it comes: about {default.about_per_s:.0f}/s; the grid:")
    grid = [bench.contender(batcher) for batcher in bench.extent.grid if batcher != AS_IT_COMES]
    near = near_the_best(grid, default.about_per_s, top_per_s, rough)
    say("goodput:")
    compare([ours, default, *near], bench.extent.rounds, fine)
    best = max((default, *near), key=lambda contender: contender.goodput_per_s)
    # A fault of the one that comes as it is makes nothing of the others.
    return [
        goodput_ratio("slo_goodput_ratio_default", ours, default, "as it comes", [default]),
        goodput_ratio(
            "slo_goodput_ratio_grid", ours, best, f"the best of {len(grid) + 1} settings",
            [best, *grid],
        ),
    ]  # fmt: skip


def goodput_ratio(
    figure: str, ours: Contender, theirs: Contender, more: str, searched: Sequence[Contender]
) -> Figure:
    """Ours against `theirs`; it rests on all that were `searched` to find them."""
    ways = Way(ours.name, ours.rates_per_s), Way(theirs.name, theirs.rates_per_s, more)
    return compared(figure, *ways, LEAST_RATE, first_problem([ours, *searched]), "/s")


def overload(bench: Bench) -> list[Figure]:
    """In-time requests/s at twice the goodput load."""
    rate = 2 * bench.capacity_per_s
    grids = {"timeout": bench.extent.timeouts, "queue_size": bench.extent.queue_sizes}
    say(f"overload, {rate:.0f} requests/s are offered:")
    ours, best, problem = against_the_best(
        lambda turn: bench.scheduled(rate, turn),
        lambda batcher, turn: bench.batched_by(batcher, rate, turn),
        grids,
        bench.extent.rounds,
        in_time_per_s,
    )
    return [
        compared(
            f"slo_overload_ratio_{kind}",
            Way("in time, the scheduler", [load.in_time_per_s for load in ours]),
            Way(f"best of {len(grids[kind])} settings of Triton's batcher ({batcher})",
                [load.in_time_per_s for load in loads]),
            LEAST_RATE,
            problem,
            "/s",
        )
        for kind, (batcher, loads) in best.items()
    ]  # fmt: skip


def stalled(bench: Bench) -> list[Figure]:
    """In time while Triton's host stalls now and then, and once it is over."""
    rate = slo_stalls.LOAD_PART * bench.capacity_per_s

    say(f"stalls of the host, {rate:.0f} requests/s are offered:")
    return slo_stalls.figures(
        bench.triton.process_group,
        lambda turn: bench.scheduled(rate, turn),
        lambda batcher, turn: bench.batched_by(batcher, rate, turn),
        [AS_IT_COMES, *bench.extent.timeouts],
        bench.extent.rounds,
    )


# -- the sweep, for the reader ---------------------------------------------------------------------


def sweep(bench: Bench) -> None:
    """Offered rates against attainment and latency by priority, both ways."""
    plain = replace(AS_IT_COMES, priorities=True)
    timeout = Batcher(12, timeout_ms=9.0, priorities=True)
    ways = (
        ("scheduler", bench.scheduler, SCHEDULED, None),
        ("triton as it comes", bench.triton.address, BATCHED, plain),
        ("triton, time-out", bench.triton.address, BATCHED, timeout),
    )
    say("load, in time/s, attainment, p50 and p99 in ms by priority (30 % have the first)")
    for part in bench.extent.sweep:
        for name, target, model, batcher in ways:
            if batcher is not None:
                bench.set_batcher(batcher)
            rate = part * bench.capacity_per_s
            classes = [
                Offered(model, rate * share, MODEL.objective_ms, f"priority{level}")
                for level, share in ((1, TOP_SHARE), (2, 1 - TOP_SHARE))
            ]
            loads = offer(bench.triton, target, classes, bench.options)
            cells = "  ".join(
                f"{load.attainment:6.1%} {load.p50_ms:6.1f} {load.p99_ms:7.1f}" for load in loads
            )
            total = sum(load.in_time_per_s for load in loads)
            say(f"  {part:3.1f}x {name:20} {total:6.0f}/s  {cells} {first_problem(loads)}")
