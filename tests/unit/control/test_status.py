"""What the Control service says of the whole scheduler."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from scheduler.control.service import ControlServicer
from scheduler.v1 import control_pb2 as pb


def plane_with_versions(name: str, versions: list[str]) -> Any:
    """Of one model, whose configuration has a problem, and nothing else."""
    entries = [
        SimpleNamespace(ready=True, spec=SimpleNamespace(name=name, version=version))
        for version in versions
    ]
    return SimpleNamespace(
        pool=SimpleNamespace(catalog=dict(enumerate(entries)), watches={}),
        counters=SimpleNamespace(
            page=lambda: {"client_connections": 0, "host_bytes": 0, "loop_lag_max_ns": 0}
        ),
        started_at_s=1.0,
        readiness=SimpleNamespace(ready=True, draining=False),
        parameters=SimpleNamespace(listen=["127.0.0.1:1"]),
        steering=SimpleNamespace(
            connected=True, data_plane_pid=1, applied_generation=1, apply_error=""
        ),
        reload_failures=0,
        batching_for=lambda name: None,
        desired=SimpleNamespace(inert={("m", version): ["does nothing"] for version in versions}),
        latencies=SimpleNamespace(problems=lambda key, batching: {"slo": "is too short"}),
        devices=SimpleNamespace(problems=["device x: is gone"], current={}),
        residency=SimpleNamespace(problems=["device x: is gone"], on=False),
    )


def test_a_problem_of_several_versions_is_told_once() -> None:
    servicer = ControlServicer(cast(Any, plane_with_versions("m", ["1", "2"])))
    status = asyncio.run(servicer.GetStatus(pb.GetStatusRequest(), None))
    assert status.models == 2
    assert list(status.problems) == [
        "models.m.slo: is too short",
        "model m: does nothing",
        "device x: is gone",
    ]
