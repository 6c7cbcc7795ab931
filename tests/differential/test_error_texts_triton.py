"""Every error text of Triton's front end and core, one by one: straight and through, the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.codec_messages import Request, Tensor
from tests.differential.error_requests import errors, poisoned_request, value_request
from tests.differential.worlds import WorldModel, write_repository
from tests.serving import ServedScheduler
from tests.wire.calls import CHANNEL_OPTIONS, Stub
from tests.wire.raw_client import INFER_PATH

pytestmark = pytest.mark.e2e

ANSWER_TIMEOUT_S = 30.0
FLAG = Tensor("A", "UINT8", (1,))
DIGEST = Tensor("X", "INT64", (1,))
ERRORS = errors()
MODELS = (
    WorldModel(
        "pair",
        (Tensor("A", "FP32", (16,)), Tensor("B", "INT32", (-1, 2))),
        (Tensor("X", "FP32", (16,)), Tensor("Y", "INT32", (-1, 2))),
        8,
        (("X", "A"), ("Y", "B")),
    ),
    WorldModel(
        "text", (Tensor("S", "BYTES", (2,)),), (Tensor("X", "BYTES", (2,)),), 8, (("X", "S"),)
    ),
    WorldModel(
        "half", (Tensor("A", "FP16", (-1,)),), (Tensor("X", "FP16", (-1,)),), 8, (("X", "A"),)
    ),
    WorldModel("choice", (FLAG, Tensor("B", "UINT8", (1,), True)), (DIGEST,), 8, (("X", None),)),
)


def poison() -> int:
    """The remainder by which models/generic.py refuses the row of `poisoned_request()`."""
    (row,) = poisoned_request().raw_input_contents[0]
    return int((row * 11 + zlib.crc32(b"{}")) % 251)


@pytest.fixture(scope="module")
def channels(
    needs_triton: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    """Straight to Triton, and through the scheduler."""
    repository: Path = tmp_path_factory.mktemp("errors")
    poisoned = WorldModel("poisoned", (FLAG,), (DIGEST,), 8, (("X", None),), poison())
    write_repository(repository, (*MODELS, poisoned))
    models.decoupled(repository)
    models.sequence(repository)
    models.failing(repository)
    models.identity(repository)
    models.ensemble(repository)
    with (
        EmbeddedTriton(repository) as triton,
        ServedScheduler(["--backend", triton.grpc_address]) as scheduler,
        grpc.insecure_channel(triton.grpc_address, options=CHANNEL_OPTIONS) as straight,
        grpc.insecure_channel(scheduler.address, options=CHANNEL_OPTIONS) as through,
    ):
        yield straight, through


@pytest.fixture(scope="module")
def stubs(channels: tuple[grpc.Channel, grpc.Channel]) -> tuple[Stub, Stub]:
    straight, through = channels
    return Stub(straight), Stub(through)


def unary_verdict(stub: Stub, request: Request) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, timeout=ANSWER_TIMEOUT_S)
    return raised.value.code().name, raised.value.details()


def stream_verdict(stub: Stub, request: Request) -> tuple[str, str]:
    """The error message and id of the one reply."""
    (reply,) = stub.ModelStreamInfer(iter([request]), timeout=ANSWER_TIMEOUT_S)
    return reply.error_message, reply.infer_response.id


@pytest.mark.parametrize("name", ERRORS)
def test_the_same_code_and_text(stubs: tuple[Stub, Stub], name: str) -> None:
    request, words = ERRORS[name]
    straight, through = (unary_verdict(stub, request) for stub in stubs)
    assert words in straight[1], "the request has another error than it is meant to have"
    assert through == straight


@pytest.mark.parametrize("name", ERRORS)
def test_the_same_text_on_a_stream(stubs: tuple[Stub, Stub], name: str) -> None:
    request, words = ERRORS[name]
    straight, through = (stream_verdict(stub, request) for stub in stubs)
    assert words in straight[0], "the request has another error than it is meant to have"
    assert through == straight


def test_a_decoupled_model_by_a_unary_call(stubs: tuple[Stub, Stub]) -> None:
    straight, through = (unary_verdict(stub, value_request("decoupled")) for stub in stubs)
    assert straight[0] == "UNIMPLEMENTED"
    assert through == straight


def refusals(
    channels: tuple[grpc.Channel, grpc.Channel], path: str, message: bytes
) -> list[tuple[str, str]]:
    verdicts = []
    for channel in channels:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(message, timeout=ANSWER_TIMEOUT_S)
        verdicts.append((raised.value.code().name, raised.value.details()))
    return verdicts


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x04nope\x2a\x02\x0a\x7f"])
def test_what_cannot_be_decoded(
    channels: tuple[grpc.Channel, grpc.Channel], message: bytes
) -> None:
    verdicts = refusals(channels, INFER_PATH, message)
    assert verdicts == [("INTERNAL", "Unable to parse request")] * 2


UNARY = [
    f"/inference.GRPCInferenceService/{method.name}"
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if method.name != "ModelStreamInfer"
]


@pytest.mark.parametrize("path", [*UNARY, "/grpc.health.v1.Health/Check"])
def test_no_rpc_decodes_nonsense(channels: tuple[grpc.Channel, grpc.Channel], path: str) -> None:
    verdicts = refusals(channels, path, b"\xff\xff")
    assert verdicts == [("INTERNAL", "Unable to parse request")] * 2


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/Nope", "/inference.Nope/ModelInfer", "/nope"]
)
def test_unknown_methods(channels: tuple[grpc.Channel, grpc.Channel], path: str) -> None:
    straight, through = refusals(channels, path, b"")
    assert through == straight
    assert straight[0] == "UNIMPLEMENTED"
