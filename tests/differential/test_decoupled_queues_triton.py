"""Decoupled models queue at Triton, by its priority levels and queue policies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.streams import OpenStream, Request, index_of, int_request
from tests.wire.calls import connected

pytestmark = pytest.mark.e2e

SOURCE = Path(__file__).parent / "models" / "gated.py"
TIMEOUT_S = 60.0
BATCHER = """dynamic_batching { priority_levels: 2 default_priority_level: 2
    priority_queue_policy { key: 1 value { max_queue_size: 1 } } }"""


@pytest.fixture
def triton(needs_triton: None, tmp_path: Path) -> Iterator[EmbeddedTriton]:
    repository = tmp_path / "models"
    models.write_model(
        repository,
        "gated",
        source=SOURCE,
        inputs=[models.Tensor("COUNT", "INT32", (1,))],
        outputs=[models.Tensor("INDEX", "INT32", (1,))],
        max_batch_size=1,
        parameters={name: str(tmp_path / name) for name in ("begun", "gate")},
        decoupled=True,
    )
    path = repository / "gated" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.MergeFrom(text_format.Parse(BATCHER, model_config_pb2.ModelConfig()))
    path.write_text(text_format.MessageToString(config))
    with EmbeddedTriton(repository) as triton:
        yield triton


def request(name: str, priority: int = 0) -> Request:
    asked = int_request("gated", name, COUNT=1)
    if priority:
        asked.parameters["priority"].uint64_param = priority
    return asked


def converse_with(address: str, directory: Path) -> tuple[str, str, list[tuple[str, int]]]:
    """Who is refused and how; then who is answered, with the place in the order of execution."""
    begun, gate = directory / "begun", directory / "gate"
    begun.write_text("")
    gate.unlink(missing_ok=True)
    with connected(address) as stub, OpenStream(stub, timeout=TIMEOUT_S) as stream:
        stream.send(request("running"))
        wait_until(lambda: begun.read_text() != "", "the model is busy", TIMEOUT_S)
        stream.send(request("low 1"), request("low 2", 2))
        # Their level has one place: who is refused there shows that the other one is queued.
        stream.send(request("high", 1), request("too many", 1))
        refused = stream.read()
        gate.write_text("open")
        answers = stream.read_many(4)
        stream.half_close()
    first = min(index_of(message) for message in answers)
    order = [(m.infer_response.id, index_of(m) - first) for m in answers]
    return refused.infer_response.id, refused.error_message, order


@pytest.mark.parametrize("batching", ["own", "triton"])
def test_priorities_and_full_queues(triton: EmbeddedTriton, tmp_path: Path, batching: str) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text(
        f"backends: ['{triton.grpc_address}']\nmodels: {{gated: {{batching: {batching}}}}}\n"
    )
    straight = converse_with(triton.grpc_address, tmp_path)
    assert straight[0] == "too many"
    assert [name for name, _ in straight[2]] == ["running", "high", "low 1", "low 2"]
    with ServedScheduler(["--config", str(config)]) as served:
        assert converse_with(served.address, tmp_path) == straight
