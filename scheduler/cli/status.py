"""`infersched status`: is it ready, what waits, what runs."""

from __future__ import annotations

import click

from scheduler.cli.client import TIMEOUT_S, control_option, control_stub
from scheduler.cli.output import message_record, output_option, print_json, print_table
from scheduler.config.units import format_size
from scheduler.v1 import control_pb2 as pb


@click.command()
@control_option
@output_option
def status(control_address: str, output: str) -> None:
    """Show the status, queues and batches in flight; exit 3 if it is not ready."""
    with control_stub(control_address) as stub:
        now = stub.GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT_S)
        queues, batches = pb.ListQueuesResponse(), pb.ListBatchesResponse()
        if now.data_plane.connected:
            queues = stub.ListQueues(pb.ListQueuesRequest(), timeout=TIMEOUT_S)
            batches = stub.ListBatches(pb.ListBatchesRequest(), timeout=TIMEOUT_S)
    if output == "json":
        record = message_record(now)
        record.update(message_record(queues))
        record.update(message_record(batches))
        print_json(record)
    else:
        _print_status(now)
        _print_queues(queues)
        _print_batches(batches)
    raise SystemExit(0 if now.ready else 3)


def _print_status(now: pb.GetStatusResponse) -> None:
    plane = now.data_plane
    data_plane = f"pid {plane.pid}" if plane.connected else "not connected"
    if plane.apply_error:
        data_plane += f", refused the state: {plane.apply_error}"
    rows = [
        ("ready", "draining" if now.draining else now.ready),
        ("version", now.version),
        ("listening on", list(now.listen_addresses)),
        ("data plane", data_plane),
        ("client connections", plane.client_connections),
        ("request bytes held", format_size(plane.host_bytes)),
        ("models ready", f"{now.models_ready} of {now.models}"),
        ("backends serving", f"{now.backends_serving} of {now.backends}"),
        ("device memory known", f"{now.devices_known} of {now.devices} devices"),
        *((f"weights on {p.place}", _weights(p)) for p in now.residency),
        *(("problem", text) for text in now.problems),
    ]
    print_table(["STATUS", ""], rows)


def _weights(place: pb.ResidencyPlace) -> str:
    used = f"{place.resident_bytes / 2**30:.2f} GiB"
    return f"{used} of {place.budget_bytes / 2**30:.2f} GiB" if place.budget_bytes else used


def _print_queues(queues: pb.ListQueuesResponse) -> None:
    rows = [
        (q.model_name, q.model_version, q.queued_requests, q.queued_rows,
         format_size(q.queued_bytes), f"{q.oldest_age_ns / 1e6:.1f} ms", q.inflight_batches)
        for q in queues.queues
        if q.queued_requests
    ]  # fmt: skip
    if rows:
        columns = ["QUEUE", "VERSION", "REQUESTS", "ROWS", "BYTES", "OLDEST", "BATCHES OUT"]
        print_table(columns, rows)


def _print_batches(batches: pb.ListBatchesResponse) -> None:
    rows = [
        (b.model_name, b.model_version, b.backend_address, b.requests, b.rows,
         f"{b.age_ns / 1e6:.1f} ms", "device memory" if b.memory_limited else "-")
        for b in batches.batches
    ]  # fmt: skip
    if rows:
        columns = ["BATCH OF", "VERSION", "BACKEND", "REQUESTS", "ROWS", "AGE", "LIMITED BY"]
        print_table(columns, rows)
