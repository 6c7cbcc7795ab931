"""`infersched simulate`: the engine and other policies on a simulated load."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli.output import check_can_write, output_option, print_json, print_table

if TYPE_CHECKING:
    from scheduler.simulation.study import Plan, Point
    from scheduler.simulation.world import World

POLICIES = (
    "infersched",
    "static_default",
    "static_tuned",
    "static_timeout",
    "clockwork",
    "nexus",
    "shepherd",
    "symphony",
    "just_enough",
    "bentoml",
    "ray_serve",
)
COLUMNS = (
    "POLICY",
    "LOAD",
    "OFFERED/S",
    "IN TIME/S",
    "ATTAINMENT",
    "RANGE",
    "WORST MODEL",
    "MEAN BATCH",
    "P50 MS",
    "P99 MS",
)
LOADS = "0.25,0.5,0.75,0.9,1,1.1,1.25,1.5,2"


def _numbers(_: Any, option: click.Parameter, value: str | None) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        numbers = tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 0.5,1,2") from None
    if not all(0 < number <= 1e9 for number in numbers):
        raise click.BadParameter("loads and rates are above 0")
    return tuple(sorted(set(numbers)))


@click.command()
@click.argument("workload")
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES),
              help="Repeatable. static_tuned is Triton's batcher at the best of a grid of sizes "
                   "and delays, by goodput, which takes a while; static_timeout with queue "
                   "timeouts, too.  [default: infersched]")  # fmt: skip
@click.option("--load", "loads", callback=_numbers, default=LOADS, show_default=True,
              metavar="FACTOR,...", help="Multiples of the workload's rates.")  # fmt: skip
@click.option("--rate", "rates", callback=_numbers, metavar="PER_S,...",
              help="Requests/s over all models, instead of --load.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True,
              help="The seeds 1 to N; figures are medians.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63), help="One seed instead.")
@click.option("--requests", type=click.IntRange(100, 100_000_000), default=50_000,
              show_default=True, help="Counted in each run, after the warm-up.")  # fmt: skip
@click.option("--noise", type=click.FloatRange(0, 3),
              help="Deviation of the logarithm of execution times.")  # fmt: skip
@click.option("--goodput", is_flag=True, help="Also search the highest rate with 99 % in time.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Page (.html) or picture (.svg, .png) to write.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As --output json.")
@output_option
def simulate(
    workload: str,
    policies: tuple[str, ...],
    loads: tuple[float, ...],
    rates: tuple[float, ...],
    seeds: int,
    seed: int | None,
    requests: int,
    noise: float | None,
    goodput: bool,
    plot: Path | None,
    as_json: bool,
    output: str,
) -> None:
    """Simulate WORKLOAD: one of A, B, C, E, F, G, J, K, or a YAML file.

    The engine of the server runs under a virtual clock, beside policies it is compared with. At
    load 1 a named workload offers the goodput of just_enough, a file the rates it names:

    \b
      executors: 2
      models:
        - name: ranker
          latency: {alpha: 1ms, beta: 5ms}  # or {profile: FILE}, {table: [6ms, 7ms]}
          slo: 40ms
          arrivals: {kind: poisson, rate: 200}
        - name: embedder
          latency: {table: [4ms, 5ms, 6ms]}
          slo: 50ms
          arrivals: {kind: trace, file: requests.csv}  # first column: seconds
          # gamma: rate, shape; on_off: rate, on, off; series: rates, step
      faults:
        - {kind: down, start: 5s, end: 8s, executor: 0}
    """
    from scheduler.plots.pictures import SUFFIXES
    from scheduler.simulation.study import Plan, goodputs, notes, points, tune
    from scheduler.simulation.workload_file import RATE_MAX

    told = click.get_current_context().get_parameter_source
    if seed is not None and told("seeds") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--seed and --seeds exclude each other; leave one out")
    if rates and told("loads") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--rate and --load exclude each other; leave one out")
    if plot is not None:
        check_can_write(plot, "--plot", (".html", *SUFFIXES))
    world = _world(workload, noise)
    chosen = tuple(dict.fromkeys(policies)) or ("infersched",)
    if world.only_engine and chosen != ("infersched",):
        raise click.UsageError(
            f"reference policies know nothing of: {', '.join(world.only_engine)}"
        )
    factors = tuple(rate / world.per_s for rate in rates) or loads
    if max(factors) * world.per_s > RATE_MAX:
        raise click.UsageError(f"more than {RATE_MAX:,.0f} requests/s: too many to simulate")
    focus = min(factors, key=lambda factor: abs(factor - 1))
    numbers = (seed,) if seed is not None else tuple(range(1, seeds + 1))
    plan = Plan(chosen, factors, numbers, requests, focus)
    try:
        with _tuning():
            plan = tune(world, plan)
        with _progress(plan) as on_run:
            found = list(points(world, plan, on_run))
        best = goodputs(world, plan) if goodput else []
    except ValueError as error:
        raise click.UsageError(f"{workload}: {error}") from error
    rows = [row for point in found for row in _rows(point, world)]
    for note in notes(world, plan, found):
        click.echo(f"note: {note}", err=True)
    if plot is not None:
        _write(plot, world, plan, found, rows)
    if as_json or output == "json":
        print_json(_record(world, plan, found, best))
        return
    print_table(COLUMNS, rows)
    for line in _settings(plan):
        click.echo(line)
    for one in best:
        click.echo(
            f"goodput of {one['policy']}: {one['goodput_per_s']:.0f} requests/s "
            f"({one['lowest_per_s']:.0f} to {one['highest_per_s']:.0f})"
        )


def _record(
    world: World, plan: Plan, found: Sequence[Point], best: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    from scheduler.simulation.study import over_time

    return {
        "workload": world.name,
        "requests": plan.requests,
        "seeds": list(plan.seeds),
        "tuned": {name: of.records for name, of in plan.tuned.items()},
        "points": [point.record(world) for point in found],
        "goodput": best,
        "over_time": {"load": round(plan.focus, 4), "policies": over_time(world, plan, found)},
    }


def _world(workload: str, noise: float | None) -> World:
    from dataclasses import replace

    from scheduler.config.errors import ConfigError
    from scheduler.simulation.workloads import WORKLOADS
    from scheduler.simulation.world import from_file, named

    path = Path(workload)
    if workload in WORKLOADS:
        world = named(workload)
    elif path.suffix in (".yaml", ".yml") or os.path.exists(path):
        try:
            world = from_file(path)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(f"{problem}", err=True)
            raise click.exceptions.Exit(2) from error
    else:
        raise click.UsageError(
            f"no workload is called {workload}; there are {', '.join(WORKLOADS)}, and YAML files"
        )
    if world.per_s <= 0:
        raise click.UsageError(f"{workload}: no request ever arrives")
    if noise is None:
        return world
    at = world.at
    return replace(world, at=lambda factor: replace(at(factor), noise_sigma=noise))


@contextmanager
def _tuning() -> Iterator[None]:
    """A sign of life on stderr, only on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("tuning"):
        yield


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[], None]]:
    """A bar on stderr, only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=plan.runs)
        yield lambda: bar.advance(task)


def _rows(point: Point, world: World) -> list[list[str]]:
    """The point, and below it its classes and tenants."""
    rows = [_row(point, world)]
    for group in point.groups(world):
        row = [
            f"- {group.name}",
            f"{point.factor:.3g}",
            f"{point.offered_per_s_of(group):.0f}",
            f"{point.in_time_per_s_of(group):.0f}",
            *_attained(group.attainments),
        ]
        rows.append([*row, *[""] * (len(COLUMNS) - len(row))])
    return rows


def _settings(plan: Plan) -> list[str]:
    """What the tuned policies are set to."""
    return [f"{name} is {line}" for name, of in plan.tuned.items() for line in of.lines]


def _attained(spread: Sequence[float]) -> list[str]:
    """ATTAINMENT and RANGE; nothing may have been judged."""
    from statistics import median

    if not spread:
        return ["-", "-"]
    return [f"{median(spread):.4f}", f"{min(spread):.4f}-{max(spread):.4f}"]


def _row(point: Point, world: World) -> list[str]:
    record = point.record(world)
    latencies = record.get("latency_ms", {})
    worst = record["worst_model_attainment"]

    def ms(name: str) -> str:
        return f"{latencies[name]:.2f}" if name in latencies else ""

    return [
        point.policy,
        f"{point.factor:.3g}",
        f"{point.offered_per_s:.0f}",
        f"{point.in_time_per_s:.0f}",
        *_attained(point.attainments),
        "-" if worst is None else f"{worst:.4f}",
        f"{record['mean_batch']:.2f}",
        ms("p50"),
        ms("p99"),
    ]


def _write(
    path: Path, world: World, plan: Plan, found: Sequence[Point], rows: Sequence[Sequence[str]]
) -> None:
    from scheduler.plots.pictures import save
    from scheduler.simulation.plot import Chart, html, svg
    from scheduler.simulation.study import over_time

    against_load = {
        name: [(p.offered_per_s, p.in_time_per_s) for p in found if p.policy == name]
        for name in plan.policies
    }
    by_time = {
        name: [
            (step["from_s"], step["in_time"] / step["offered"]) for step in steps if step["offered"]
        ]
        for name, steps in over_time(world, plan, found).items()
    }
    charts = [
        Chart("In time against offered", "offered, requests/s", "in time/s", against_load,
              diagonal=True),
        Chart(f"In time over time, at load {plan.focus:.3g}", "s", "part", by_time, y_max=1.0),
    ]  # fmt: skip
    title = f"Workload {world.name}"
    rows = [*rows, *([line, *[""] * (len(COLUMNS) - 1)] for line in _settings(plan))]
    text = html(title, charts, COLUMNS, rows) if path.suffix.lower() == ".html" else svg(charts)
    try:
        save(path, text)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"written: {path}", err=True)
