"""RepositoryIndex, -ModelLoad and -ModelUnload over two Tritons in explicit mode."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import InferenceServerClient, service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.calls import infer_request, rows
from tests.wire.control_plane.words import (
    START_TIMEOUT_S,
    TIMEOUT_S,
    Cold,
    failure,
    outcome,
    served_by,
)

pytestmark = pytest.mark.e2e

Pair = tuple[EmbeddedTriton, EmbeddedTriton]
LoadRequest = service_pb2.RepositoryModelLoadRequest
UnloadRequest = service_pb2.RepositoryModelUnloadRequest
SMALL = {
    "name": "identity",
    "backend": "python",
    "max_batch_size": 4,
    "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [16]}],
    "instance_group": [{"kind": "KIND_CPU", "count": 1}],
}


@pytest.fixture
def cold(pair_control: ControlPlane) -> Cold:
    return Cold(pair_control.cold_channel)


@pytest.fixture
def client(pair_control: ControlPlane) -> InferenceServerClient:
    return InferenceServerClient(f"unix:{pair_control.cold_path}")


def states(stub: Cold, **fields: object) -> dict[tuple[str, str], str]:
    request = service_pb2.RepositoryIndexRequest(**fields)
    index = stub.RepositoryIndex(request, timeout=TIMEOUT_S)
    return {(m.name, m.version): m.state for m in index.models}


def named(model: str) -> Callable[[pb.Apply], pb.Model | None]:
    return lambda apply: next((m for m in apply.models if m.name == model), None)


def test_the_index_is_the_union(
    cold: Cold, pair: list[Cold], client: InferenceServerClient
) -> None:
    assert states(cold) == {("identity", "1"): "READY", ("lonely", ""): ""}
    pair[0].RepositoryModelLoad(LoadRequest(model_name="lonely"), timeout=START_TIMEOUT_S)
    assert states(cold) == {("identity", "1"): "READY", ("lonely", "1"): "READY"}
    pair[0].RepositoryModelUnload(UnloadRequest(model_name="identity"), timeout=TIMEOUT_S)
    assert states(cold)["identity", "1"] == "READY", "the other still serves it"
    pair[1].RepositoryModelUnload(UnloadRequest(model_name="identity"), timeout=TIMEOUT_S)
    wait_until(lambda: states(cold)["identity", "1"] == "UNAVAILABLE", "both have ended it")
    assert states(cold, ready=True) == {("lonely", "1"): "READY"}
    index = client.get_model_repository_index()
    reasons = {model.name: model.reason for model in index.models}
    assert reasons["identity"].count("unloaded") == 2
    pair[0].RepositoryModelUnload(UnloadRequest(model_name="lonely"), timeout=TIMEOUT_S)
    wait_until(lambda: states(cold)["lonely", "1"] == "UNAVAILABLE", "it is ended")


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest),
        ("RepositoryModelLoad", LoadRequest),
        ("RepositoryModelUnload", UnloadRequest),
    ],
)
def test_a_repository_name_is_refused_as_by_triton(
    cold: Cold, pair: list[Cold], method: str, request_type: type
) -> None:
    request = request_type(repository_name="elsewhere")
    assert outcome(cold, method, request) == outcome(pair[0], method, request)


def test_a_load_with_an_override_acts_everywhere_before_it_is_answered(
    client: InferenceServerClient, data_plane: FakeDataPlane, pair: list[Cold]
) -> None:
    client.load_model("identity", config=json.dumps(SMALL), client_timeout=START_TIMEOUT_S)
    apply = data_plane.applies[-1]
    model = named("identity")(apply)
    assert model is not None
    assert model.max_batch_size == 4
    assert served_by(apply, "identity") == {0, 1}
    assert client.get_model_config("identity").config.max_batch_size == 4
    for stub in pair:
        request = service_pb2.ModelConfigRequest(name="identity")
        assert stub.ModelConfig(request, timeout=TIMEOUT_S).config.max_batch_size == 4


def test_a_model_of_files_that_came_with_the_load_is_served(
    client: InferenceServerClient,
    cold: Cold,
    data_plane: FakeDataPlane,
    explicit_pair: Pair,
    pair: list[Cold],
) -> None:
    """Triton serves it and does not list it."""
    code = (explicit_pair[0].model_repository / "identity" / "1" / "model.py").read_bytes()
    client.load_model(
        "sent",
        config=json.dumps({**SMALL, "name": "sent"}),
        files={"file:1/model.py": code},
        client_timeout=START_TIMEOUT_S,
    )
    assert served_by(data_plane.applies[-1], "sent") == {0, 1}
    client.load_model("identity", client_timeout=START_TIMEOUT_S)
    assert served_by(data_plane.applies[-1], "sent") == {0, 1}, "another reading shows it again"
    assert client.is_model_ready("sent")
    described = service_pb2.ModelMetadataRequest(name="sent")
    assert outcome(cold, "ModelMetadata", described) == outcome(pair[1], "ModelMetadata", described)
    assert "sent" not in {name for name, _ in states(cold)} | {name for name, _ in states(pair[1])}
    client.unload_model("sent", client_timeout=START_TIMEOUT_S)
    assert named("sent")(data_plane.applies[-1]) is None
    assert not client.is_model_ready("sent")


def test_an_unload_waits_for_our_queue_and_is_answered_when_the_model_is_gone(
    client: InferenceServerClient, cold: Cold, data_plane: FakeDataPlane, pair: list[Cold]
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    queue = data_plane.snapshot.models.add(index=index, queued_requests=3, inflight_batches=1)
    with ThreadPoolExecutor() as threads:
        unloading = threads.submit(client.unload_model, "identity", client_timeout=START_TIMEOUT_S)
        data_plane.wait_apply(
            lambda apply: (m := named("identity")(apply)) and m.batching.refusing, "refused"
        )
        queue.queued_requests = 0
        assert not unloading.done()
        assert all(states(stub)["identity", "1"] == "READY" for stub in pair), "still out"
        queue.inflight_batches = 0
        unloading.result(START_TIMEOUT_S)
    assert named("identity")(data_plane.applies[-1]) is None
    assert all(states(stub)["identity", "1"] == "UNAVAILABLE" for stub in pair)
    for version in ("", "1", "7"):
        for method, request_type in (
            ("ModelMetadata", service_pb2.ModelMetadataRequest),
            ("ModelConfig", service_pb2.ModelConfigRequest),
            ("ModelStatistics", service_pb2.ModelStatisticsRequest),
        ):
            request = request_type(name="identity", version=version)
            assert outcome(cold, method, request) == outcome(pair[0], method, request)


def test_watchers_hear_of_unload_and_load(
    pair_control: ControlPlane, client: InferenceServerClient
) -> None:
    stub = health_pb2_grpc.HealthStub(pair_control.cold_channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="identity"), timeout=START_TIMEOUT_S)
    heard: list[int] = []

    def listen() -> None:
        with contextlib.suppress(grpc.RpcError):
            while answer := next(watch, None):
                heard.append(answer.status)

    threading.Thread(target=listen, daemon=True).start()
    known = health_pb2.HealthCheckResponse
    wait_until(lambda: heard == [known.SERVING], "the state now")
    client.unload_model("identity", client_timeout=START_TIMEOUT_S)
    wait_until(lambda: heard[-1] == known.SERVICE_UNKNOWN, "the unload")
    client.load_model("identity", client_timeout=START_TIMEOUT_S)
    wait_until(lambda: heard[-1] == known.SERVING, "the load")
    # It may be heard as not serving on the way; nothing is said twice.
    assert all(one != next_one for one, next_one in itertools.pairwise(heard))
    watch.cancel()


def test_a_load_that_fails_on_one_backend_is_reported_and_harms_no_other(
    cold: Cold, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    request = LoadRequest(model_name="lonely")
    try:
        code, text = failure(lambda: cold.RepositoryModelLoad(request, timeout=START_TIMEOUT_S))
        assert code is grpc.StatusCode.INTERNAL
        one, two = (triton.grpc_address for triton in explicit_pair)
        assert text == (
            "failed to load 'lonely', failed to poll from model repository "
            f"(backend {two}); it succeeded on backend {one}"
        )
        assert len(served_by(data_plane.applies[-1], "lonely")) == 1
        assert served_by(data_plane.applies[-1], "identity") == {0, 1}
    finally:
        cold.RepositoryModelUnload(UnloadRequest(model_name="lonely"), timeout=START_TIMEOUT_S)


@pytest.mark.parametrize(
    ("method", "request_type", "parameter", "value"),
    [
        ("RepositoryModelLoad", LoadRequest, "config", {"int64_param": 3}),
        ("RepositoryModelLoad", LoadRequest, "nope", {"string_param": "x"}),
        ("RepositoryModelUnload", UnloadRequest, "unload_dependents", {"string_param": "x"}),
    ],
)
def test_bad_parameters_are_refused_in_tritons_words_and_nothing_is_drained(
    cold: Cold,
    pair: list[Cold],
    data_plane: FakeDataPlane,
    explicit_pair: Pair,
    method: str,
    request_type: type,
    parameter: str,
    value: dict[str, object],
) -> None:
    request = request_type(model_name="identity")
    for field, content in value.items():
        setattr(request.parameters[parameter], field, content)
    said = len(data_plane.applies)
    code, text = failure(lambda: getattr(cold, method)(request, timeout=START_TIMEOUT_S))
    theirs = failure(lambda: getattr(pair[0], method)(request, timeout=START_TIMEOUT_S))
    one, two = (triton.grpc_address for triton in explicit_pair)
    assert (code, text) == (theirs[0], f"{theirs[1]} (backends {one}, {two})")
    assert not any(m.batching.refusing for apply in data_plane.applies[said:] for m in apply.models)


def test_a_triton_that_loads_by_itself_refuses_before_anything_is_drained(
    control: ControlPlane, data_plane: FakeDataPlane, direct: Cold
) -> None:
    cold = Cold(control.cold_channel)
    said = len(data_plane.applies)
    for method, request in (
        ("RepositoryModelLoad", LoadRequest(model_name="identity")),
        ("RepositoryModelUnload", UnloadRequest(model_name="identity")),
    ):
        assert outcome(cold, method, request) == outcome(direct, method, request)
    assert not any(m.batching.refusing for apply in data_plane.applies[said:] for m in apply.models)


def test_loads_and_unloads_of_one_model_follow_each_other(
    pair_control: ControlPlane, data_plane: FakeDataPlane
) -> None:
    """Whatever the order in which they come to run, the end is the last one's."""
    channels = [ControlPlane.channel(f"unix:{pair_control.cold_path}") for _ in range(4)]

    def act(position: int) -> object:
        stub = Cold(channels[position])
        if position % 2:
            request = LoadRequest(model_name="identity")
            return stub.RepositoryModelLoad(request, timeout=START_TIMEOUT_S)
        unload = UnloadRequest(model_name="identity")
        return stub.RepositoryModelUnload(unload, timeout=START_TIMEOUT_S)

    with ThreadPoolExecutor() as threads:
        list(threads.map(act, range(4)))
    for channel in channels:
        channel.close()
    cold = Cold(pair_control.cold_channel)
    served = named("identity")(data_plane.applies[-1]) is not None
    assert served == (states(cold)["identity", "1"] == "READY")
    assert not any(m.batching.refusing for m in data_plane.applies[-1].models)


