"""`infersched models`: the catalog of a running scheduler."""

from __future__ import annotations

import click

from scheduler.cli.client import TIMEOUT_S, control_option, control_stub
from scheduler.cli.output import message_record, output_option, print_json, print_rows
from scheduler.v1 import control_pb2 as pb

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
}


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
    print_rows(output, COLUMNS, [_row(model) for model in answer.models])


def _row(model: pb.ModelStatus) -> dict[str, object]:
    totals = model.requests
    default = " (default)" if model.is_default_version else ""
    ready_on = sum(placement.ready for placement in model.placements)
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
    }
