"""TraceSetting and LogSettings: read from one backend, changed on all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2
from tritonclient.utils import InferenceServerException

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.control.cold.server_settings import ServerSettings
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import START_TIMEOUT_S, TIMEOUT_S, Cold, failure

pytestmark = pytest.mark.e2e

Pair = tuple[EmbeddedTriton, EmbeddedTriton]


@pytest.fixture
def clients(explicit_pair: Pair, pair: list[Cold]) -> Iterator[list[InferenceServerClient]]:
    """Both Tritons themselves; their settings are put back."""
    clients = [InferenceServerClient(triton.grpc_address) for triton in explicit_pair]
    yield clients
    for client in clients:
        client.update_trace_settings(settings={"trace_rate": "1000"})
        client.update_trace_settings("identity", settings={"trace_rate": None})
        client.update_log_settings({"log_verbose_level": 0, "log_info": True})
        client.close()


@pytest.fixture
def client(pair_control: ControlPlane) -> InferenceServerClient:
    return InferenceServerClient(f"unix:{pair_control.cold_path}")


def test_trace_settings_are_read_and_changed_on_all(
    client: InferenceServerClient, clients: list[InferenceServerClient]
) -> None:
    assert client.get_trace_settings() == clients[0].get_trace_settings()
    answer = client.update_trace_settings(settings={"trace_rate": "7"})
    assert list(answer.settings["trace_rate"].value) == ["7"]
    for one in (client, *clients):
        assert list(one.get_trace_settings().settings["trace_rate"].value) == ["7"]


def test_trace_settings_of_a_model_are_its_own(
    client: InferenceServerClient, clients: list[InferenceServerClient]
) -> None:
    client.update_trace_settings("identity", settings={"trace_rate": "9"})
    for one in (client, *clients):
        assert list(one.get_trace_settings("identity").settings["trace_rate"].value) == ["9"]
        assert list(one.get_trace_settings().settings["trace_rate"].value) == ["1000"]
    client.update_trace_settings("identity", settings={"trace_rate": None})
    for one in (client, *clients):
        assert list(one.get_trace_settings("identity").settings["trace_rate"].value) == ["1000"]


def test_log_settings_are_read_and_changed_on_all(
    client: InferenceServerClient, clients: list[InferenceServerClient]
) -> None:
    assert client.get_log_settings() == clients[0].get_log_settings()
    client.update_log_settings({"log_info": False, "log_verbose_level": 1})
    for one in (client, *clients):
        settings = one.get_log_settings().settings
        assert settings["log_info"].bool_param is False
        assert settings["log_verbose_level"].uint32_param == 1


def test_what_triton_refuses_is_refused_in_its_words(
    pair_control: ControlPlane, pair: list[Cold], explicit_pair: Pair
) -> None:
    cold = Cold(pair_control.cold_channel)
    one, two = (triton.grpc_address for triton in explicit_pair)
    request = service_pb2.TraceSettingRequest()
    request.settings["trace_rate"].value.append("often")
    code, text = failure(lambda: cold.TraceSetting(request, timeout=TIMEOUT_S))
    theirs = failure(lambda: pair[0].TraceSetting(request, timeout=TIMEOUT_S))
    assert (code, text) == (theirs[0], f"{theirs[1]} (backends {one}, {two})")
    unknown = service_pb2.TraceSettingRequest(model_name="nope")
    ours = failure(lambda: cold.TraceSetting(unknown, timeout=TIMEOUT_S))
    assert ours == failure(lambda: pair[0].TraceSetting(unknown, timeout=TIMEOUT_S))


def rate(client: InferenceServerClient, model: str = "") -> list[str]:
    return list(client.get_trace_settings(model).settings["trace_rate"].value)


def test_a_backend_that_was_started_again_is_told_the_settings(
    client: InferenceServerClient,
    clients: list[InferenceServerClient],
    explicit_pair: Pair,
    pair_control: ControlPlane,
) -> None:
    client.load_model("identity")
    for value in ("3", "5"):
        client.update_trace_settings(settings={"trace_rate": value})
        client.update_trace_settings("identity", settings={"trace_rate": value + "0"})
    client.update_log_settings({"log_verbose_level": 1})
    client.update_log_settings({"log_info": False})
    # The control plane may have been started anew meanwhile.
    pair_control.kill()
    explicit_pair[1].kill()
    explicit_pair[1].start_ready()
    pair_control.start()

    one = InferenceServerClient(explicit_pair[1].grpc_address)
    with one:
        wait_until(lambda: rate(one) == ["5"], "the trace settings", START_TIMEOUT_S)
        wait_until(
            lambda: one.is_model_ready("identity") and rate(one, "identity") == ["50"],
            "the trace settings of the model, which was loaded again",
            START_TIMEOUT_S,
        )
        settings = one.get_log_settings().settings
        assert settings["log_info"].bool_param is False
        assert settings["log_verbose_level"].uint32_param == 1


def test_a_change_that_was_refused_is_not_repeated(
    client: InferenceServerClient, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    client.update_trace_settings(settings={"trace_rate": "7"})
    with pytest.raises(InferenceServerException):
        client.update_trace_settings(settings={"trace_rate": "often"})
    stored = ServerSettings(data_plane.runtime_directory).changes()
    assert [list(request.settings["trace_rate"].value) for _, request in stored] == [["7"]]


def test_a_backend_that_does_not_answer_is_passed_over(
    client: InferenceServerClient, explicit_pair: Pair
) -> None:
    explicit_pair[0].kill()
    # At any moment, whether its death has been noticed yet or not.
    for _ in range(5):
        assert client.get_log_settings(client_timeout=TIMEOUT_S).settings
