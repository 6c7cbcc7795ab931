"""What the data plane is told: catalog, changes, backends that come and go."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton, free_port
from scheduler.v1 import control_pb2, control_pb2_grpc
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import (
    TIMEOUT_S,
    Cold,
    all_ready,
    failure,
    server_ready,
)

pytestmark = pytest.mark.e2e


def test_the_catalog_reaches_the_data_plane(
    control: ControlPlane, data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    apply = data_plane.applies[-1]
    assert [backend.address for backend in apply.backends] == [triton.grpc_address]
    assert apply.backends[0].state == pb.BACKEND_STATE_SERVING
    found = {model.name: model for model in apply.models}
    identity = found["identity"]
    assert (identity.version, identity.is_default_version, identity.max_batch_size) == (
        "1",
        True,
        64,
    )
    assert identity.inputs[0] == pb.Tensor(name="INPUT0", datatype="FP32", dims=[16])
    assert identity.batching.merge
    assert identity.batching.rows_max == 64
    assert identity.placements[0].instances == 1
    assert found["decoupled"].decoupled
    assert not found["decoupled"].batching.merge
    assert found["decoupled"].batching.direct_max > 0
    assert (identity.batching.direct_max, identity.batching.sequence_idle_ns) == (0, 0)
    assert sorted(model.index for model in apply.models) == [0, 1, 2]


def test_the_embedded_triton_is_a_backend_with_keys_of_its_own(
    data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    settings = {"embedded.compression": "gzip", "embedded.connections": 3}
    with ControlPlane(data_plane, settings=settings, embedded=triton.grpc_address):
        backend = data_plane.wait_apply(all_ready, "every model ready").backends[0]
    assert (backend.address, backend.connections) == (triton.grpc_address, 3)
    assert backend.compression == pb.COMPRESSION_GZIP


def test_an_unchanged_state_is_said_once(control: ControlPlane, data_plane: FakeDataPlane) -> None:
    start = time.monotonic()
    wait_until(lambda: time.monotonic() > start + 4.3, "four readings of the catalog")
    said = [pb.Apply.FromString(apply.SerializeToString()) for apply in data_plane.applies]
    for apply in said:
        apply.ClearField("generation")
    assert not any(one == other for one, other in itertools.pairwise(said))


def test_a_data_plane_that_comes_back_is_told_everything_again(
    control: ControlPlane, data_plane: FakeDataPlane
) -> None:
    before = data_plane.applies[-1]
    data_plane.vanish()
    data_plane.applies.clear()
    data_plane.listen()
    after = data_plane.wait_apply(all_ready, "the state once more")
    assert after.generation > before.generation
    assert after.models == before.models


def test_a_control_plane_that_was_killed_keeps_the_numbers(
    control: ControlPlane, data_plane: FakeDataPlane
) -> None:
    before = {model.name: model.index for model in data_plane.applies[-1].models}
    control.kill()
    data_plane.applies.clear()
    control.start()
    after = data_plane.wait_apply(all_ready, "the catalog again")
    assert {model.name: model.index for model in after.models} == before


def test_merging_that_was_switched_off_stays_off(
    control: ControlPlane, data_plane: FakeDataPlane, operator: control_pb2_grpc.ControlStub
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    event = pb.MergingSwitchedOff(model_index=index, reason="3 rows instead of 4")
    data_plane.send_event(pb.Event(merging_switched_off=event))

    def is_off(apply: pb.Apply) -> bool:
        return not next(m for m in apply.models if m.index == index).batching.merge

    data_plane.wait_apply(is_off, "merge: false")
    answer = operator.ListModels(control_pb2.ListModelsRequest(name="identity"), timeout=TIMEOUT_S)
    assert answer.models[0].merging_off_reason == "3 rows instead of 4"


# -- backends that come and go


def test_a_killed_triton_is_noticed_and_so_is_its_return(
    control: ControlPlane, data_plane: FakeDataPlane, triton: EmbeddedTriton, cold: Cold
) -> None:
    assert server_ready(cold)
    triton.kill()
    data_plane.wait_apply(lambda a: a.backends[0].state == pb.BACKEND_STATE_DOWN, "DOWN")
    assert len(data_plane.applies[-1].models) == 3, "the catalog is remembered"
    wait_until(lambda: not server_ready(cold), "not ready")
    triton.start_ready()
    data_plane.wait_apply(all_ready, "serving again")
    wait_until(lambda: server_ready(cold), "ready")


def test_a_stopped_triton_is_noticed(
    control: ControlPlane, data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        data_plane.wait_apply(lambda a: a.backends[0].state == pb.BACKEND_STATE_DOWN, "DOWN")
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    data_plane.wait_apply(all_ready, "serving again")


def test_a_suspected_backend_gets_nothing_until_it_proves_ready(
    control: ControlPlane, data_plane: FakeDataPlane
) -> None:
    data_plane.applies.clear()
    data_plane.send_event(pb.Event(backend_leaving=pb.BackendLeaving(backend_index=0)))
    data_plane.wait_apply(all_ready, "proved ready")
    states = [apply.backends[0].state for apply in data_plane.applies]
    assert pb.BACKEND_STATE_DRAINING in states
    assert states[-1] == pb.BACKEND_STATE_SERVING


def test_a_backend_that_is_down_at_start_is_found_when_it_comes(
    data_plane: FakeDataPlane, repository: Path, triton: EmbeddedTriton
) -> None:
    port = free_port()
    with ControlPlane(data_plane, [f"127.0.0.1:{port}"]) as control:
        data_plane.wait_apply(lambda a: a.backends, "a first state")
        assert data_plane.applies[-1].backends[0].state == pb.BACKEND_STATE_DOWN
        stub = Cold(control.cold_channel)
        answer = stub.ServerReady(
            service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S, wait_for_ready=True
        )
        assert not answer.ready
        code, _ = failure(
            lambda: stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=30)
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        late = EmbeddedTriton(repository, grpc_port=port)
        try:
            late.start_ready()
            data_plane.wait_apply(all_ready, "found")
        finally:
            late.close()
