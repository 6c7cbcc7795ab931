"""What hardly merges, straight and through: replies that cannot be split, class results with
labels, forwarded headers, and sequences that Triton batches by the strategy `oldest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.streams import converse, sequence_request, sum_of
from tests.wire.calls import Stub, connected

pytestmark = pytest.mark.e2e

SOURCES = Path(__file__).parent / "models"
TIMEOUT_S = 60.0
Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse


def change(repository: Path, name: str, text: str) -> None:
    """Merges the text into the model's configuration."""
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.MergeFrom(text_format.Parse(text, model_config_pb2.ModelConfig()))
    path.write_text(text_format.MessageToString(config))


def write_repository(repository: Path) -> None:
    for name, output in (
        ("aggregate", models.Tensor("TOTAL", dims=(1,))),
        ("parameters", models.Tensor("SEEN", "BYTES", (1,))),
    ):
        models.write_model(
            repository,
            name,
            source=SOURCES / f"{name}.py",
            inputs=[models.Tensor("A", dims=(1,))],
            outputs=[output],
            max_batch_size=8,
        )
    models.identity(repository, "labelled", dims=(3,))
    path = repository / "labelled" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.output[0].label_filename = "labels.txt"
    path.write_text(text_format.MessageToString(config))
    (repository / "labelled" / "labels.txt").write_text("cat\ndog\nowl\n")
    models.sequence(repository, "oldest")
    change(repository, "oldest", "sequence_batching { oldest { max_candidate_sequences: 4 } }")


@pytest.fixture(scope="module")
def stubs(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stub]]:
    """Straight to Triton, and through the scheduler."""
    directory = tmp_path_factory.mktemp("odd")
    repository = directory / "models"
    repository.mkdir()
    write_repository(repository)
    config = directory / "infersched.yaml"
    waiting = {name: {"max_queue_delay": "200ms"} for name in ("aggregate", "labelled")}
    waiting["parameters"] = {"max_queue_delay": "200ms"}
    with EmbeddedTriton(
        repository, extra_arguments=["--grpc-header-forward-pattern=x-.*"]
    ) as triton:
        server = {"forward_metadata": ["x-a", "x-b", "x-p*"]}
        settings = {"backends": [triton.grpc_address], "server": server, "models": waiting}
        config.write_text(yaml.safe_dump(settings))
        with (
            ServedScheduler(["--config", str(config)]) as served,
            connected(triton.grpc_address) as straight,
            connected(served.address) as through,
        ):
            yield [straight, through]


def request(model: str, number: int, count: int = 1) -> Request:
    asked = Request(model_name=model, id=str(number))
    asked.inputs.add(name="A", datatype="FP32", shape=[count, 1])
    asked.raw_input_contents.append(np.full(count, number, np.float32).tobytes())
    return asked


def at_once(stub: Stub, asked: Sequence[Request], headers: Sequence[str] = ()) -> list[Response]:
    """Sent side by side; the header x-a of each, if there are any."""
    calls = [
        stub.ModelInfer.future(
            one, timeout=TIMEOUT_S, metadata=[("x-a", headers[n])] if headers else None
        )
        for n, one in enumerate(asked)
    ]
    return [call.result() for call in calls]


def test_replies_that_cannot_be_split(stubs: list[Stub]) -> None:
    """Also when that is known already."""
    for _ in range(2):
        asked = [request("aggregate", n, 2) for n in range(6)]
        straight, through = (at_once(stub, asked) for stub in stubs)
        assert through == straight
        totals = [np.frombuffer(r.raw_output_contents[0], np.float32)[0] for r in through]
        assert totals == [2 * n for n in range(6)]


def test_class_results_with_labels(stubs: list[Stub]) -> None:
    asked = []
    for n in range(6):
        one = Request(model_name="labelled", id=str(n))
        one.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 3])
        one.raw_input_contents.append(np.array([n, 3 - n, 1], np.float32).tobytes())
        one.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 1 + n % 3
        asked.append(one)
    straight, through = (at_once(stub, asked) for stub in stubs)
    assert through == straight
    assert b"dog" in through[0].raw_output_contents[0]


def test_forwarded_headers_reach_the_model_and_keep_requests_apart(stubs: list[Stub]) -> None:
    asked = [request("parameters", n) for n in range(24)]
    for n, one in enumerate(asked):
        one.parameters["key"].int64_param = n % 2
    headers = [f"tenant {n % 3}" for n in range(24)]
    straight, through = (at_once(stub, asked, headers) for stub in stubs)
    assert through == straight
    assert b'"x-a": "tenant 2"' in through[2].raw_output_contents[0]


def test_only_headers_that_are_named_are_forwarded(stubs: list[Stub]) -> None:
    named = [("x-b", "1"), ("x-a", "2")], [("x-a", "")], [("x-path", "4"), ("x-p", "5")]
    for metadata in (*named, [("y", "3")]):
        straight, through = (
            stub.ModelInfer(request("parameters", 1), metadata=metadata, timeout=TIMEOUT_S)
            for stub in stubs
        )
        assert through == straight
    unnamed = stubs[1].ModelInfer(
        request("parameters", 1), metadata=[("x-c", "3")], timeout=TIMEOUT_S
    )
    assert b"x-c" not in unnamed.raw_output_contents[0]


@pytest.mark.parametrize("path", ["unary", "stream"])
def test_sequences_of_the_strategy_oldest(stubs: list[Stub], path: str) -> None:
    def totals(stub: Stub, key: int) -> list[int]:
        asked = [
            sequence_request(v, key, start=v == 1, end=v == 6, model="oldest") for v in range(1, 7)
        ]
        if path == "unary":
            return [sum_of(stub.ModelInfer(one, timeout=TIMEOUT_S)) for one in asked]
        return [sum_of(message.infer_response) for message in converse(stub, asked).messages]

    straight, through = (totals(stub, 700) for stub in stubs)
    assert through == straight == [1, 3, 6, 10, 15, 21]
