"""`infersched models` and `infersched status` of models on demand, as people see them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from click.testing import CliRunner

from scheduler.cli.models import _ignored, _line, _row, models
from scheduler.cli.status import status
from scheduler.v1 import control_pb2 as pb
from scheduler.v1 import control_pb2_grpc
from scheduler.v1.dataplane_pb2 import Batching, LatencySnapshot, TritonBatching

GIB = 2**30


class Control(control_pb2_grpc.ControlServicer):
    """Knows of a loaded model and of one that is not."""

    on_demand = True
    others: tuple[pb.ModelStatus, ...] = ()

    def GetStatus(self, request: object, context: object) -> pb.GetStatusResponse:
        place = pb.ResidencyPlace(place="GPU-a", resident_bytes=2 * GIB, budget_bytes=8 * GIB)
        return pb.GetStatusResponse(ready=True, residency=[place])

    def ListModels(self, request: pb.ListModelsRequest, context: object) -> pb.ListModelsResponse:
        here = pb.ModelStatus(name="here", version="1", ready=True)
        if not self.on_demand:
            return pb.ListModelsResponse(models=[here])
        here.residency.MergeFrom(
            pb.ModelResidency(state="loaded", pinned=True, weight_bytes=2 * GIB, idle_ns=3 * 10**9)
        )
        away = pb.ModelStatus(name="away")
        away.residency.MergeFrom(
            pb.ModelResidency(state="not_loaded", idle_ns=-1, load_ns=1_500_000_000, error="no")
        )
        found = [m for m in (here, away, *self.others) if request.name in ("", m.name)]
        return pb.ListModelsResponse(models=found)


@pytest.fixture
def control() -> Iterator[tuple[Control, str]]:
    servicer = Control()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    control_pb2_grpc.add_ControlServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0)


def lines(*arguments: str) -> list[str]:
    done = CliRunner().invoke(models, arguments)
    assert done.exit_code == 0, done.output
    return [" ".join(line.split()) for line in done.output.splitlines()]


def test_the_list_has_state_weight_and_last_use(control: tuple[Control, str]) -> None:
    heading, here, away = lines("list", "--control", control[1])
    assert heading.endswith("RESIDENCY WEIGHT LAST USE")
    assert here.endswith("loaded, pinned 2.00 GiB 3 s ago")
    assert away.endswith("not loaded - -")


def test_the_list_is_as_before_without_residency(control: tuple[Control, str]) -> None:
    control[0].on_demand = False
    heading, _ = lines("list", "--control", control[1])
    assert "RESIDENCY" not in heading


def test_a_model_that_is_not_loaded_is_described(control: tuple[Control, str]) -> None:
    found = lines("describe", "away", "--control", control[1])
    assert "residency not loaded" in found
    assert "a load takes 1.5 s" in found
    assert "load failed no" in found


def test_the_status_has_weights_against_the_budget(control: tuple[Control, str]) -> None:
    done = CliRunner().invoke(status, ["--control", control[1]])
    text = " ".join(done.output.split())
    assert "weights on GPU-a 2.00 GiB of 8.00 GiB" in text


def test_a_latency_that_was_only_told_is_shown_as_that() -> None:
    told = LatencySnapshot(known=True, alpha_ns=1_000_000, beta_ns=5_000_000, margin=1.2)
    assert _line(told) == "1.000 b + 5.000 ms, as known before the first batch"
    told.observations = 1
    assert _line(told) == "1.000 b + 5.000 ms"
    assert _line(LatencySnapshot()) == "not known yet"


def test_of_one_size_no_line_is_shown() -> None:
    seen = LatencySnapshot(known=True, observations=20, margin=1.2, rows_target=3)
    told = LatencySnapshot(known=True, margin=1.2)
    ending = "it does not tell what a row takes"
    assert _line(seen) == f"only one batch size was seen often enough: {ending}"
    assert _line(told) == f"only one batch size was known of before the first batch: {ending}"
    row = _row(pb.ModelStatus(placements=[pb.ModelPlacement(latency=seen)]))
    assert (row["latency"], row["target"]) == ("one size", 3)


@pytest.mark.parametrize(
    ("batching", "reason"),
    [
        (Batching(fixed_delay=True), "batching is fixed_delay"),
        (Batching(triton=TritonBatching(dynamic=True)), "batching is as Triton's"),
        (Batching(direct_max=1024), "requests go to the backend as they come"),
    ],
)
def test_of_what_is_not_predicted_only_that_is_said(
    control: tuple[Control, str], batching: Batching, reason: str
) -> None:
    known = LatencySnapshot(known=True, alpha_ns=1_000_000, beta_ns=5_000_000, margin=1.2)
    placement = pb.ModelPlacement(backend_address="a:1", instances=2, latency=known)
    other = pb.ModelStatus(name="other", version="1", batching=batching, placements=[placement])
    control[0].others = (other,)
    found = lines("describe", "other", "--control", control[1])
    assert found[found.index("BACKEND a:1") :] == [
        "BACKEND a:1",
        "instances 2",
        f"latency not predicted: {reason}",
    ]
    row = _row(other)
    assert (row["latency"], row["target"]) == ("-", "-")


def test_times_that_were_ignored_are_shown_by_kind() -> None:
    assert _ignored({"too_long": 1, "backward": 2}) == "2 backward, 1 too long"
    assert _ignored({}) == "none"
