"""Version texts of a ModelInferRequest: same verdict and same words as the real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.dataplane import DataPlane, identity_model

pytestmark = pytest.mark.e2e

Stub = service_pb2_grpc.GRPCInferenceServiceStub
LONG = "99999999999999999999"
VERSIONS = ["", "1", "-1", "0", "01", " 1", "+1", "1abc", "7", "-0", "abc", " ", "0x1", "\t1"]
VERSIONS += [LONG, "-" + LONG, "+", "-", "+-1", "-+1", "1 2", "1.5"]
VERSIONS += ["abc\0x", "-1\0", "\0", "1\0x", "7\0"]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stub, Stub]]:
    """Straight to Triton, and through the data plane."""
    repository: Path = tmp_path_factory.mktemp("models")
    name = models.identity(repository)
    model = identity_model(name=name)
    model.inputs[0].name = "INPUT0"
    model.outputs[0].name = "OUTPUT0"
    with EmbeddedTriton(repository) as triton, DataPlane() as plane:
        plane.apply([model], [triton.grpc_address])
        with (
            grpc.insecure_channel(triton.grpc_address) as straight,
            grpc.insecure_channel(plane.address) as through,
        ):
            yield Stub(straight), Stub(through)


def verdict(stub: Stub, model: str, version: str) -> tuple[str, str]:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(bytes(64))
    try:
        reply = stub.ModelInfer(request, timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", str(reply.model_version)


@pytest.mark.parametrize("model", ["identity", "nope"])
@pytest.mark.parametrize("version", VERSIONS)
def test_same_verdict(stubs: tuple[Stub, Stub], model: str, version: str) -> None:
    straight, through = stubs
    assert verdict(through, model, version) == verdict(straight, model, version)
