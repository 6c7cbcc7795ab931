"""`infersched backends`: the Tritons of a running scheduler."""

from __future__ import annotations

import click

from scheduler.cli.client import TIMEOUT_S, control_option, control_stub
from scheduler.cli.output import message_record, output_option, print_rows
from scheduler.v1 import control_pb2 as pb

COLUMNS = {
    "address": "BACKEND",
    "state": "STATE",
    "server_version": "TRITON",
    "models_ready": "MODELS",
    "connections": "CONNECTIONS",
    "inflight_batches": "IN FLIGHT",
    "batches_total": "BATCHES",
    "failed_batches_total": "FAILED",
    "reason": "REASON",
}


@click.group()
def backends() -> None:
    """The Tritons of a running scheduler."""


@backends.command("list")
@control_option
@output_option
def list_backends(control_address: str, output: str) -> None:
    """List the backends, their state and load."""
    with control_stub(control_address) as stub:
        answer = stub.ListBackends(pb.ListBackendsRequest(), timeout=TIMEOUT_S)
    records = [message_record(backend) for backend in answer.backends]
    for record in records:
        record["state"] = record["state"].removeprefix("BACKEND_STATE_").lower()
        if output == "table":
            record["connections"] = f"{record['connections_open']}/{record['connections_wanted']}"
    print_rows(output, COLUMNS, records)
