"""`infersched models`: the catalog of a running scheduler."""

from __future__ import annotations

from collections.abc import Mapping

import click

from scheduler.cli.client import TIMEOUT_S, control_option, control_stub
from scheduler.cli.output import (
    message_record,
    output_option,
    print_json,
    print_rows,
    print_table,
)
from scheduler.config.units import format_duration
from scheduler.v1 import control_pb2 as pb
from scheduler.v1 import dataplane_pb2

COLUMNS = {
    "name": "MODEL",
    "version": "VERSION",
    "ready": "READY",
    "rows_max": "MAX ROWS",
    "merging": "MERGING",
    "backends": "BACKENDS",
    "completed": "COMPLETED",
    "not_completed": "NOT COMPLETED",
    "rows_per_batch": "ROWS/BATCH",
    "in_time": "IN TIME",
    "latency": "L(B) MS",
    "target": "B*",
}

# Where models are loaded on demand.
RESIDENCY_COLUMNS = {"residency": "RESIDENCY", "weight": "WEIGHT", "last_use": "LAST USE"}


@click.group()
def models() -> None:
    """The models of a running scheduler."""


@models.command("list")
@control_option
@output_option
def list_models(control_address: str, output: str) -> None:
    """List the model versions, their backends and what was done for them."""
    with control_stub(control_address) as stub:
        answer = stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
    if output == "json":
        print_json([message_record(model) for model in answer.models])
        return
    on_demand = any(model.HasField("residency") for model in answer.models)
    columns = {**COLUMNS, **RESIDENCY_COLUMNS} if on_demand else COLUMNS
    print_rows(output, columns, [_row(model) for model in answer.models])


@models.command()
@click.argument("name")
@control_option
@output_option
def describe(name: str, control_address: str, output: str) -> None:
    """Show what was learned of a model: latency by batch size, margin, classes in time."""
    with control_stub(control_address) as stub:
        answer = stub.ListModels(pb.ListModelsRequest(name=name), timeout=TIMEOUT_S)
    if output == "json":
        print_json([message_record(model) for model in answer.models])
        return
    for model in answer.models:
        _describe(model)


def _describe(model: pb.ModelStatus) -> None:
    if not model.version:
        print_table(["MODEL", model.name], _residency_rows(model))
        return
    batching = model.batching
    mode = (
        "triton"
        if batching.HasField("triton")
        else ("fixed_delay" if batching.fixed_delay else "load_aware")
    )
    print_table(
        ["MODEL", model.name],
        [
            ("version", model.version),
            ("batching", mode),
            ("largest batch", _rows(batching.rows_max)),
            ("slo", format_duration(batching.slo_ns) if batching.slo_ns else "none"),
            ("attainment wanted", f"{batching.attainment:.2%}"),
            *_residency_rows(model),
            *(("problem", text) for text in model.problems),
        ],
    )
    rows = [(o.priority, o.total, o.good, _part(o.good, o.total)) for o in
            model.requests.objectives]  # fmt: skip
    if rows:
        print_table(["PRIORITY", "REQUESTS", "IN TIME", "PART"], rows)
    for placement in model.placements:
        _describe_placement(placement, _unpredicted(batching))
    for memory in model.memory:
        _describe_memory(memory)


def _unpredicted(batching: dataplane_pb2.Batching) -> str:
    """Why nothing is learned of how long its batches take; empty where it is."""
    if batching.HasField("triton"):
        return "batching is as Triton's"
    if batching.fixed_delay:
        return "batching is fixed_delay"
    return "requests go to the backend as they come" if batching.direct_max else ""


def _describe_placement(placement: pb.ModelPlacement, unpredicted: str) -> None:
    learned = placement.latency
    shared = f", executor {placement.executor_group}" if placement.executor_group else ""
    instances = ("instances", f"{placement.instances}{shared}")
    if unpredicted:
        rows = [instances, ("latency", f"not predicted: {unpredicted}")]
        print_table(["BACKEND", placement.backend_address], rows)
        return
    print_table(
        ["BACKEND", placement.backend_address],
        [
            instances,
            ("batches observed", learned.observations),
            ("l(b)", _line(learned)),
            ("margin", f"{learned.margin:.3f}, exceeded by {learned.beyond_margin:.2%}"),
            ("mean error", f"{learned.error_mean:+.1%}"),
            ("b* at present", learned.rows_target or "-"),
            ("requests/s", f"{learned.rate_per_s:.1f}"),
            ("times ignored", _ignored(learned.ignored)),
        ],
    )
    sizes = [(s.rows, s.batches, f"{s.backend_ns / s.batches / 1e6:.3f}") for s in learned.sizes
             if s.batches]  # fmt: skip
    if sizes:
        print_table(["ROWS", "BATCHES", "EXPECTED MS"], sizes)