def test_an_unload_goes_on_when_its_client_has_gone(
    cold: Cold, data_plane: FakeDataPlane, pair: list[Cold]
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    queue = data_plane.snapshot.models.add(index=index, queued_requests=1)
    call = cold.RepositoryModelUnload.future(UnloadRequest(model_name="identity"), timeout=60)
    data_plane.wait_apply(
        lambda apply: (m := named("identity")(apply)) and m.batching.refusing, "refused"
    )
    call.cancel()
    queue.queued_requests = 0
    data_plane.wait_apply(lambda apply: named("identity")(apply) is None, "gone")


def test_the_models_of_a_pool_that_is_away_cannot_be_changed(
    data_plane: FakeDataPlane,
) -> None:
    with ControlPlane(data_plane, ["127.0.0.1:1"]) as control:
        data_plane.wait_apply(lambda apply: apply.backends, "a state")
        request = LoadRequest(model_name="identity")
        stub = Cold(control.cold_channel)
        code, text = failure(
            lambda: stub.RepositoryModelLoad(request, timeout=TIMEOUT_S, wait_for_ready=True)
        )
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "127.0.0.1:1" in text


# -- a backend that comes back


def test_a_triton_that_starts_anew_is_told_what_was_loaded(
    pair_control: ControlPlane,
    client: InferenceServerClient,
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
) -> None:
    """By the control plane that saw the load, or by its successor."""
    client.load_model("identity", config=json.dumps(SMALL), client_timeout=START_TIMEOUT_S)
    client.load_model("identity", client_timeout=START_TIMEOUT_S)
    for _ in range(2):
        explicit_pair[1].kill()
        data_plane.wait_apply(lambda a: served_by(a, "identity") == {0}, "one is gone")
        explicit_pair[1].start_ready()
        data_plane.wait_apply(
            lambda apply: served_by(apply, "identity") == {0, 1}, "both again", START_TIMEOUT_S
        )
        with InferenceServerClient(explicit_pair[1].grpc_address) as direct:
            assert direct.get_model_config("identity").config.max_batch_size == 4
        pair_control.kill()
        pair_control.start()


def test_a_triton_that_missed_an_unload_is_told(
    client: InferenceServerClient, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    pid = explicit_pair[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        data_plane.wait_apply(lambda a: served_by(a, "identity") == {0}, "out of reach")
        client.unload_model("identity", client_timeout=START_TIMEOUT_S)
        # It is known from the one that is away.
        data_plane.wait_apply(lambda a: served_by(a, "identity") == set(), "unloaded")
    finally:
        os.kill(pid, signal.SIGCONT)
    data_plane.wait_apply(lambda apply: named("identity")(apply) is None, "unloaded there too")
    with grpc.insecure_channel(explicit_pair[1].grpc_address) as channel:
        assert states(Cold(channel))["identity", "1"] == "UNAVAILABLE"


def test_a_triton_that_was_only_out_of_reach_is_left_alone(
    cold: Cold,
    client: InferenceServerClient,
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
    pair: list[Cold],
) -> None:
    """A load would begin the model anew."""
    client.load_model("identity", config=json.dumps(SMALL), client_timeout=START_TIMEOUT_S)
    pair[1].ModelInfer(infer_request(rows(1)), timeout=TIMEOUT_S)
    request = service_pb2.ModelStatisticsRequest(name="identity")

    def count() -> int:
        answer = pair[1].ModelStatistics(request, timeout=TIMEOUT_S)
        return int(answer.model_stats[0].inference_count)

    wait_until(lambda: count() == 1, "it is counted")
    pid = explicit_pair[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        data_plane.wait_apply(lambda a: served_by(a, "identity") == {0}, "out of reach")
    finally:
        os.kill(pid, signal.SIGCONT)
    data_plane.wait_apply(lambda a: served_by(a, "identity") == {0, 1}, "back")
    # This waits for its turn behind what is done for the backend.
    bad = LoadRequest(model_name="identity")
    bad.parameters["nope"].bool_param = True
    failure(lambda: cold.RepositoryModelLoad(bad, timeout=START_TIMEOUT_S))
    assert count() == 1
