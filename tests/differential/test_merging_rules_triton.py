"""What may share a batch: requests that the codec merges get the answers Triton gives them alone.

Each test sends random requests of one rule, merges those of equal signature, and compares.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from scheduler._native import codec
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.codec_messages import (
    ELEMENT_BYTES,
    Model,
    Request,
    Response,
    Tensor,
    random_request,
)
from tests.codec_wire import Speller

pytestmark = pytest.mark.e2e

Infer = Callable[[bytes], bytes]
SOURCE = Path(__file__).parent / "models" / "telling.py"
# The python backend has no numpy form of BF16.
DATATYPES = tuple(datatype for datatype in ELEMENT_BYTES if datatype != "BF16")
TELLING = Model(
    "telling",
    tuple(Tensor(datatype, datatype, (2, -1), optional=True) for datatype in DATATYPES),
    (
        *(Tensor(f"E_{datatype}", datatype, (2, -1)) for datatype in DATATYPES),
        Tensor("TOLD", "BYTES", (1,)),
    ),
    64,
)
UNBATCHED = Model("unbatched", (Tensor("INPUT0", "FP32", (16,)),), (), 0)


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infer]:
    """ModelInfer of a Triton that has the models, bytes in and bytes out."""
    repository = tmp_path_factory.mktemp("models")
    models.write_model(
        repository,
        TELLING.name,
        source=SOURCE,
        inputs=[models.Tensor(t.name, t.datatype, t.dims, t.optional) for t in TELLING.inputs],
        outputs=[models.Tensor(t.name, t.datatype, t.dims) for t in TELLING.outputs],
        max_batch_size=TELLING.max_batch_size,
    )
    models.unbatched(repository)
    with (
        EmbeddedTriton(repository) as triton,
        grpc.insecure_channel(triton.grpc_address) as channel,
    ):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        yield lambda message: call(message, timeout=30)


def merge_and_compare(infer: Infer, model: Model, messages: list[bytes]) -> list[int]:
    """Merges what may be merged; returns the number of requests of each batch."""
    reader, schema = codec.Codec(), model.schema(rows_max=0)
    batches = defaultdict(list)
    for message in messages:
        member = reader.prepare(message, schema)
        key = (member.signature_id, 0 if member.mergeable else len(batches))
        batches[key].append((member, message))
    for batch in batches.values():
        merged = codec.merge([(member, 0, member.rows) for member, _ in batch])
        reply = codec.Reply(infer(merged))
        whole = not batch[0][0].mergeable
        if not whole:
            reply.splits_into(sum(member.rows for member, _ in batch))
        begin = 0
        for member, message in batch:
            answer = codec.write_reply(member, [(reply, begin, member.rows)], whole=whole)
            assert Response.FromString(answer) == Response.FromString(infer(message))
            begin += member.rows
    return sorted(len(batch) for batch in batches.values())


def telling_request(rng: random.Random, datatypes: tuple[str, ...], rows: int) -> Request:
    """A request with inputs of these datatypes; typed or raw contents, some outputs or all."""
    inputs = tuple(Tensor(datatype, datatype, (2, 3)) for datatype in datatypes)
    outputs = [f"E_{datatype}" for datatype in datatypes] + ["TOLD"]
    request = random_request(rng, Model("telling", inputs, (), 64), rows=rows)
    for name in outputs:
        if rng.random() < 0.4:
            request.outputs.add(name=name)
    if not request.outputs:
        # All outputs of the model would be those of the other datatypes, too.
        request.outputs.extend(Request.InferRequestedOutputTensor(name=name) for name in outputs)
    return request


@pytest.mark.parametrize("datatype", DATATYPES)
def test_contents_of_every_datatype_typed_and_raw(infer: Infer, datatype: str) -> None:
    rng = random.Random(datatype)
    requests = [telling_request(rng, (datatype,), rng.randint(1, 4)) for _ in range(8)]
    messages = [Speller(rng, oddness=0.1).request(request) for request in requests]

    assert merge_and_compare(infer, TELLING, messages) == [8]


def test_optional_inputs_and_requested_outputs(infer: Infer) -> None:
    rng = random.Random(4)
    sets = [tuple(rng.sample(DATATYPES, rng.randint(1, 4))) for _ in range(6)]
    messages = [
        telling_request(rng, rng.choice(sets), rng.randint(1, 3)).SerializeToString()
        for _ in range(40)
    ]

    sizes = merge_and_compare(infer, TELLING, messages)

    # The order in which a client names its inputs makes no difference.
    assert len(sizes) <= len({frozenset(names) for names in sets})


def test_equal_parameters_share_a_batch_and_unequal_ones_do_not(infer: Infer) -> None:
    rng = random.Random(6)
    values: tuple[dict[str, object], ...] = (
        {"bool_param": True},
        {"int64_param": 1},
        {"int64_param": -1},
        {"string_param": "1"},
        {"double_param": 1.0},
    )
    messages, kinds = [], set()
    for _ in range(40):
        request = telling_request(rng, ("INT8",), 1)
        chosen = {key: rng.randrange(len(values)) for key in ("a", "b") if rng.random() < 0.4}
        for key, index in rng.sample(sorted(chosen.items()), len(chosen)):
            for field, value in values[index].items():
                setattr(request.parameters[key], field, value)
        if rng.random() < 0.5:
            request.parameters["priority"].uint64_param = rng.randrange(3)
        kinds.add(tuple(sorted(chosen.items())))
        messages.append(request.SerializeToString())

    assert len(merge_and_compare(infer, TELLING, messages)) == len(kinds)


def test_class_results_of_equal_counts_share_a_batch(infer: Infer) -> None:
    rng = random.Random(9)
    messages = []
    for number in range(12):
        request = telling_request(rng, ("FP32", "INT32"), rng.randint(1, 3))
        del request.outputs[:]
        classes = request.outputs.add(name="E_FP32").parameters["classification"]
        # More than there are: all of them.
        classes.int64_param = (1, 4, 100)[number % 3]
        if rng.random() < 0.5:
            request.outputs.add(name="E_INT32")
        messages.append(request.SerializeToString())

    assert merge_and_compare(infer, TELLING, messages) == [4, 4, 4]


def test_models_without_a_batch_dimension_get_each_request_as_it_is(infer: Infer) -> None:
    rng = random.Random(2)
    messages = [random_request(rng, UNBATCHED).SerializeToString() for _ in range(4)]

    assert merge_and_compare(infer, UNBATCHED, messages) == [1, 1, 1, 1]


def test_requests_of_no_rows_go_alone(infer: Infer) -> None:
    rng = random.Random(3)
    reader, schema = codec.Codec(), TELLING.schema(rows_max=0)
    request = telling_request(rng, ("INT8",), 1)
    del request.outputs[:]
    request.outputs.add(name="TOLD")
    request.inputs[0].shape[0] = 0
    request.inputs[0].ClearField("contents")
    # Without its batch dimension the tensor is that of one row.
    del request.raw_input_contents[:]
    request.raw_input_contents.append(bytes(6))
    message = request.SerializeToString()
    member = reader.prepare(message, schema)
    assert not member.mergeable

    reply = codec.Reply(infer(codec.merge([(member, 0, member.rows)])))
    answer = codec.write_reply(member, [(reply, 0, 1)], whole=True)

    assert Response.FromString(answer) == Response.FromString(infer(message))
