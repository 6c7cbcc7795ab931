"""gzip and deflate on both sides of the scheduler, against a Triton that compresses as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, output
from tests.wire.proxy import Proxy

WIDTH = 100_000
PLAIN_BYTES = 4 * WIDTH
# Of the messages of these tests and all that goes beside them.
COMPRESSED_BYTES_MAX = PLAIN_BYTES // 4


@pytest.fixture(scope="module")
def compressing(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    """A Triton that compresses its answers."""
    repository = tmp_path_factory.mktemp("wide")
    models.identity(repository, dims=(WIDTH,))
    arguments = ["--grpc-infer-response-compression-level=high"]
    with EmbeddedTriton(repository, extra_arguments=arguments) as running:
        yield running


@pytest.fixture(scope="module", params=["gzip", "deflate"])
def served(
    request: pytest.FixtureRequest,
    compressing: EmbeddedTriton,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Proxy, Proxy]]:
    """Proxies before and behind a scheduler that compresses both ways."""
    config_file = tmp_path_factory.mktemp("config") / "config.yaml"
    with Proxy(compressing.grpc_address) as behind:
        backend = {"address": behind.address, "compression": request.param}
        server = {"response_compression": request.param}
        config_file.write_text(yaml.safe_dump({"server": server, "backends": [backend]}))
        with (
            ServedScheduler(["--config", str(config_file)]) as scheduler,
            Proxy(scheduler.address) as before,
        ):
            yield before, behind


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    """One row that compresses well and is not all the same."""
    return (np.arange(WIDTH, dtype=np.float32) // 500).reshape(1, WIDTH)


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_tensors_are_the_same_and_fewer_bytes_travel(
    served: tuple[Proxy, Proxy], algorithm: str | None
) -> None:
    before, behind = served
    tensor = triton.InferInput("INPUT0", [1, WIDTH], "FP32")
    tensor.set_data_from_numpy(values())
    with triton.InferenceServerClient(before.address) as client:
        counts = [before.bytes_up, before.bytes_down, behind.bytes_up, behind.bytes_down]
        result = client.infer("identity", [tensor], compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values())
    up, down = before.bytes_up - counts[0], before.bytes_down - counts[1]
    assert (up < COMPRESSED_BYTES_MAX) == (algorithm is not None)
    assert down < COMPRESSED_BYTES_MAX
    assert 0 < behind.bytes_up - counts[2] < COMPRESSED_BYTES_MAX
    assert 0 < behind.bytes_down - counts[3] < COMPRESSED_BYTES_MAX


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_streams_are_compressed_as_well(
    served: tuple[Proxy, Proxy], algorithm: grpc.Compression
) -> None:
    before, _ = served
    with connected(before.address) as stub:
        counts = before.bytes_up, before.bytes_down
        requests = iter([infer_request(values(), request_id=str(i)) for i in range(4)])
        replies = list(stub.ModelStreamInfer(requests, timeout=60, compression=algorithm))
    assert [reply.error_message for reply in replies] == [""] * 4
    for reply in replies:
        np.testing.assert_array_equal(output(reply.infer_response), values())
    assert before.bytes_up - counts[0] < 4 * COMPRESSED_BYTES_MAX
    assert before.bytes_down - counts[1] < 4 * COMPRESSED_BYTES_MAX


def test_a_client_that_accepts_nothing_gets_plain_answers(served: tuple[Proxy, Proxy]) -> None:
    before, _ = served
    options = [("grpc.compression_enabled_algorithms_bitset", 1)]
    with grpc.insecure_channel(before.address, options=options) as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        down = before.bytes_down
        reply = stub.ModelInfer(infer_request(values()), timeout=60)
        np.testing.assert_array_equal(output(reply), values())
    assert before.bytes_down - down >= PLAIN_BYTES
