"""Batches that fit the GPU: the engine on a simulated device whose allocators keep their largest.

A model of 800 MiB and 64 MiB a row on a device of 16 GiB, offered more than it can do, for ten
simulated minutes. The worst of the seeds of:

* out-of-memory errors that reached clients while another tenant takes and frees memory;
* requests/s against the best fixed batch cap that a sweep finds, with the memory to itself;
* requests/s against the largest fixed cap that never ran out of memory beside the other tenant;
* the predicted need of a batch against what it really takes, after learning.

That is simulated time: nothing else on the machine changes a figure. What a real Triton shows
beside another tenant is in device_memory_real, instructions of the ledger in device_memory_cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from benchmarks import device_memory_cost, device_memory_real
from benchmarks.options import Options, say
from benchmarks.results import Figure
from scheduler.simulation.engine import (
    Device,
    EngineSettings,
    LearnedNeed,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario, engine, simulate

MIB = 1 << 20
TOTAL = 16 << 30
# As scheduler/memory counts it: 5 %.
HEADROOM = TOTAL // 20
BASE, PER_ROW = 800 * MIB, 64 * MIB
ROWS_MAX = 128
LATENCY = Latency(0.1, 10.0)
# More than the largest batch does: 128 rows in 22.8 ms.
OFFERED_PER_S = 7000.0
CAPS = (8, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Run:
    """What one run gave: requests answered a second, and what ran out of memory."""

    per_s: float
    replies: int
    errors: int
    failed: int
    need: LearnedNeed


def tenant(seed: int, minutes: float) -> tuple[tuple[float, int], ...]:
    """What another tenant wants to hold: most of the device at first, then now more, now less."""
    random = Random(seed)
    uses, at_ms = [(0.0, 13 << 30)], 0.0
    while at_ms < minutes * 60_000:
        at_ms += random.uniform(2_000, 20_000)
        uses.append((at_ms, random.choice([0, 2, 6, 10, 13, 14]) << 30))
    return tuple(uses)


def simulated(seed: int, minutes: float, uses: tuple[tuple[float, int], ...], cap: int = 0) -> Run:
    """With the ledger, or with a fixed `cap` and no knowledge of the device."""
    seconds = minutes * 60
    told = cap == 0
    model = ModelSetup(
        placements=(Placement(0, devices=(0,)),),
        classes=(RequestClass(objective_ms=float("inf")),),
        rows_max=cap or ROWS_MAX,
        load_aware=False,
        queue_requests_max=1000,
        base_bytes=BASE,
        bytes_per_row=PER_ROW,
    )
    settings = EngineSettings(
        models=(model,),
        devices=(Device(TOTAL, HEADROOM, 100.0 if told else 0.0, uses),),
        stop_ns=round(seconds * 1e9),
    )
    scenario = Scenario(
        models=(Model(LATENCY, 1000.0, Arrivals("poisson", OFFERED_PER_S)),),
        executors=1,
        seed=seed,
        warm_up_ms=0.0,
        requests=round(OFFERED_PER_S * seconds),
    )
    outcome = simulate(scenario, engine(settings))
    assert outcome.engine is not None
    counted = outcome.engine.classes[0][0]
    return Run(
        per_s=counted.in_time / seconds,
        replies=outcome.engine.failed_batches,
        errors=outcome.engine.memory_failures,
        failed=counted.failed,
        need=outcome.engine.memory[0],
    )


def run(options: Options) -> list[Figure]:
    return [
        *in_simulation(options),
        *device_memory_cost.run(options),
        *device_memory_real.run(options),
    ]


def in_simulation(options: Options) -> list[Figure]:
    """The worst of the seeds."""
    minutes = 0.1 if options.short else 10.0
    errors = replies = 0
    steady, beside, need_error = [], [], []
    for seed in range(options.seed, options.seed + (1 if options.short else 2)):
        uses = tenant(seed, minutes)
        ours = simulated(seed, minutes, uses)
        say(f"seed {seed}, other tenant: {ours}")
        errors, replies = errors + ours.errors + ours.failed, replies + ours.replies
        safe = 0.0
        for cap in CAPS:
            fixed = simulated(seed, minutes, uses, cap)
            say(
                f"seed {seed}, other tenant, cap {cap}: {fixed.per_s:.0f}/s, {fixed.replies} failed"
            )
            if fixed.replies:
                break
            safe = fixed.per_s
        beside.append(ours.per_s / safe)
        alone = simulated(seed, minutes, ())
        say(f"seed {seed}, alone: {alone}")
        steady.append(alone.per_s / max(simulated(seed, minutes, (), c).per_s for c in CAPS))
        for learned in (ours.need, alone.need):
            predicted = learned.base_bytes + learned.bytes_per_row * ROWS_MAX
            need_error.append(abs(predicted / (BASE + PER_ROW * ROWS_MAX) - 1) * 100)
    say(f"{replies} batches ran out of memory and were run again")
    return [
        Figure.of("device_memory_client_errors", errors),
        Figure.of("device_memory_part_of_best_cap", min(steady)),
        Figure.of("device_memory_ratio_to_safe_cap", min(beside)),
        Figure.of("device_memory_prediction_error", max(need_error)),
    ]
