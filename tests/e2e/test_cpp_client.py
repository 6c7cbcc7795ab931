"""Triton's C++ client, as perf_analyzer uses it: through the scheduler as straight to a Triton.

The first request that fails, or has another answer than the input data says, ends it with an error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import perf_analyzer
from tests.certificates import Files
from tests.dataplane import wait_until
from tests.perf_analyzer import Report, analyze
from tests.serving import ServedScheduler
from tests.wire.calls import Stub, connected

ROW = [float(n) for n in range(16)]
# Inputs, and the outputs that they have to have. Rows take turns.
INPUTS: dict[str, dict[str, Any]] = {
    "rows": {
        "data": [{"INPUT0": ROW}, {"INPUT0": ROW[::-1]}],
        "validation_data": [{"OUTPUT0": ROW}, {"OUTPUT0": ROW[::-1]}],
    },
    "wrong": {"data": [{"INPUT0": ROW}], "validation_data": [{"OUTPUT0": ROW[::-1]}]},
    "negative": {"data": [{"INPUT0": [-1.0] * 16}]},
    "texts": {
        "data": [{"INPUT0": ["one", "twenty-two"]}, {"INPUT0": ["", "3"]}],
        "validation_data": [{"OUTPUT0": ["one", "twenty-two"]}, {"OUTPUT0": ["", "3"]}],
    },
    "sums": {
        "data": [[{"VALUE": [5]}, {"VALUE": [20]}, {"VALUE": [-3]}]],
        "validation_data": [[{"SUM": [5]}, {"SUM": [25]}, {"SUM": [22]}]],
    },
    "wrong sums": {
        "data": [[{"VALUE": [5]}, {"VALUE": [20]}]],
        "validation_data": [[{"SUM": [5]}, {"SUM": [20]}]],
    },
    "three": {"data": [{"COUNT": [3]}]},
}
# The model and how it is asked.
TWO_AT_A_TIME = ("--concurrency-range", "2")
LOADS: dict[str, tuple[str, ...]] = {
    "levels": ("identity", "--input-data=rows", "--concurrency-range", "1:4:3"),
    "asynchronous": ("identity", "--input-data=rows", "--async", "--concurrency-range", "4"),
    "stream": ("identity", "--input-data=rows", "--streaming", "--concurrency-range", "3"),
    "texts": ("identity_bytes", "--input-data=texts", *TWO_AT_A_TIME),
    "gzip": ("identity", "--input-data=rows", "--grpc-compression-algorithm=gzip", *TWO_AT_A_TIME),
    "deflate": ("mixed", "-b", "4", "--grpc-compression-algorithm=deflate", *TWO_AT_A_TIME),
    "shared memory": ("mixed", "-b", "4", "--shared-memory=system", *TWO_AT_A_TIME),
    "rate": ("identity", "--input-data=rows", "--request-rate-range", "150",
             "--request-distribution=poisson"),
    "intervals": ("identity", "--input-data=rows", "--request-intervals=intervals"),
    "sequences": ("sequence", "--input-data=sums", "--streaming", "--concurrency-range", "3"),
    # Its answers are not checked: at a rate it expects that of the request it sent last.
    "sequences at a rate": ("sequence", "--sequence-length", "4", "--request-rate-range", "150",
                            "--num-of-sequences", "3", "--sequence-id-range", "1000:2000",
                            "--serial-sequences"),
    "decoupled": ("decoupled", "--input-data=three", "--streaming", *TWO_AT_A_TIME),
    "ensemble": ("ensemble", "--input-data=rows", *TWO_AT_A_TIME),
    "parameters": ("identity", "-x", "1", "--request-parameter", "words:3:int", *TWO_AT_A_TIME),
}  # fmt: skip
LEVELS = {"levels": 2}
FAILURES: dict[str, tuple[tuple[str, ...], str]] = {
    "failing": (
        ("failing", "--input-data=negative", *TWO_AT_A_TIME),
        "has a negative number",
    ),
    "failing on a stream": (
        ("failing", "--input-data=negative", "--streaming", *TWO_AT_A_TIME),
        "has a negative number",
    ),
    "another answer": (("identity", "--input-data=wrong"), "Output doesn't match expected output"),
    "another sum": (
        ("sequence", "--input-data=wrong sums", "--streaming", *TWO_AT_A_TIME),
        "Output doesn't match expected output",
    ),
    "unknown model": (("nope",), "Request for unknown model: 'nope' is not found"),
    "unknown version": (("identity", "-x", "7"), "'identity' version 7 is not found"),
}


@pytest.fixture(scope="module", autouse=True)
def _client(needs_triton: None) -> None:
    if not perf_analyzer.installed():
        pytest.skip("no C++ client: make setup installs it where PyPI has it")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that arguments name."""
    directory = tmp_path_factory.mktemp("inputs")
    for name, content in INPUTS.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "intervals").write_text("2000\n6000\n4000\n")
    return directory


