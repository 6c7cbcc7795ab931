"""`infersched profile`: how long batches of a model take on a Triton."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli.output import check_can_write, output_option, print_json, print_table

if TYPE_CHECKING:
    from scheduler.backends.catalog import ModelSpec
    from scheduler.config.profile import MemoryProfile, Profile
    from scheduler.profiling.inputs import RequestMaker
    from scheduler.profiling.measure import Plan, Server

SHAPE_HELP = "Dims of an input with variable ones, without the batch: NAME=16,3; repeatable."


def _shapes(_: Any, __: Any, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, dims = value.rpartition("=")
        try:
            shapes[name] = tuple(int(dim) for dim in dims.split(",") if dim)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"{value!r} is not of the form NAME=16,3")
    return shapes


def _sizes(_: Any, __: Any, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        sizes = tuple(sorted({int(size) for size in value.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 1,2,4") from None
    if sizes[0] < 1:
        raise click.BadParameter("batch sizes are at least 1")
    return sizes


@click.command()
@click.argument("model")
@click.option("--server", metavar="HOST:PORT", default="127.0.0.1:8001", show_default=True,
              help="The Triton, asked directly.")  # fmt: skip
@click.option("--version", default="", help="Of the model.  [default: its highest]")
@click.option("--inputs", type=click.Path(dir_okay=False, path_type=Path),
              help="Real inputs: an .npz archive or JSON, whose first dimension is rows; without "
              "it they are random.")  # fmt: skip
@click.option("--shape", "shapes", multiple=True, callback=_shapes, metavar="NAME=DIMS",
              help=SHAPE_HELP)  # fmt: skip
@click.option("--sizes", callback=_sizes, metavar="ROWS,...",
              help="Batch sizes.  [default: 1,2,3,4,6,8,... up to max_batch_size]")  # fmt: skip
@click.option("--repeats", type=click.IntRange(3, 100_000), default=30, show_default=True,
              help="Batches measured of each size.")  # fmt: skip
@click.option("--warm-up", type=click.IntRange(0, 10_000), default=3, show_default=True,
              help="Batches of each size before.")  # fmt: skip
@click.option("--in-flight", type=click.IntRange(1, 1024),
              help="Batches at once.  [default: one for each instance]")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Of random inputs."
)
@click.option("--memory", is_flag=True,
              help="Measure first how much device memory batches take.")  # fmt: skip
@click.option("--device", default="", metavar="GPU",
              help="With --memory: number or UUID of the GPU, where the model's instance_group "
              "does not tell it.")  # fmt: skip
@click.option("--metrics", default="", metavar="HOST:PORT",
              help="With --memory: the Triton's metrics port.  [default: port 8002 of a Triton of "
              "another host; of this host by NVML]")  # fmt: skip
@click.option("--reload", is_flag=True,
              help="With --memory: unload and load the model before, so that its allocators are "
              "empty; the Triton needs --model-control-mode=explicit.")  # fmt: skip
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path),
              help="Profile to write.  [default: MODEL-VERSION.profile.json]")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Picture to write: .svg or .png.")  # fmt: skip
@output_option
def profile(
    model: str,
    server: str,
    version: str,
    inputs: Path | None,
    shapes: dict[str, tuple[int, ...]],
    sizes: tuple[int, ...] | None,
    repeats: int,
    warm_up: int,
    in_flight: int | None,
    seed: int,
    memory: bool,
    device: str,
    metrics: str,
    reload: bool,
    save: Path | None,
    plot: Path | None,
    output: str,
) -> None:
    """Measure how long batches of MODEL take. Writes a profile of it.

    A model's `profile` key in the configuration names the file: the scheduler then knows its
    latency, with --memory also its need of device memory, before the first request. The Triton
    should have nothing else to do meanwhile.
    """
    from scheduler.config.profile import save_profile
    from scheduler.plots.pictures import save as save_picture
    from scheduler.profiling.inputs import InputError, RequestMaker, random_inputs, read_inputs
    from scheduler.profiling.measure import MeasureError, Plan, Server, default_sizes, measure
    from scheduler.profiling.plot import memory_svg, svg

    if not memory and (device or metrics or reload):
        raise click.UsageError("--device, --metrics and --reload are of --memory")
    _check_files(save, plot)
    plots: list[Path] = []
    triton = Server(server)
    try:
        spec = triton.model(model, version)
        arrays = read_inputs(inputs) if inputs else random_inputs(spec, shapes, seed)
        maker = RequestMaker(spec, arrays)
        rows_max = max(spec.max_batch_size, 1)
        chosen = sizes or default_sizes(rows_max)
        if chosen[-1] > rows_max:
            raise click.UsageError(
                f"--sizes {chosen[-1]} is above the model's max_batch_size {spec.max_batch_size}"
            )
        at_once = triton.in_flight_max(spec)
        _check_in_flight(in_flight, at_once)
        plan = Plan(chosen, repeats, warm_up, in_flight or min(at_once, repeats))
        need = _memory(triton, spec, maker, plan, (device, metrics, reload)) if memory else None
        if need is not None:
            plan = replace(plan, sizes=tuple(size.rows for size in need.sizes))
        with _progress(plan) as on_batch:
            measured = measure(triton, spec, maker, plan, on_batch)
        measured = measured.model_copy(update={"memory": need})
        path = save or Path(f"{spec.name.replace('/', '_')}-{spec.version}.profile.json")
        save_profile(measured, path)
        if plot is not None:
            save_picture(plot, svg(measured))
            plots = [plot]
            if need is not None:
                plots.append(plot.with_stem(f"{plot.stem}-memory"))
                save_picture(plots[1], memory_svg(measured, need))
    except (InputError, MeasureError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from error
    finally:
        triton.close()
    if output == "json":
        print_json(measured.model_dump(mode="json"))
    else:
        _print(measured)
        if need is not None:
            _print_memory(need)
    click.echo("written: " + ", ".join(map(str, [path, *plots])), err=True)


def _check_files(save: Path | None, plot: Path | None) -> None:
    from scheduler.plots.pictures import SUFFIXES

    if save is not None:
        check_can_write(save, "--save")
    if plot is not None:
        check_can_write(plot, "--plot", SUFFIXES)


def _check_in_flight(in_flight: int | None, at_once: int) -> None:
    if in_flight is not None and in_flight > at_once:
        raise click.UsageError(
            f"--in-flight {in_flight} is above the model's instances, {at_once}: batches would "
            "wait for each other, and that would count"
        )


def _memory(
    triton: Server,
    spec: ModelSpec,
    maker: RequestMaker,
    plan: Plan,
    asked: tuple[str, str, bool],
) -> MemoryProfile:
    """`asked` are device, metrics and reload. Raises MeasureError."""
    from scheduler.cli.profile_memory import watched_device
    from scheduler.profiling.memory import measure_memory

    device, metrics, reload = asked
    messages = {rows: maker.message(rows) for rows in plan.sizes}
    with watched_device(triton.address, spec, device, metrics) as watched:
        return measure_memory(triton, spec, messages, plan, watched, reload)


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[], None]]:
    """A bar on stderr, only on a terminal."""
    from scheduler.profiling.measure import total_batches

    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=total_batches(plan))
        yield lambda: bar.advance(task)


def _print(measured: Profile) -> None:
    from scheduler.profiling.measure import line_text

    fit = measured.fit
    one = len(measured.sizes) == 1
    rows = [
        (
            size.rows,
            size.batches,
            f"{size.median_ns / 1e6:.3f}",
            f"{size.p99_ns / 1e6:.3f}",
            "-" if one else f"{(fit.alpha_ns * size.rows + fit.beta_ns) / 1e6:.3f}",
            f"{size.median_ns / 1e6 / size.rows:.3f}",
            f"{size.rows * 1e9 / size.median_ns:.0f}",
        )
        for size in measured.sizes
    ]
    columns = ["ROWS", "BATCHES", "MEDIAN MS", "P99 MS", "LINE MS", "MS/ROW", "ROWS/S"]
    print_table(columns, rows)
    click.echo(
        f"\n{line_text(measured)}; rows/s are of one executor, {measured.in_flight} in flight"
    )


def _print_memory(need: MemoryProfile) -> None:
    mib = 2**20
    rows = [
        (
            size.rows,
            "moved by others" if size.moved else f"{size.need_bytes / mib:.1f}",
            f"{(need.base_bytes + need.bytes_per_row * size.rows) / mib:.1f}",
        )
        for size in need.sizes
    ]
    click.echo()
    print_table(["ROWS", "MEMORY MIB", "LINE MIB"], rows)
    instances = f", of each of {need.instances} instances" if need.instances > 1 else ""
    click.echo(
        f"\nneed(b) = {need.base_bytes / mib:.4g} MiB + {need.bytes_per_row / mib:.4g} MiB * b, "
        f"R2 {need.r_squared:.4f}{instances}; on {need.device} by {need.source}"
    )
    moved = [str(size.rows) for size in need.sizes if size.moved]
    if moved:
        click.echo(
            f"Other tenants moved memory at {', '.join(moved)} rows; these steps do not count."
        )
    if need.stopped:
        click.echo(f"Stopped {need.stopped}.")
