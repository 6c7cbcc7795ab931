"""The codec against a real Triton: same verdict, same words, on the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler._native import codec
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.codec_messages import MODELS, Model, Speller, add_faults, mutate, random_request

pytestmark = pytest.mark.e2e

Infer = Callable[[bytes], bytes]
SOURCE = Path(__file__).parent / "models" / "accepting.py"


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infer]:
    """ModelInfer of a Triton that has the test models, bytes in and bytes out."""
    repository = tmp_path_factory.mktemp("models")
    for model in MODELS:
        models.write_model(
            repository,
            model.name,
            source=SOURCE,
            inputs=[models.Tensor(t.name, t.datatype, t.dims, t.optional) for t in model.inputs],
            outputs=[models.Tensor(t.name, t.datatype, t.dims) for t in model.outputs],
            max_batch_size=model.max_batch_size,
        )
    with EmbeddedTriton(repository) as triton, grpc.insecure_channel(triton.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        yield lambda message: call(message, timeout=30)


def our_verdict(message: bytes, model: Model) -> tuple[int, str]:
    try:
        codec.Codec().prepare(message, model.schema())
    except codec.CodecError as error:
        return error.code, error.text
    return 0, ""


def triton_verdict(infer: Infer, message: bytes) -> tuple[int, str]:
    try:
        infer(message)
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    return 0, ""


def check(infer: Infer, message: bytes, model: Model) -> None:
    assert our_verdict(message, model) == triton_verdict(infer, message)


relaxed = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@relaxed
@given(seed=st.integers(0, 2**32 - 1), faults=st.integers(0, 3))
def test_verdicts_agree(infer: Infer, model: Model, seed: int, faults: int) -> None:
    rng = random.Random(seed)
    request = random_request(rng, model)
    add_faults(rng, request, faults)
    check(infer, Speller(rng).request(request), model)
