"""The cold RPCs, health and reflection, compared with the answers of the Triton itself."""

from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2

from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import (
    TIMEOUT_S,
    Cold,
    failure,
    server_ready,
)

pytestmark = pytest.mark.e2e

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_server_metadata(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ServerMetadataRequest()
    ours, theirs = (
        cold.ServerMetadata(request, timeout=30),
        direct.ServerMetadata(request, timeout=30),
    )
    assert (ours.name, ours.version) == (theirs.name, theirs.version)
    assert "infersched" in ours.extensions
    assert set(ours.extensions) == {*theirs.extensions, "infersched"}


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata_is_the_tritons(cold: Cold, direct: Cold, version: str) -> None:
    request = service_pb2.ModelMetadataRequest(name="identity", version=version)
    assert cold.ModelMetadata(request, timeout=30) == direct.ModelMetadata(request, timeout=30)


def test_model_config_shows_the_batching_that_acts(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ModelConfigRequest(name="waits")
    ours = cold.ModelConfig(request, timeout=30).config
    theirs = direct.ModelConfig(request, timeout=30).config
    assert theirs.dynamic_batching.max_queue_delay_microseconds == 5000
    assert ours.dynamic_batching.max_queue_delay_microseconds == 0
    assert not ours.dynamic_batching.preferred_batch_size
    assert ours.dynamic_batching.default_queue_policy.max_queue_size == 10_000
    ours.ClearField("dynamic_batching")
    theirs.ClearField("dynamic_batching")
    assert ours == theirs


def test_the_config_of_an_unmerged_model_is_the_tritons(cold: Cold, direct: Cold) -> None:
    request = service_pb2.ModelConfigRequest(name="decoupled")
    assert cold.ModelConfig(request, timeout=30) == direct.ModelConfig(request, timeout=30)


@pytest.mark.parametrize("name", ["identity", "nope", "", "identity\0x", "nope\0x", "\0"])
@pytest.mark.parametrize(
    "version",
    ["", "1", "7", "abc", "-1", " 1", "1x", "99999999999999999999", "0", "abc\0x", "-1\0", "7\0"],
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


def test_live_and_ready(cold: Cold) -> None:
    assert cold.ServerLive(service_pb2.ServerLiveRequest(), timeout=TIMEOUT_S).live
    assert server_ready(cold)


def test_not_ready_without_a_data_plane(
    control: ControlPlane, data_plane: FakeDataPlane, cold: Cold
) -> None:
    data_plane.vanish()
    wait_until(lambda: not server_ready(cold), "not ready")


@pytest.mark.parametrize("size", [15_000, 60_000])
def test_metadata_may_be_as_large_as_for_inference(cold: Cold, size: int) -> None:
    metadata = (("x-large", "v" * size),)
    request = service_pb2.ServerLiveRequest()
    assert cold.ServerLive(request, metadata=metadata, timeout=TIMEOUT_S).live


# -- health and reflection


def test_health_of_the_process_and_of_each_model(control: ControlPlane) -> None:
    stub = health_pb2_grpc.HealthStub(control.cold_channel)
    for name in ("", "inference.GRPCInferenceService", "identity", "decoupled"):
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
