"""Tritons that die, leave, stop and come back under load, and what clients see of it: nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_client
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.dataplane import wait_until
from tests.load import CALL_TIMEOUT_S, CLIENTS, load
from tests.serving import ServedScheduler
from tests.wire.calls import (
    connected,
    error_info,
    infer_error,
    infer_request,
    output,
    pushback_ms,
    rows,
)

Pair = tuple[EmbeddedTriton, EmbeddedTriton]


@pytest.fixture
def served(tritons: Pair) -> Iterator[ServedScheduler]:
    """A scheduler before both Tritons."""
    addresses = [argument for one in tritons for argument in ("--backend", one.grpc_address)]
    with ServedScheduler(addresses) as scheduler:
        yield scheduler


def executed_rows(triton: EmbeddedTriton, model: str = "identity") -> int:
    with connected(triton.grpc_address) as stub:
        request = service_pb2.ModelStatisticsRequest(name=model)
        return int(stub.ModelStatistics(request, timeout=30).model_stats[0].inference_count)


def wait_used(triton: EmbeddedTriton, model: str = "identity") -> None:
    """Waits until the scheduler sends requests there."""
    before = executed_rows(triton, model)
    wait_until(lambda: executed_rows(triton, model) > before, "it is used")


def test_a_killed_triton_costs_no_request_and_rejoins(
    tritons: Pair, served: ServedScheduler
) -> None:
    _, two = tritons
    with load(served.address) as seen:
        wait_used(two)
        two.kill()
        seen.wait_answers(100)
        two.start_ready()
        wait_used(two)
    assert seen.errors == []


def test_a_triton_that_is_terminated_costs_no_request_and_rejoins(
    tritons: Pair, served: ServedScheduler
) -> None:
    """With work running there: after SIGTERM it finishes that and denies its models."""
    _, two = tritons
    with (
        load(served.address) as seen,
        load(served.address, model="slow") as slow,
        load(served.address, model="ensemble") as ensemble,
    ):
        wait_used(two, "slow")
        wait_used(two, "ensemble")
        two.terminate()
        seen.wait_answers(100)
        two.start_ready()
        wait_used(two)
    assert seen.errors == []
    assert slow.errors == []
    assert ensemble.errors == []


def test_a_stopped_triton_is_noticed_within_about_a_second(
    tritons: Pair, served: ServedScheduler
) -> None:
    _, two = tritons
    pid = two.pid
    assert pid is not None
    with load(served.address) as seen:
        wait_used(two)
        os.killpg(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            answered_before = seen.answered
            # Every client has at most one request out: all of them are free again soon.
            seen.wait_answers(3 * CLIENTS)
            elapsed_s = time.monotonic() - started
        finally:
            os.killpg(pid, signal.SIGCONT)
        wait_used(two)
    assert seen.errors == []
    assert seen.answered > answered_before
    assert elapsed_s < CALL_TIMEOUT_S / 2


def test_the_only_triton_dies_and_comes_back(small_triton: EmbeddedTriton) -> None:
    """Requests wait a moment for it; then they are refused with the time to retry."""
    with (
        ServedScheduler(["--backend", small_triton.grpc_address]) as served,
        connected(served.address) as stub,
    ):
        stub.ModelInfer(infer_request(rows(1)), timeout=30)
        small_triton.kill()
        wait_until(lambda: not served.ready(), "readiness is false")
        error = infer_error(stub, infer_request(rows(1)), timeout=30)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert error_info(error).reason == "NO_BACKEND"
        error = infer_error(stub, infer_request(rows(1)), timeout=30)
        assert pushback_ms(error) == 1000
        small_triton.start_ready()
        wait_until(served.ready, "readiness is true again")
        response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(2))


def test_a_triton_that_is_down_at_start_is_waited_for(small_triton: EmbeddedTriton) -> None:
    small_triton.kill()
    arguments = ["--backend", small_triton.grpc_address]
    with (
        ServedScheduler(arguments, wait_ready=False) as served,
        triton_client.InferenceServerClient(served.address) as client,
        connected(served.address) as stub,
    ):
        wait_until(lambda: is_live(client), "it serves its own calls")
        assert not client.is_server_ready()
        error = infer_error(stub, infer_request(rows(1)), timeout=30)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert small_triton.grpc_address in served.log_tail(), "it is reported"
        small_triton.start_ready()
        wait_until(client.is_server_ready, "it is found")
        response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(1))


def is_live(client: triton_client.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=1.0))
    except Exception:  # not listening yet, or the control plane is still coming
        return False