def _describe_memory(memory: pb.ModelMemory) -> None:
    need = memory.need
    largest = _rows(need.rows_high) if need.rows_high else "none yet"
    limit = f"{_rows(need.rows_limit)}, limited by device memory" if need.rows_limit else "none"
    print_table(
        ["DEVICE", memory.device],
        [
            ("memory of a batch", _need_line(need)),
            ("mean error", f"{need.error:.1%} of {need.samples} steps" if need.samples else "-"),
            ("largest batch so far", largest),
            ("limit now", limit),
            ("cut by failures to", _rows(need.rows_cap) if need.rows_cap else "-"),
            ("out-of-memory replies", need.out_of_memory),
        ],
    )


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _need_line(need: dataplane_pb2.MemorySnapshot) -> str:
    if not need.known:
        return "not known yet"
    return f"{need.bytes_per_row / 2**20:.2f} b + {need.base_bytes / 2**20:.2f} MiB"


def _line(learned: dataplane_pb2.LatencySnapshot) -> str:
    if not learned.known:
        return "not known yet"
    if not _slope_known(learned):
        known = "seen often enough" if learned.observations else "known of before the first batch"
        return f"only one batch size was {known}: it does not tell what a row takes"
    told = "" if learned.observations else ", as known before the first batch"
    return f"{_line_ms(learned)} ms{told}"


def _slope_known(learned: dataplane_pb2.LatencySnapshot) -> bool:
    return bool(learned.alpha_ns or learned.beta_ns)


def _line_ms(learned: dataplane_pb2.LatencySnapshot) -> str:
    if not _slope_known(learned):
        return "one size"
    return f"{learned.alpha_ns / 1e6:.3f} b + {learned.beta_ns / 1e6:.3f}"


def _ignored(times: Mapping[str, int]) -> str:
    kinds = [f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(times.items())]
    return ", ".join(kinds) or "none"


def _part(good: int, total: int) -> str:
    return f"{good / total:.1%}" if total else "-"


def _residency_rows(model: pb.ModelStatus) -> list[tuple[str, object]]:
    if not model.HasField("residency"):
        return []
    found = model.residency
    load = f"{found.load_ns / 1e9:.1f} s" if found.load_ns else "not known yet"
    rows: list[tuple[str, object]] = [
        ("residency", _residency(found)),
        ("weight", _weight(found)),
        ("last use", _last_use(found)),
        ("a load takes", load),
        ("loads / unloads / failed", f"{found.loads} / {found.unloads} / {found.load_failures}"),
    ]
    return [*rows, ("load failed", found.error)] if found.error else rows


def _residency(found: pb.ModelResidency) -> str:
    state = found.state.replace("_", " ")
    return f"{state}, pinned" if found.pinned else state


def _weight(found: pb.ModelResidency) -> str:
    return f"{found.weight_bytes / 2**30:.2f} GiB" if found.weight_bytes else "-"


def _last_use(found: pb.ModelResidency) -> str:
    return f"{found.idle_ns / 1e9:.0f} s ago" if found.idle_ns >= 0 else "-"


def _row(model: pb.ModelStatus) -> dict[str, object]:
    totals = model.requests
    default = " (default)" if model.is_default_version else ""
    ready_on = sum(placement.ready for placement in model.placements)
    learned = max(model.placements, key=lambda p: p.latency.observations, default=None)
    known = learned is not None and learned.latency.known and not _unpredicted(model.batching)
    good, total = (sum(getattr(o, key) for o in totals.objectives) for key in ("good", "total"))
    conflicts = sum(bool(placement.conflict) for placement in model.placements)
    return {
        "name": model.name,
        "version": model.version + default,
        "ready": model.ready,
        "rows_max": model.batching.rows_max or "-",
        "merging": f"off: {model.merging_off_reason}" if model.merging_off_reason else "on",
        "backends": f"{ready_on} of {len(model.placements)}"
        + (f", {conflicts} differ" if conflicts else ""),
        "completed": totals.completed,
        "not_completed": totals.refused + totals.expired + totals.cancelled + totals.failed,
        "rows_per_batch": f"{totals.batch_rows / totals.batches:.1f}" if totals.batches else "-",
        "in_time": _part(good, total),
        "latency": _line_ms(learned.latency) if learned and known else "-",
        "residency": _residency(model.residency),
        "weight": _weight(model.residency),
        "last_use": _last_use(model.residency) if model.HasField("residency") else "-",
        "target": (learned.latency.rows_target or "-") if learned and known else "-",
    }
