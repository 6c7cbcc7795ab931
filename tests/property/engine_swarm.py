"""Random worlds for the engine, each from a seed: loads, classes, backends and what goes wrong.

    python -m tests.property.engine_swarm 17        # the world of seed 17, with what came of it
    python -m tests.property.engine_swarm 100 --to 200
    python -m tests.property.engine_swarm           # without end

Every truth is checked after every event. A broken invariant ends the process: the seed that is
running is printed first, and is all that is needed to run it again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from scheduler.simulation.engine import (
    FAILURES,
    FAULTS,
    BrokenTruth,
    Device,
    EngineSettings,
    Fault,
    Level,
    ModelSetup,
    Placement,
    RequestClass,
)
from scheduler.simulation.scenario import (
    Arrivals,
    Latency,
    Model,
    Outcome,
    Scenario,
    engine,
    simulate,
)

RUN_MS = 1500.0
REQUESTS_MAX = 2500
# Failures whose reason may be the backend or a request, and the others.
DOUBTS = ("unavailable", "reset")
CERTAIN = tuple(failure for failure in FAILURES if failure not in DOUBTS)


def random_arrivals(random: Random, rate_per_s: float) -> Arrivals:
    kind = random.choice(["poisson", "poisson", "gamma", "on_off", "series", "recorded"])
    if kind == "gamma":
        return Arrivals("gamma", rate_per_s, shape=random.choice([0.05, 0.3, 4.0]))
    if kind == "on_off":
        on_ms, off_ms = random.choice([1.0, 30.0, 200.0]), random.choice([5.0, 100.0])
        return Arrivals("on_off", rate_per_s, on_mean_ms=on_ms, off_mean_ms=off_ms)
    if kind == "series":
        rates = tuple(rate_per_s * random.choice([0, 0.3, 1, 5]) for _ in range(15))
        return Arrivals("series", rates_per_s=rates, step_ms=RUN_MS / 15)
    if kind == "recorded":
        # Many at one moment, over and over.
        moments = sorted(random.uniform(0, RUN_MS) for _ in range(random.randint(1, 20)))
        together = max(1, int(rate_per_s * RUN_MS / 1000 / len(moments)))
        return Arrivals("recorded", times_ms=tuple(at for at in moments for _ in range(together)))
    return Arrivals("poisson", rate_per_s)


def random_latency(random: Random) -> Latency:
    if random.random() < 0.2:
        return Latency(table_ms=tuple(random.uniform(0.5, 20) for _ in range(5)))
    return Latency(random.choice([0.01, 0.2, 1.0, 5.0]), random.choice([0.0, 0.5, 5.0, 18.0]))


def random_class(random: Random, levels: int, tenants: int, rows_max: int) -> RequestClass:
    return RequestClass(
        share=random.choice([0.0, 0.3, 1.0]) + 0.01,
        priority=random.randint(0, levels + 1),
        objective_ms=random.choice([None, None, 1.0, 10.0, 100.0, float("inf")]),
        tenant=random.randrange(tenants + 1),
        rows=random.choice([1, 1, 1, 2, min(3 * rows_max + 1, 200)]),
        signatures=random.choice([1, 1, 3, 40]),
    )


def random_setup(random: Random, backends: int, groups: list[int | None]) -> ModelSetup:
    held = random.sample(range(backends), random.randint(1, backends))
    rows_max = random.choice([1, 4, 16, 64])
    levels = random.choice([1, 1, 2, 5])
    sizes = tuple(size for size in (2, 4, 8, 16) if size <= rows_max)
    bounded = random.random() < 0.3
    # Drawn apart: seeds keep the worlds that they had before.
    parts = Random(f"{held} {rows_max} {levels}")
    return ModelSetup(
        placements=tuple(
            Placement(b, random.choice([1, 1, 2, 4]), executor_group=groups[b]) for b in held
        ),
        classes=tuple(
            random_class(random, levels, 3, rows_max) for _ in range(random.randint(1, 4))
        ),
        rows_max=rows_max,
        slo_ms=random.choice([0.0, 0.0, 25.0, 200.0]),
        load_aware=random.random() < 0.7,
        attainment=random.choice([0.9, 0.99, 0.999]),
        value=random.choice([0.0, 1.0, 1.0, 0.1, 10.0]),
        aging_ms=random.choice([0.0, 20.0, 500.0]),
        merge=random.random() < 0.9,
        idempotent=random.random() < 0.6,
        cancellable=random.random() < 0.3,
        priority_levels=levels,
        default_priority=random.randint(1, levels),
        levels=tuple(
            Level(random.choice([0.0, 50.0]), random.random() < 0.2, parts.choice([0.0, 0.5, 0.9]))
            for _ in range(random.randint(0, levels))
        ),
        staged_batches_max=random.randint(0, 3),
        preferred_rows=sizes[-1:] if random.random() < 0.3 else (),
        mandatory_rows=sizes if random.random() < 0.2 else (),
        queue_delay_ms=random.choice([0.0, 0.0, 2.0, 30.0]),
        queue_age_ms=random.choice([0.0, 0.0, 15.0]),
        queue_requests_max=random.choice([1, 20]) if bounded else 10_000,
        queue_bytes_max=random.choice([1, 50]) if bounded else 1 << 30,
    )


def random_fault(random: Random, backends: int, models: int) -> Fault:
    kind = random.choice(FAULTS)
    from_ms = random.uniform(0, RUN_MS)
    factor = random.choice([0.05, 0.5, 1.0])
    if kind == "slow":
        factor = random.choice([0.1, 3.0, 100.0])
    return Fault(
        kind,
        from_ms=from_ms,
        until_ms=from_ms + random.choice([0.0, 1.0, 30.0, 400.0]),
        backend=random.choice([None, *range(backends)]),
        model=random.randrange(models),
        factor=factor,
        shift_ms=random.choice([-4000.0, -50.0, -0.001, 0.001, 50.0, 5000.0]),
        failure=random.choice(CERTAIN),
        code=random.randint(1, 16),
    )


def random_faults(random: Random, backends: int, models: int) -> tuple[Fault, ...]:
    faults = [random_fault(random, backends, models) for _ in range(random.choice([0, 1, 3, 12]))]
    if random.random() < 0.2:
        flapping, period_ms = random.randrange(backends), random.choice([1.0, 10.0, 60.0])
        failure = random.choice(FAILURES[:2])
        for i in range(30):
            at = i * period_ms
            faults.append(Fault("down", at, at + period_ms / 2, flapping, failure=failure))
    return tuple(faults)


def with_doubts(seed: int, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """In a fifth of the worlds some are replaced by those in doubt."""
    # Drawn apart: other seeds keep the worlds that they had before.
    random = Random(f"doubt {seed}")
    if random.random() < 0.8:
        return faults
    return tuple(
        replace(fault, failure=random.choice((fault.failure, *DOUBTS))) for fault in faults
    )


def random_devices(random: Random, count: int) -> tuple[Device, ...]:
    """GPUs of 1 GiB, with other tenants that come and go."""
    total = 1 << 30
    devices = []
    for _ in range(count):
        moments = sorted(random.uniform(0, RUN_MS) for _ in range(random.choice([0, 3, 20])))
        wanted = [random.randint(0, 4) * (total // 4) for _ in moments]
        poll_ms = random.choice([0.0, 5.0, 20.0, 300.0])
        uses = tuple(zip(moments, wanted, strict=True))
        devices.append(Device(total, random.choice([0, total // 20]), poll_ms, uses))
    return tuple(devices)


def on_devices(
    random: Random, spread: Random, setup: ModelSetup, devices: int, more: int
) -> ModelSetup:
    """The backends are spread over the devices; instances of some, over these and more."""

    def of(placement: Placement) -> tuple[int, ...]:
        first = placement.backend % devices
        others = [d for d in range(devices + more) if d != first]
        return (first, *spread.sample(others, spread.randint(0, min(len(others), 2))))

    placements = (replace(p, devices=of(p)) for p in setup.placements)
    # Of some models the rows differ: whose come first is chance.
    sizes = random.choice([(0,), (0,), (1, 4), (1, 3, 20)])
    classes = tuple(replace(kind, row_bytes=random.choice(sizes)) for kind in setup.classes)
    return replace(
        setup,
        placements=tuple(placements),
        classes=classes,
        base_bytes=random.choice([0, 50 << 20]),
        bytes_per_row=random.choice([0, 1, 4, 30]) << 20,
    )


def random_world(seed: int) -> tuple[Scenario, EngineSettings]:
    """The scenario and the settings of a seed."""
    random = Random(seed)
    backends = random.choice([1, 1, 2, 4])
    count = random.choice([1, 1, 2, 5])
    # Each backend is one executor for all its models, or every model has its own there.
    groups = [random.choice([None, b]) for b in range(backends)]
    rate_per_s = random.choice([30.0, 300.0, 1500.0])
    models = []
    for _ in range(count):
        arrivals = random_arrivals(random, rate_per_s / count)
        models.append(Model(random_latency(random), random.choice([3.0, 25.0, 300.0]), arrivals))
    setups = [random_setup(random, backends, groups) for _ in range(count)]
    settings = EngineSettings(
        models=tuple(setups),
        tenants=tuple(random.choice([0.5, 1.0, 8.0]) for _ in range(random.randint(0, 5))),
        speeds=tuple(random.choice([0.3, 1.0, 2.0]) for _ in range(random.randint(0, backends))),
        drift_per_s=random.choice([0.0, 0.0, 0.02]),
        wire_ms=random.choice([0.0, 0.0, 0.2, 4.0]),
        faults=with_doubts(seed, random_faults(random, backends, count)),
        check_truths=True,
    )
    memory = Random(f"memory {seed}")
    if memory.random() < 0.5:
        devices = random_devices(memory, memory.choice([1, 1, 2]))
        # Drawn apart: seeds keep the worlds that they had before.
        spread = Random(f"spread {seed}")
        more = spread.choice([0, 0, 1, 2])
        setups = [on_devices(memory, spread, setup, len(devices), more) for setup in setups]
        devices += random_devices(spread, more)
        settings = replace(settings, models=tuple(setups), devices=devices)
    scenario = Scenario(
        models,
        executors=backends,
        noise_sigma=random.choice([0.0, 0.1, 1.0]),
        seed=seed,
        warm_up_ms=0,
        requests=min(REQUESTS_MAX, max(1, int(rate_per_s * RUN_MS / 1000))),
    )
    return scenario, settings


def run(seed: int) -> Outcome:
    """Raises BrokenTruth; a broken invariant ends the process."""
    scenario, settings = random_world(seed)
    outcome = simulate(scenario, engine(settings))
    assert outcome.engine is not None
    made_up = any(fault.failure == "out_of_memory" for fault in settings.faults)
    if outcome.engine.memory_failures_fitting and not made_up:
        raise BrokenTruth("what fits a device alone is not refused for its memory")
    return outcome


def show(seed: int) -> None:
    scenario, settings = random_world(seed)
    print(replace(scenario, models=[]))
    for model, setup in zip(scenario.models, settings.models, strict=True):
        print(model, setup, sep="\n  ")
    print(*settings.faults, sep="\n")


def replay(seed: int) -> str:
    """The command that runs the world of a seed again."""
    return f"python -m tests.property.engine_swarm {seed}"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: all held, 1: a truth was broken; an invariant ends the process by SIGABRT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seed", nargs="?", type=int, help="default: from 0 without end")
    parser.add_argument("--to", type=int, help="the seeds up to this one, without it")
    parser.add_argument("--seconds", type=float, help="as many seeds as that time allows")
    options = parser.parse_args(arguments)
    many = options.seed is None or options.to is not None or options.seconds is not None
    first = options.seed or 0
    seeds: Iterator[int] = itertools.count(first)
    if options.to is not None or not many:
        seeds = iter(range(first, options.to if many else first + 1))
    until = time.monotonic() + (math.inf if options.seconds is None else options.seconds)
    for seed in seeds:
        if time.monotonic() > until:
            break
        if not many:
            show(seed)
        print(seed, flush=True)
        try:
            outcome = run(seed)
        except BrokenTruth as broken:
            print(f"broken: {broken}; again by: {replay(seed)}", file=sys.stderr)
            return 1
        if not many:
            print(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