def run(address: str, files: Path, load: tuple[str, ...], work: Path, *more: str) -> Report:
    """With the paths of the files that the load names."""
    model, *arguments = load
    for number, argument in enumerate(arguments):
        option, is_named, name = argument.partition("=")
        if option in ("--input-data", "--request-intervals") and is_named:
            arguments[number] = f"{option}={files / name}"
    return analyze(address, model, *arguments, *more, work=work)


def failures(address: str, model: str) -> int:
    """What ModelStatistics counts as failed, cancelled or refused."""
    with connected(address) as stub:
        request = service_pb2.ModelStatisticsRequest(name=model)
        (found,) = stub.ModelStatistics(request, timeout=30).model_stats
        return int(found.inference_stats.fail.count)


def check(report: Report, load: tuple[str, ...], levels: int) -> None:
    """All was answered, and what the server says of it fits."""
    assert report.returncode == 0, report.text
    if load[0] != "sequence":  # whose last ones it ends with values that its data does not have
        assert report.errors() == set(), report.text
    assert len(report.levels) == len(report.experiments) == levels
    for level in report.levels:
        assert float(level["Inferences/Second"]) > 0, report.text
        # Its difference of ModelStatistics before and after.
        assert int(level["Server Compute Infer"]) > 0, report.text
    responses = 4 if load[0] == "decoupled" else 1  # the last one is the empty final one
    for experiment in report.experiments:
        assert experiment["requests"]
        answered = [len(sent["response_timestamps"]) for sent in experiment["requests"]]
        assert set(answered) == {responses}
    inferences = report.figures("Inference count")  # of an ensemble, those of its steps too
    requests = report.figures("Successful request count")
    assert len(inferences) == len(requests) == (3 if load[0] == "ensemble" else levels)
    assert min(requests) > 0
    if "-b" in load:
        assert all(count % 4 == 0 for count in inferences)


@pytest.mark.parametrize("name", LOADS)
def test_loads_are_answered_as_by_triton(
    scheduler: ServedScheduler, triton: EmbeddedTriton, files: Path, tmp_path: Path, name: str
) -> None:
    load = LOADS[name]
    before = failures(scheduler.address, load[0])
    for address in (triton.grpc_address, scheduler.address):
        report = run(address, files, load, tmp_path / address)
        check(report, load, LEVELS.get(name, 1))
        # Not so of Triton, which reads its two counts one after the other while requests end.
        if "-b" in load and address == scheduler.address:
            requests = report.figures("Successful request count")
            assert report.figures("Inference count") == [4 * count for count in requests]
    assert failures(scheduler.address, load[0]) == before


@pytest.mark.parametrize("name", FAILURES)
def test_errors_show_as_those_of_triton(
    scheduler: ServedScheduler, triton: EmbeddedTriton, files: Path, tmp_path: Path, name: str
) -> None:
    load, words = FAILURES[name]
    straight, scheduled = (
        run(address, files, load, tmp_path / address)
        for address in (triton.grpc_address, scheduler.address)
    )
    assert words in straight.text
    assert scheduled.returncode == straight.returncode != 0
    assert scheduled.errors() == straight.errors()
    assert words in scheduled.text
    assert scheduled.levels == straight.levels == []


@pytest.fixture(scope="module")
def secured(
    triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServedScheduler, Files]]:
    """A scheduler that asks clients for certificates."""
    files = Files(tmp_path_factory.mktemp("certificates"))
    tls = {
        "certificate": str(files.server_certificate),
        "key": str(files.server_key),
        "client_ca": str(files.ca),
    }
    config_file = files.directory / "config.yaml"
    config = {"backends": [triton.grpc_address], "server": {"tls": tls}}
    config_file.write_text(yaml.safe_dump(config))
    with (
        ServedScheduler(["--config", str(config_file)], wait_ready=False) as served,
        grpc.secure_channel(served.address, files.channel_credentials(with_client=True)) as channel,
    ):
        wait_until(lambda: server_ready(Stub(channel)), "it is ready", timeout_s=60)
        yield served, files


def server_ready(stub: Stub) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=1).ready)
    return False


@pytest.mark.parametrize("name", ["levels", "stream"])
def test_loads_are_answered_over_mutual_tls(
    secured: tuple[ServedScheduler, Files], files: Path, tmp_path: Path, name: str
) -> None:
    served, certificates = secured
    trust = [
        "--ssl-grpc-use-ssl",
        f"--ssl-grpc-root-certifications-file={certificates.ca}",
        f"--ssl-grpc-private-key-file={certificates.client_key}",
        f"--ssl-grpc-certificate-chain-file={certificates.client_certificate}",
    ]
    check(
        run(served.address, files, LOADS[name], tmp_path, *trust), LOADS[name], LEVELS.get(name, 1)
    )
