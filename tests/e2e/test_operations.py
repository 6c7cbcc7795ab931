"""What operators see: metrics as Prometheus reads them, and errors of the configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton, free_port
from tests.dataplane import wait_until
from tests.held import infer_together, slow_model_held
from tests.scrapes import scrape, total
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_error, infer_request, output, rows


def growth(scheduler: ServedScheduler, act: Callable[[], object]) -> Callable[..., float]:
    """How much a counter grew while `act` ran."""
    before = scrape(scheduler.metrics_url)
    act()
    after = scrape(scheduler.metrics_url)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    return grown


def test_requests_are_counted_by_outcome(scheduler: ServedScheduler) -> None:
    def act() -> None:
        with connected(scheduler.address) as stub:
            calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(50)]
            for call in calls:
                call.result()
            infer_error(stub, infer_request(rows(1, 1, 8)))
            infer_error(stub, infer_request(-rows(1), model="failing"))

    grown = growth(scheduler, act)
    name = "infersched_requests_total"
    assert grown(name, model="identity", outcome="completed") == 50
    assert grown(name, model="identity", outcome="refused", reason="invalid") == 1
    assert grown(name, model="failing", outcome="failed", reason="backend_error") == 1
    assert grown("infersched_request_seconds_count", model="identity") == 50


def test_batches_are_counted_as_their_backend_counts_them(
    scheduler: ServedScheduler, triton: EmbeddedTriton, triton_repository: Path
) -> None:
    def counts() -> tuple[int, int]:
        asked = service_pb2.ModelStatisticsRequest(name="slow")
        (found,) = direct.ModelStatistics(asked, timeout=30).model_stats
        return found.inference_count, found.execution_count

    with connected(scheduler.address) as stub, connected(triton.grpc_address) as direct:
        rows_before, runs_before = counts()
        requests = [infer_request(rows(n), model="slow") for n in range(50)]
        grown = growth(
            scheduler, lambda: infer_together(scheduler, stub, requests, triton_repository)
        )
        batches = grown("infersched_batch_rows_count", model="slow")
        assert 1 <= batches < 10, "one row for a free executor, what is staged, then the rest"
        assert grown("infersched_batches_total", model="slow") == batches
        assert grown("infersched_batch_rows_sum", model="slow") == 50
        expected = (rows_before + 50, runs_before + batches)
        # A Triton counts a request after it has answered it.
        wait_until(lambda: counts() == expected, "Triton counts the same")


def test_the_ledger_balances(scheduler: ServedScheduler) -> None:
    samples = scrape(scheduler.metrics_url)
    imbalances = [
        value for (name, _), value in samples.items() if name == "infersched_ledger_imbalance"
    ]
    assert imbalances
    assert set(imbalances) == {0.0}


def test_every_sample_is_finite_and_prefixed(scheduler: ServedScheduler) -> None:
    for (name, labels), value in scrape(scheduler.metrics_url).items():
        assert name.startswith(("infersched_", "python_", "process_")), name
        assert np.isfinite(value), (name, labels)


def test_a_real_prometheus_takes_the_metrics(scheduler: ServedScheduler, tmp_path: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus: apt-get install prometheus to test with it")
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        "scrape_configs:\n"
        "  - job_name: infersched\n"
        f"    static_configs: [{{targets: ['{scheduler.metrics_address}']}}]\n"
    )
    command = [binary, f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with connected(scheduler.address) as stub:
            stub.ModelInfer(infer_request(rows(1)), timeout=30)
        query = "sum(infersched_requests_total)"
        url = f"http://{address}/api/v1/query?query={query}"
        wait_until(lambda: bool(query_result(url)), "Prometheus has a value")

        def up() -> list[str]:
            found = query_result(f"http://{address}/api/v1/query?query=up")
            return [entry["value"][1] for entry in found]

        # On a busy machine a scrape may be late.
        wait_until(lambda: up() == ["1"], "it has taken all")
    finally:
        process.terminate()
        process.wait(60)


def query_result(url: str) -> list[Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            result: list[Any] = json.load(response)["data"]["result"]
            return result
    except OSError:
        return []


BAD_CONFIGURATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": (
        "server:\n  lissten: 127.0.0.1:0\n",
        ("server.lissten", "listen"),
    ),
    "unit": ("defaults:\n  max_queue_delay: 5 parsecs\n", ("defaults.max_queue_delay",)),
    "contradiction": (
        "defaults:\n  max_queue_delay: 50ms\n  slo: 10ms\n",
        ("max_queue_delay", "slo"),
    ),
    "not yaml": ("server: [\n", ("config.yaml",)),
    "backend": ("backends: [nohost]\n", ("backends",)),
}


@pytest.mark.parametrize("name", BAD_CONFIGURATIONS)
def test_a_bad_configuration_names_the_key_and_exits_2(name: str, tmp_path: Path) -> None:
    text, mentions = BAD_CONFIGURATIONS[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(path)]
    command += ["--listen", "127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2, ended.stderr
    for mention in mentions:
        assert mention in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_configuration_of_a_model_takes_effect(
    triton: EmbeddedTriton, triton_repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "models:\n"
        "  slow: {max_queue_requests: 1, staged_batches: 0, merge: false}\n"
        "  identity: {max_batch_rows: 4}\n"
    )
    arguments = ["--backend", triton.grpc_address, "--config", str(path)]
    with ServedScheduler(arguments) as served, connected(served.address) as stub:
        with slow_model_held(triton_repository):
            calls = [
                stub.ModelInfer.future(infer_request(rows(n), model="slow"), timeout=60)
                for n in range(10)
            ]
            wait_until(lambda: sum(call.done() for call in calls) >= 8, "all others are refused")
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 8
        assert codes.count(grpc.StatusCode.OK) >= 1
        values = rows(1, 10)
        np.testing.assert_array_equal(
            output(stub.ModelInfer(infer_request(values), timeout=30)), values
        )
        samples = scrape(served.metrics_url)
        assert total(samples, "infersched_batch_rows_count", model="identity") == 3


def test_the_embedded_triton_is_started_and_ended_with_the_scheduler(
    small_repository: Path,
) -> None:
    with ServedScheduler(["--embedded", str(small_repository)]) as served:
        with connected(served.address) as stub:
            response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(1))
        triton = served.child("tritonserver")
        triton.kill()
        wait_until(lambda: not served.ready(), "its death is seen")
        served.wait_ready(60)
        with connected(served.address) as stub:
            response = stub.ModelInfer(infer_request(rows(2)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(2))
        family = served.process.children(recursive=True)
        assert served.terminate() == 0
        assert not any(one.is_running() for one in family)
