"""`infersched serve` without configuration: what clients of Triton ask, answered as by Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_client
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.dataplane import wait_until
from tests.held import infer_together
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_error, infer_request, output, rows

UNBATCHED_OR_PLAIN = (
    *("identity", "identity_bytes", "identity_small", "unbatched", "mixed", "slow", "ensemble"),
)


@pytest.fixture
def client(scheduler: ServedScheduler) -> Iterator[Any]:
    with triton_client.InferenceServerClient(scheduler.address) as opened:
        yield opened


@pytest.fixture
def direct(triton: EmbeddedTriton) -> Iterator[Any]:
    with triton_client.InferenceServerClient(triton.grpc_address) as opened:
        yield opened


def test_server_and_models_are_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity")
    assert client.is_model_ready("identity", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("identity", "7")


@pytest.mark.parametrize("model", UNBATCHED_OR_PLAIN)
def test_model_metadata_is_that_of_triton(model: str, client: Any, direct: Any) -> None:
    assert client.get_model_metadata(model) == direct.get_model_metadata(model)


@pytest.mark.parametrize("model", UNBATCHED_OR_PLAIN)
def test_model_config_is_that_of_triton(model: str, client: Any, direct: Any) -> None:
    ours, theirs = client.get_model_config(model).config, direct.get_model_config(model).config
    assert (ours.name, ours.max_batch_size) == (theirs.name, theirs.max_batch_size)
    assert list(ours.input) == list(theirs.input)
    assert list(ours.output) == list(theirs.output)


def test_server_metadata_names_triton(client: Any, direct: Any) -> None:
    ours, theirs = client.get_server_metadata(), direct.get_server_metadata()
    assert (ours.name, ours.version) == (theirs.name, theirs.version) == ("triton", "2.51.0")


def test_health_is_served_and_watched(scheduler: ServedScheduler) -> None:
    with grpc.insecure_channel(scheduler.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", "identity"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=30).status == serving
            watch = stub.Watch(request, timeout=30)
            assert next(watch).status == serving
            watch.cancel()


ERRORS = {
    "unknown model": infer_request(rows(1), model="nope"),
    "unknown version": infer_request(rows(1), version="7"),
    "version text": infer_request(rows(1), version="abc"),
    "wrong shape": infer_request(rows(1, 1, 8)),
    "unknown output": infer_request(rows(1), outputs=["X"]),
    "priority type": infer_request(rows(1), parameters={"priority": "high"}),
    "decoupled": infer_request(rows(1), model="decoupled"),
    "failing": infer_request(-rows(1), model="failing"),
    "failing step": infer_request(-rows(1), model="ensemble", request_id="a"),
    "wrong shape of an ensemble": infer_request(rows(1, 1, 8), model="ensemble"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_triton(
    name: str, scheduler: ServedScheduler, triton: EmbeddedTriton
) -> None:
    with connected(scheduler.address) as ours, connected(triton.grpc_address) as theirs:
        expected = infer_error(theirs, ERRORS[name])
        error = infer_error(ours, ERRORS[name])
    assert error.code() == expected.code()
    assert expected.details() in error.details()


def test_a_batch_beyond_the_models_limit_is_split(
    scheduler: ServedScheduler, triton: EmbeddedTriton
) -> None:
    """Triton refuses it; here it runs in parts."""
    values = rows(1, 100)
    request = infer_request(values, model="identity_small")
    with connected(triton.grpc_address) as theirs:
        assert infer_error(theirs, request).code() == grpc.StatusCode.INVALID_ARGUMENT
    with connected(scheduler.address) as ours:
        np.testing.assert_array_equal(output(ours.ModelInfer(request, timeout=30)), values)


@pytest.mark.parametrize("model", ["failing", "ensemble"])
def test_a_poisoned_neighbour_of_a_real_model_fails_alone(
    scheduler: ServedScheduler, model: str
) -> None:
    with connected(scheduler.address) as stub:
        values = [rows(n) if n % 10 else -rows(n + 1) for n in range(40)]
        calls = [
            stub.ModelInfer.future(infer_request(value, model=model), timeout=30)
            for value in values
        ]
        for n, (value, call) in enumerate(zip(values, calls, strict=True)):
            if n % 10:
                np.testing.assert_array_equal(output(call.result()), value)
            else:
                assert "negative number" in call.exception().details()


def test_optional_inputs_may_be_left_out(scheduler: ServedScheduler) -> None:
    with connected(scheduler.address) as stub:
        plain = infer_request(rows(1), model="optional")
        biased = infer_request(rows(1), model="optional")
        biased.inputs.add(name="BIAS", datatype="FP32", shape=[1, 16])
        biased.raw_input_contents.append(rows(5).tobytes())
        calls = [stub.ModelInfer.future(request, timeout=30) for request in [plain, biased] * 20]
        for n, call in enumerate(calls):
            expected = rows(1) + rows(5) if n % 2 else rows(1)
            np.testing.assert_array_equal(output(call.result()), expected)


def test_requests_of_an_ensemble_are_merged(
    scheduler: ServedScheduler, direct: Any, triton_repository: Path
) -> None:
    """Through both of its steps they go as one."""
    names = ("slow_ensemble", "slow", "identity")

    def counts() -> list[tuple[int, int]]:
        found = [direct.get_inference_statistics(name).model_stats[0] for name in names]
        return [(stats.inference_count, stats.execution_count) for stats in found]

    def grown() -> list[tuple[int, int]]:
        pairs = zip(counts(), before, strict=True)
        return [(now[0] - then[0], now[1] - then[1]) for now, then in pairs]

    before = counts()
    with connected(scheduler.address) as stub:
        requests = [infer_request(rows(n), model=names[0]) for n in range(200)]
        calls = infer_together(scheduler, stub, requests, triton_repository)
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n))
    # A Triton counts a request after it has answered it, and the run after that.
    wait_until(lambda: len({*grown()}) == 1 and grown()[0][0] == 200, "all agree on the rows")
    ((_, runs), *_) = grown()
    assert 4 <= runs < 20, "of 64 rows at most"


def test_an_ensemble_is_described_with_its_steps_and_they_are_counted(
    scheduler: ServedScheduler, triton: EmbeddedTriton
) -> None:
    described = service_pb2.ModelConfigRequest(name="ensemble")
    with connected(scheduler.address) as stub, connected(triton.grpc_address) as direct:
        config = stub.ModelConfig(described, timeout=30).config
        assert [step.model_name for step in config.ensemble_scheduling.step] == [
            "identity",
            "failing",
        ]
        assert config == direct.ModelConfig(described, timeout=30).config
        described.name = "sequence"
        assert stub.ModelConfig(described, timeout=30) == direct.ModelConfig(described, timeout=30)

        def counts(model: str) -> tuple[int, int, int]:
            asked = service_pb2.ModelStatisticsRequest(name=model)
            (found,) = stub.ModelStatistics(asked, timeout=30).model_stats
            success = found.inference_stats.success.count
            return found.inference_count, found.execution_count, success

        def grown(model: str) -> tuple[int, ...]:
            return tuple(a - b for a, b in zip(counts(model), before[model], strict=True))

        names = ("ensemble", "identity", "failing")
        before = {name: counts(name) for name in names}
        stub.ModelInfer(infer_request(rows(1, 3), model="ensemble"), timeout=30)
        stub.ModelInfer(infer_request(rows(1, 4)), timeout=30)
        # A Triton counts a request after it has answered it.
        wait_until(lambda: grown("identity") == (7, 2, 2), "both runs are counted")
        wait_until(lambda: grown("failing") == (3, 1, 1), "it is counted in the ensemble")
        assert grown("ensemble") == (3, 1, 1)
