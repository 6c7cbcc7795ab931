"""Which models the data plane is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from scheduler.config import Settings
from scheduler.control.cold.regions import Regions
from scheduler.control.desired import DesiredState
from scheduler.control.latency.latencies import Latencies
from scheduler.v1 import dataplane_pb2 as pb
from tests.unit.control.latency.test_latencies import MS, POOLED, kept_in, snapshot_of
from tests.unit.control.test_executors import pool_of


class Asked:
    """A data plane whose counters say that nothing ran."""

    valid = True

    def __init__(self) -> None:
        self.indices: list[list[int]] = []
        self.late = 0  # so many answers

    def batches_returned(self, index: int) -> int:
        return 0

    def page(self) -> dict[str, int]:
        return {"clock_back_total": 0, "clock_ahead_total": 0}

    async def snapshot(self, indices: list[int]) -> pb.Snapshot:
        self.indices.append(list(indices))
        if self.late:
            self.late -= 1
            raise asyncio.TimeoutError
        latency = pb.LatencySnapshot(alpha_ns=MS, beta_ns=5 * MS)
        return pb.Snapshot(models=[pb.ModelSnapshot(index=0, latencies=[latency])])


def judged(tmp_path: Path, asked: Any) -> tuple[Latencies, DesiredState]:
    """Of two models, of which `identity` was told what an earlier life has learned."""
    kept_in(tmp_path, snapshot_of({1: 6.0}), model=POOLED)
    pool = pool_of(({"address": "a:1"}, {"first": "", "identity": ""}))
    found = Latencies(tmp_path, pool, asked, asked, Settings, lambda: None)
    desired = DesiredState(tmp_path, found.priors)
    desired.build(pool, Settings(), Regions(tmp_path))
    found.judge_priors()
    return found, desired


def test_what_was_said_of_a_model_is_read_back_before_it_runs(tmp_path: Path) -> None:
    asked = Asked()
    found, desired = judged(tmp_path, asked)
    for _ in range(2):
        asyncio.run(found.read(desired))
    first, identity = (desired.model_index[name, "1"] for name in ("first", "identity"))
    assert asked.indices == [[identity], [first]], "one, for what is of no model"


def test_what_was_said_is_read_back_though_a_data_plane_was_late(tmp_path: Path) -> None:
    asked = Asked()
    found, desired = judged(tmp_path, asked)
    asked.late = 1
    for _ in range(2):
        asyncio.run(found.read(desired))
    identity = desired.model_index["identity", "1"]
    assert asked.indices == [[identity]] * 2
