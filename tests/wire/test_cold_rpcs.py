"""The cold RPCs, health, reflection and Control of the control plane, before a real Triton.

The answers are compared with those that the Triton itself gives. The test plays the data plane.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.backends import triton_install
from scheduler.backends.embedded_triton import EmbeddedTriton, free_port
from scheduler.cli.main import main
from scheduler.v1 import control_pb2, control_pb2_grpc
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until

pytestmark = pytest.mark.e2e

TIMEOUT_S = 5.0
NOTICE_S = 1.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Cold = service_pb2_grpc.GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("repository")
    models.identity(directory)
    models.decoupled(directory)
    models.identity(
        directory, "waits", dynamic_batching=models.DynamicBatching((8,), max_queue_delay_us=5000)
    )
    return directory


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[EmbeddedTriton]:
    if triton_install.locate() is None:
        pytest.skip("no tritonserver is installed")
    with EmbeddedTriton(repository) as server:
        yield server


@pytest.fixture
def data_plane() -> Iterator[FakeDataPlane]:
    with FakeDataPlane() as fake:
        yield fake


@pytest.fixture
def control(data_plane: FakeDataPlane, triton: EmbeddedTriton) -> Iterator[ControlPlane]:
    """Connected, with the catalog of a running Triton."""
    if not triton.running:
        triton.start_ready()
    with ControlPlane(data_plane, [triton.grpc_address]) as process:
        data_plane.wait_apply(all_ready, "every model ready")
        yield process


@pytest.fixture
def cold(control: ControlPlane) -> Cold:
    return Cold(control.cold_channel)


@pytest.fixture
def direct(triton: EmbeddedTriton) -> Iterator[Cold]:
    with grpc.insecure_channel(triton.grpc_address) as channel:
        yield Cold(channel)


@pytest.fixture
def operator(control: ControlPlane) -> Iterator[control_pb2_grpc.ControlStub]:
    with ControlPlane.channel(control.control_address) as channel:
        yield control_pb2_grpc.ControlStub(channel)


def all_ready(apply: pb.Apply) -> bool:
    placements = [p for model in apply.models for p in model.placements]
    return len(apply.models) == 3 and all(p.ready for p in placements)


def server_ready(stub: Cold) -> bool:
    return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S).ready)


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


# -- what the data plane is told


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
    assert sorted(model.index for model in apply.models) == [0, 1, 2]


def test_an_unchanged_state_is_said_once(control: ControlPlane, data_plane: FakeDataPlane) -> None:
    said = len(data_plane.applies)
    # Three refreshes of the catalog pass meanwhile.
    deadline = time.monotonic() + 3.2
    wait_until(lambda: time.monotonic() > deadline, "three refreshes")
    assert len(data_plane.applies) == said


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


def test_a_killed_triton_is_noticed_within_a_second_and_so_is_its_return(
    control: ControlPlane, data_plane: FakeDataPlane, triton: EmbeddedTriton, cold: Cold
) -> None:
    assert server_ready(cold)
    triton.kill()
    data_plane.wait_apply(
        lambda a: a.backends[0].state == pb.BACKEND_STATE_DOWN, "DOWN", timeout_s=NOTICE_S
    )
    assert len(data_plane.applies[-1].models) == 3, "the catalog is remembered"
    wait_until(lambda: not server_ready(cold), "not ready")
    triton.start_ready()
    data_plane.wait_apply(all_ready, "serving again", timeout_s=NOTICE_S)
    wait_until(lambda: server_ready(cold), "ready")


def test_a_stopped_triton_is_noticed_within_a_second(
    control: ControlPlane, data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        data_plane.wait_apply(
            lambda a: a.backends[0].state == pb.BACKEND_STATE_DOWN, "DOWN", timeout_s=NOTICE_S
        )
    finally:
        os.kill(triton.pid, signal.SIGCONT)
    data_plane.wait_apply(all_ready, "serving again", timeout_s=NOTICE_S)


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
            lambda: stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=5)
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        late = EmbeddedTriton(repository, grpc_port=port)
        try:
            late.start_ready()
            data_plane.wait_apply(all_ready, "found", timeout_s=NOTICE_S)
        finally:
            late.close()


# -- answers


def test_server_metadata(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ServerMetadataRequest()
    ours, theirs = (
        cold.ServerMetadata(request, timeout=5),
        direct.ServerMetadata(request, timeout=5),
    )
    assert (ours.name, ours.version) == (theirs.name, theirs.version)
    assert "infersched" in ours.extensions
    assert not {"statistics", "system_shared_memory", "sequence"} & set(ours.extensions)


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata_is_the_tritons(cold: Cold, direct: Cold, version: str) -> None:
    request = service_pb2.ModelMetadataRequest(name="identity", version=version)
    assert cold.ModelMetadata(request, timeout=5) == direct.ModelMetadata(request, timeout=5)


def test_model_config_shows_the_batching_that_acts(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ModelConfigRequest(name="waits")
    ours = cold.ModelConfig(request, timeout=5).config
    theirs = direct.ModelConfig(request, timeout=5).config
    assert theirs.dynamic_batching.max_queue_delay_microseconds == 5000
    assert ours.dynamic_batching.max_queue_delay_microseconds == 0
    assert not ours.dynamic_batching.preferred_batch_size
    assert ours.dynamic_batching.default_queue_policy.max_queue_size == 10_000
    ours.ClearField("dynamic_batching")
    theirs.ClearField("dynamic_batching")
    assert ours == theirs


def test_the_config_of_an_unmerged_model_is_the_tritons(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ModelConfigRequest(name="decoupled")
    assert cold.ModelConfig(request, timeout=5) == direct.ModelConfig(request, timeout=5)


@pytest.mark.parametrize("name", ["identity", "nope", ""])
@pytest.mark.parametrize(
    "version", ["", "1", "7", "abc", "-1", " 1", "1x", "99999999999999999999", "0"]
)
def test_unknown_models_and_versions_are_refused_in_tritons_words(
    cold: Cold, direct: Cold, name: str, version: str
) -> None:
    def answer(stub: Cold, method: str, request: object) -> object:
        try:
            getattr(stub, method)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return "an answer"

    def ready(stub: Cold) -> object:
        request = service_pb2.ModelReadyRequest(name=name, version=version)
        try:
            return stub.ModelReady(request, timeout=TIMEOUT_S).ready
        except grpc.RpcError as error:
            return error.code(), error.details()

    for method, request in (
        ("ModelMetadata", service_pb2.ModelMetadataRequest(name=name, version=version)),
        ("ModelConfig", service_pb2.ModelConfigRequest(name=name, version=version)),
    ):
        assert answer(cold, method, request) == answer(direct, method, request), method
    assert ready(cold) == ready(direct)


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("ModelStatistics", "ModelStatisticsRequest"),
        ("RepositoryIndex", "RepositoryIndexRequest"),
        ("RepositoryModelLoad", "RepositoryModelLoadRequest"),
        ("RepositoryModelUnload", "RepositoryModelUnloadRequest"),
        ("SystemSharedMemoryStatus", "SystemSharedMemoryStatusRequest"),
        ("SystemSharedMemoryRegister", "SystemSharedMemoryRegisterRequest"),
        ("SystemSharedMemoryUnregister", "SystemSharedMemoryUnregisterRequest"),
        ("CudaSharedMemoryStatus", "CudaSharedMemoryStatusRequest"),
        ("CudaSharedMemoryRegister", "CudaSharedMemoryRegisterRequest"),
        ("CudaSharedMemoryUnregister", "CudaSharedMemoryUnregisterRequest"),
        ("TraceSetting", "TraceSettingRequest"),
        ("LogSettings", "LogSettingsRequest"),
    ],
)
def test_what_is_not_carried_says_so_by_name(cold: Cold, method: str, request_type: str) -> None:
    request = getattr(service_pb2, request_type)()
    code, text = failure(lambda: getattr(cold, method)(request, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text.startswith(f"{method} is not carried")


def test_live_and_ready(cold: Cold) -> None:
    assert cold.ServerLive(service_pb2.ServerLiveRequest(), timeout=TIMEOUT_S).live
    assert server_ready(cold)


def test_not_ready_without_a_data_plane(
    control: ControlPlane, data_plane: FakeDataPlane, cold: Cold
) -> None:
    data_plane.vanish()
    wait_until(lambda: not server_ready(cold), "not ready")


# -- health and reflection


def test_health_of_the_process_and_of_each_model(control: ControlPlane) -> None:
    stub = health_pb2_grpc.HealthStub(control.cold_channel)
    for name in ("", "identity", "decoupled"):
        request = health_pb2.HealthCheckRequest(service=name)
        assert stub.Check(request, timeout=TIMEOUT_S).status == SERVING
    code, _ = failure(
        lambda: stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=TIMEOUT_S)
    )
    assert code is grpc.StatusCode.NOT_FOUND


def test_every_watcher_hears_of_the_drain(control: ControlPlane, data_plane: FakeDataPlane) -> None:
    stub = health_pb2_grpc.HealthStub(control.cold_channel)
    request = health_pb2.HealthCheckRequest(service="identity")
    first, second = (stub.Watch(request, timeout=30) for _ in range(2))
    assert next(first).status == SERVING
    assert next(second).status == SERVING
    first.cancel()
    heard: list[int] = []
    listening = threading.Thread(target=lambda: heard.append(next(second).status), daemon=True)
    listening.start()
    assert control.terminate() == 0
    listening.join(TIMEOUT_S)
    assert heard == [NOT_SERVING]
    assert [drain.deadline_ms for drain in data_plane.drains] == [30_000]


def test_reflection_lists_what_is_served(control: ControlPlane) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(control.cold_channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="inference.GRPCInferenceService"
        ),
    ]
    listed, file = stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT_S)
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert file.file_descriptor_response.file_descriptor_proto


# -- operators


def test_control_shows_models_backends_queues_and_batches(
    control: ControlPlane,
    data_plane: FakeDataPlane,
    triton: EmbeddedTriton,
    operator: control_pb2_grpc.ControlStub,
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    data_plane.snapshot.models.add(index=index, queued_requests=4, oldest_age_ns=9)
    data_plane.snapshot.batches.add(model_index=index, backend_index=0, requests=2, rows=7)
    status = operator.GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    assert status.ready
    assert (status.models, status.models_ready, status.backends_serving) == (3, 3, 1)
    assert status.data_plane.connected
    backends = operator.ListBackends(control_pb2.ListBackendsRequest(), timeout=TIMEOUT_S).backends
    assert [(b.address, b.server_version) for b in backends] == [(triton.grpc_address, "2.51.0")]
    queues = operator.ListQueues(control_pb2.ListQueuesRequest(), timeout=TIMEOUT_S).queues
    assert [(q.model_name, q.queued_requests, q.requests_max) for q in queues] == [
        ("identity", 4, 10_000)
    ]
    batches = operator.ListBatches(control_pb2.ListBatchesRequest(), timeout=TIMEOUT_S).batches
    assert [(b.model_name, b.backend_address, b.rows) for b in batches] == [
        ("identity", triton.grpc_address, 7)
    ]
    config = operator.GetEffectiveConfig(control_pb2.GetEffectiveConfigRequest(), timeout=TIMEOUT_S)
    values = {value.path: (json.loads(value.value_json), value.origin) for value in config.values}
    assert values["backends[0].address"] == (triton.grpc_address, "flag --backend")


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("command", ["models list", "backends list", "status"])
def test_the_command_line_shows_it(
    control: ControlPlane, triton: EmbeddedTriton, command: str, output: str
) -> None:
    arguments = [*command.split(), "--control", control.control_address, "--output", output]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    if output == "json":
        shown = json.loads(result.output)
        assert shown["ready"] if command == "status" else len(shown) in (1, 3)
    else:
        wanted = {
            "models list": "identity",
            "backends list": triton.grpc_address,
            "status": "3 of 3",
        }
        assert wanted[command] in result.output


def test_queues_need_a_data_plane(
    control: ControlPlane, data_plane: FakeDataPlane, operator: control_pb2_grpc.ControlStub
) -> None:
    data_plane.vanish()

    def connected() -> bool:
        now = operator.GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
        return bool(now.data_plane.connected)

    wait_until(lambda: not connected(), "disconnected")
    code, _ = failure(lambda: operator.ListQueues(control_pb2.ListQueuesRequest(), timeout=5))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_a_reload_takes_effect_and_a_bad_file_changes_nothing(
    data_plane: FakeDataPlane, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    file = tmp_path / "infersched.yaml"
    file.write_text("models:\n  identity: {slo: 20ms}\n")

    def slo_ms(apply: pb.Apply) -> float:
        identity = [model for model in apply.models if model.name == "identity"]
        return identity[0].batching.slo_ns / 1e6 if identity else 0

    with ControlPlane(data_plane, [triton.grpc_address], config_file=file) as control:
        data_plane.wait_apply(lambda apply: slo_ms(apply) == 20, "the first configuration")
        assert control.process is not None
        file.write_text("models:\n  identity: {slo: 30ms}\n")
        control.process.send_signal(signal.SIGHUP)
        data_plane.wait_apply(lambda apply: slo_ms(apply) == 30, "the second configuration")
        file.write_text("models:\n  identity: {slow: 40ms}\n")
        control.process.send_signal(signal.SIGHUP)

        def failures() -> bool:
            with urllib.request.urlopen(f"{control.metrics_url}/metrics", timeout=5) as answer:
                return b"infersched_config_reload_failures_total 1.0" in answer.read()

        wait_until(failures, "the failure is counted")
        assert slo_ms(data_plane.applies[-1]) == 30
