"""Statistics, loading and unloading through the whole of the scheduler, by tritonclient."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.held import infer_together
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_error, infer_request, output, rows

LOAD_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def explicit_repository(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("explicit")
    models.identity(repository)
    models.slow(repository, per_execution_s=0.02, lock=repository / models.SLOW_LOCK)
    return repository


@pytest.fixture(scope="module")
def served(explicit_repository: Path) -> Iterator[ServedScheduler]:
    """Two Tritons that load what they are told to, behind a scheduler."""
    load = ["--load-model=slow", "--load-model=identity"]
    with (
        EmbeddedTriton(
            explicit_repository, model_control_mode="explicit", extra_arguments=load
        ) as a,
        EmbeddedTriton(
            explicit_repository, model_control_mode="explicit", extra_arguments=load
        ) as b,
        ServedScheduler(["--backend", a.grpc_address, "--backend", b.grpc_address]) as scheduler,
    ):
        yield scheduler


@pytest.fixture
def client(served: ServedScheduler) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(served.address) as client:
        yield client


def test_statistics_are_of_the_requests_and_not_of_the_batches(
    served: ServedScheduler, client: InferenceServerClient, explicit_repository: Path
) -> None:
    def count(headers: dict[str, str] | None = None) -> tuple[int, int, int]:
        found = client.get_inference_statistics("slow", headers=headers).model_stats[0]
        success = found.inference_stats.success.count
        return found.inference_count, found.execution_count, success

    backends = {"infersched-statistics": "backends"}
    ours, theirs = count(), count(backends)
    with connected(served.address) as stub:
        requests = [infer_request(rows(n, 2), model="slow") for n in range(100)]
        infer_together(served, stub, requests, explicit_repository)
    grown = [after - before for before, after in zip(ours, count(), strict=True)]
    assert (grown[0], grown[2]) == (200, 100)
    assert 4 <= grown[1] < 20, "they were merged into batches of up to 64 rows"

    def grown_there() -> list[int]:
        return [after - before for before, after in zip(theirs, count(backends), strict=True)]

    # A Triton counts a request after it has answered it.
    wait_until(lambda: grown_there() == [200, grown[1], grown[1]], "the Tritons saw the batches")
    stats = client.get_inference_statistics("slow").model_stats[0]
    assert sum(b.compute_infer.count for b in stats.batch_stats) == stats.execution_count
    assert sum(b.compute_infer.count * b.batch_size for b in stats.batch_stats) == (
        stats.inference_count
    )
    listed = {model.name for model in client.get_inference_statistics().model_stats}
    assert listed == {"identity", "slow"}


def test_nothing_that_was_admitted_is_lost_by_unloads_and_loads(
    served: ServedScheduler, client: InferenceServerClient
) -> None:
    """A request is answered in full, or refused because the model is not there."""
    stop = threading.Event()
    answered: list[int] = []
    refused: list[int] = []
    odd: list[str] = []

    def ask(number: int) -> None:
        with connected(served.address) as stub:
            while not stop.is_set():
                values = rows(number, 1 + number % 3)
                try:
                    reply = stub.ModelInfer(infer_request(values, model="slow"), timeout=60)
                except grpc.RpcError as error:
                    refused.append(number)
                    if (
                        error.code() is not grpc.StatusCode.NOT_FOUND
                        or "slow" not in error.details()
                    ):
                        odd.append(f"{error.code()}: {error.details()}")
                    stop.wait(0.005)
                    continue
                if not np.array_equal(output(reply), values):
                    odd.append("the reply of another")
                answered.append(number)

    def wait_for_refusals(since: int) -> None:
        everyone = set(range(16))
        wait_until(lambda: set(refused[since:]) == everyone or bool(odd), "refusals", 60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            goal = len(answered) + 50
            wait_until(lambda goal=goal: len(answered) >= goal or bool(odd), "answers", 60)
            client.unload_model("slow", client_timeout=LOAD_TIMEOUT_S)
            assert not client.is_model_ready("slow")
            # Once each of them was refused, no reply from before can be on its way any more.
            wait_for_refusals(len(refused))
            before = len(answered)
            wait_for_refusals(len(refused))
            assert len(answered) == before, "nothing runs after an unload"
            client.load_model("slow", client_timeout=LOAD_TIMEOUT_S)
            assert client.is_model_ready("slow")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert odd == []
    assert not any(thread.is_alive() for thread in threads)


def test_an_override_changes_what_the_scheduler_merges(
    served: ServedScheduler, client: InferenceServerClient
) -> None:
    config = client.get_model_config("identity", as_json=True)["config"]
    try:
        client.load_model(
            "identity",
            config=json.dumps({**config, "max_batch_size": 4}),
            client_timeout=LOAD_TIMEOUT_S,
        )
        assert client.get_model_config("identity").config.max_batch_size == 4
        with connected(served.address) as stub:
            values = rows(1, 9)
            reply = stub.ModelInfer(infer_request(values), timeout=60)
            np.testing.assert_array_equal(output(reply), values)
        sizes = client.get_inference_statistics("identity").model_stats[0].batch_stats
        assert {4, 1} <= {size.batch_size for size in sizes}
    finally:
        # Triton keeps an override until the model is unloaded.
        client.unload_model("identity", client_timeout=LOAD_TIMEOUT_S)
        client.load_model("identity", client_timeout=LOAD_TIMEOUT_S)
    assert client.get_model_config("identity").config.max_batch_size == 64


def test_the_embedded_triton_can_be_told_to_load_nothing_but(
    explicit_repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "embedded: {model_control_mode: explicit, load_models: [identity], compression: gzip}\n"
    )
    arguments = ["--embedded", str(explicit_repository), "--config", str(path)]
    with ServedScheduler(arguments) as served, InferenceServerClient(served.address) as client:
        index = client.get_model_repository_index()
        assert {m.name: m.state for m in index.models} == {"identity": "READY", "slow": ""}
        client.load_model("slow", client_timeout=LOAD_TIMEOUT_S)
        with connected(served.address) as stub:
            reply = stub.ModelInfer(infer_request(rows(3), model="slow"), timeout=60)
            np.testing.assert_array_equal(output(reply), rows(3))


def test_a_version_that_a_load_replaced_is_gone_with_its_answer(
    served: ServedScheduler, client: InferenceServerClient, explicit_repository: Path
) -> None:
    model = explicit_repository / "identity"
    shutil.copytree(model / "1", model / "3")
    try:
        client.load_model("identity", client_timeout=LOAD_TIMEOUT_S)
        assert list(client.get_model_metadata("identity").versions) == ["3"]
        with connected(served.address) as stub:
            error = infer_error(stub, infer_request(rows(1), version="1"))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert error.details() == "Request for unknown model: 'identity' version 1 is not found"
            np.testing.assert_array_equal(output(stub.ModelInfer(infer_request(rows(3)))), rows(3))
    finally:
        shutil.rmtree(model / "3")
        client.load_model("identity", client_timeout=LOAD_TIMEOUT_S)
    assert list(client.get_model_metadata("identity").versions) == ["1"]
