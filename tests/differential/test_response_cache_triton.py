"""Requests that Triton has in its response cache, straight and through."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends import triton_install
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import Stub, connected, infer_request, rows

pytestmark = pytest.mark.e2e

TIMEOUT_S = 60.0
ROUNDS, DISTINCT = 3, 4


def ask(stub: Stub) -> list[service_pb2.ModelInferResponse]:
    """The same few requests, at once, again and again."""
    answers = []
    for _ in range(ROUNDS):
        asked = [infer_request(rows(n + 1), model="identity") for n in range(DISTINCT)]
        calls = [stub.ModelInfer.future(request, timeout=TIMEOUT_S) for request in asked]
        answers += [call.result() for call in calls]
    return answers


def hits(stub: Stub) -> tuple[int, int]:
    """Of the cache, and those that were not."""
    asked = service_pb2.ModelStatisticsRequest(name="identity")
    told = stub.ModelStatistics(asked, timeout=TIMEOUT_S).model_stats[0].inference_stats
    return told.cache_hit.count, told.cache_miss.count


def test_what_was_asked_before_comes_from_the_cache(needs_triton: None, tmp_path: Path) -> None:
    found = triton_install.locate()
    assert found is not None
    models.identity(tmp_path)
    path = tmp_path / "identity" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.response_cache.enable = True
    path.write_text(text_format.MessageToString(config))
    caches = found.server.parents[1] / "caches"
    arguments = ["--cache-config=local,size=4194304", f"--cache-directory={caches}"]
    with (
        EmbeddedTriton(tmp_path, extra_arguments=arguments) as triton,
        connected(triton.grpc_address) as straight,
    ):
        expected = ask(straight)
        known = (2 * DISTINCT, DISTINCT)
        wait_until(lambda: hits(straight) == known, "the cache has answered", TIMEOUT_S)
        with (
            ServedScheduler(["--backend", triton.grpc_address]) as served,
            connected(served.address) as through,
        ):
            assert ask(through) == expected
        known = (5 * DISTINCT, DISTINCT)
        wait_until(lambda: hits(straight) == known, "it has answered all", TIMEOUT_S)
