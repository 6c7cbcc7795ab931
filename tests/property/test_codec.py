"""The codec against `service_pb2`: what protobuf reads, merges and slices, the codec does too."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler._native import codec
from tests.codec_messages import (
    CONTENTS_FIELD,
    ELEMENT_BYTES,
    MODELS,
    Model,
    Request,
    Response,
    add_faults,
    bytes_tensor,
    fill_contents,
    random_elements,
    random_request,
    raw_bytes,
)
from tests.codec_wire import Speller, mutate

pytestmark = pytest.mark.native
BATCHED = tuple(model for model in MODELS if model.max_batch_size)
seeds = st.integers(0, 2**32 - 1)
thorough = settings(deadline=None, max_examples=300)


@dataclass
class Member:
    """One request of a batch, with what it is expected to contribute."""

    prepared: codec.PreparedRequest
    id: str
    rows: int
    outputs: list[str]
    elements: dict[str, bytes | list[bytes]]  # by input name, all rows


def cut(elements: bytes | list[bytes], rows: int, begin: int, count: int) -> bytes:
    """Rows [begin, begin + count) of a tensor of `rows` rows, raw."""
    step = len(elements) // rows
    return raw_bytes(elements[begin * step : (begin + count) * step])


class BatchSource:
    """Requests of one model that may share a batch: same inputs, same rows' shape."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.model = rng.choice(BATCHED)
        self.schema = self.model.schema(rows_max=0)
        self.codec = codec.Codec()
        chosen = [t for t in self.model.inputs if not t.optional or rng.random() < 0.5]
        self.inputs = chosen or [self.model.inputs[0]]
        self.tails = {
            t.name: [dim if dim >= 0 else rng.randint(0, 3) for dim in t.dims] for t in self.inputs
        }
        self.may_be_typed = all(t.datatype in CONTENTS_FIELD for t in self.inputs)

    def member(self) -> Member:
        rng = self.rng
        rows = rng.randint(1, 6)
        request = Request(model_name=self.model.name, id=rng.choice(("", "a", "é" * 70)))
        if rng.random() < 0.3:
            request.parameters["priority"].int64_param = rng.randint(0, 3)
        if rng.random() < 0.3:
            request.parameters["timeout"].int64_param = rng.randint(0, 10**6)
        typed = self.may_be_typed and rng.random() < 0.3
        elements = {}
        for tensor in rng.sample(self.inputs, len(self.inputs)):
            shape = [rows, *self.tails[tensor.name]]
            count = 1
            for dim in shape:
                count *= dim
            entry = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            elements[tensor.name] = random_elements(rng, tensor.datatype, count)
            if typed:
                entry.contents.SetInParent()
                fill_contents(entry.contents, tensor.datatype, elements[tensor.name])
            else:
                request.raw_input_contents.append(raw_bytes(elements[tensor.name]))
        outputs = [t.name for t in self.model.outputs if rng.random() < 0.5]
        for name in outputs:
            request.outputs.add(name=name)
        message = Speller(rng).request(request)
        prepared = self.codec.prepare(message, self.schema)
        return Member(prepared, request.id, rows, outputs, elements)

    def expected(self, parts: list[tuple[Member, int, int]], rows_padded: int) -> Request:
        rows = sum(count for _, _, count in parts)
        request = Request(model_name=self.model.name, model_version="1")
        first, _, count = parts[0]
        if len(parts) == 1 and count == first.rows:
            request.id = first.id
        for tensor in self.model.inputs:
            if tensor not in self.inputs:
                continue
            shape = [max(rows, rows_padded), *self.tails[tensor.name]]
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            raw = [cut(m.elements[tensor.name], m.rows, begin, n) for m, begin, n in parts]
            last, begin, count = parts[-1]
            last_row = cut(last.elements[tensor.name], last.rows, begin + count - 1, 1)
            raw.append(last_row * max(rows_padded - rows, 0))
            request.raw_input_contents.append(b"".join(raw))
        if all(member.outputs for member, _, _ in parts):
            wanted = {name for member, _, _ in parts for name in member.outputs}
            for tensor in self.model.outputs:
                if tensor.name in wanted:
                    request.outputs.add(name=tensor.name)
        return request


@thorough
@given(seed=seeds)
def test_merged_request_is_what_protobuf_would_build(seed: int) -> None:
    rng = random.Random(seed)
    source = BatchSource(rng)
    members = [source.member() for _ in range(rng.randint(1, 5))]
    assert all(member.prepared.mergeable for member in members)
    assert len({member.prepared.signature_id for member in members}) == 1

    parts = []
    for member in members:
        begin = rng.randrange(member.rows) if rng.random() < 0.3 else 0
        parts.append((member, begin, rng.randint(1, member.rows - begin)))
    rows_padded = rng.choice((0, 0, 40))
    merged = codec.merge([(m.prepared, begin, n) for m, begin, n in parts], rows_padded)

    assert Request.FromString(merged) == source.expected(parts, rows_padded)


@thorough
@given(seed=seeds)
def test_parts_of_a_large_request_cover_it_once(seed: int) -> None:
    rng = random.Random(seed)
    source = BatchSource(rng)
    member = source.member()
    begin = 0
    while begin < member.rows:
        rows = rng.randint(1, member.rows - begin)
        merged = codec.merge([(member.prepared, begin, rows)])
        assert Request.FromString(merged) == source.expected([(member, begin, rows)], 0)
        begin += rows


def random_response(
    rng: random.Random, rows: int, tails: dict[str, tuple[str, list[int]]]
) -> tuple[Response, dict[str, bytes | list[bytes]]]:
    response = Response(model_name="m", model_version="3", id=rng.choice(("", "batch")))
    if rng.random() < 0.3:
        response.parameters["triton_final_response"].bool_param = True
    elements = {}
    for name, (datatype, tail) in tails.items():
        shape = [rows, *tail]
        entry = response.outputs.add(name=name, datatype=datatype, shape=shape)
        if rng.random() < 0.2:
            entry.parameters["note"].string_param = "kept"
        count = 1
        for dim in shape:
            count *= dim
        elements[name] = random_elements(rng, datatype, count)
        response.raw_output_contents.append(raw_bytes(elements[name]))
    return response, elements


def echo_model(rng: random.Random) -> tuple[codec.ModelSchema, dict[str, tuple[str, list[int]]]]:
    schema = codec.ModelSchema("m", "3", max_batch_size=64).add_input("I", "UINT8", [1])
    tails = {}
    for name in ("first", "second", "third")[: rng.randint(1, 3)]:
        datatype = rng.choice(list(ELEMENT_BYTES))
        tails[name] = (datatype, [rng.randint(0, 3) for _ in range(rng.randint(0, 2))])
        schema.add_output(name, datatype, [-1] * len(tails[name][1]))
    return schema, tails


def as_backends_answer(
    rng: random.Random, response: Response, elements: dict[str, bytes | list[bytes]]
) -> Response:
    """The response with raw contents, or with typed ones where every datatype has them."""
    if rng.random() < 0.5 or any(o.datatype not in CONTENTS_FIELD for o in response.outputs):
        return response
    typed = Response()
    typed.CopyFrom(response)
    del typed.raw_output_contents[:]
    for output in typed.outputs:
        output.contents.SetInParent()
        fill_contents(output.contents, output.datatype, elements[output.name])
    return typed


def echo_request(rows: int, request_id: str, outputs: list[str]) -> bytes:
    request = Request(model_name="m", id=request_id, raw_input_contents=[b"\0" * rows])
    request.inputs.add(name="I", datatype="UINT8", shape=[rows, 1])
    for name in outputs:
        request.outputs.add(name=name)
    return request.SerializeToString()


def sliced(
    response: Response,
    elements: dict[str, list[bytes]],
    rows: int,
    request_id: str,
    outputs: list[str],
) -> Response:
    """The member's answer as protobuf would write it; `elements` are its raw parts by output."""
    answer = Response()
    answer.CopyFrom(response)
    answer.id = request_id
    del answer.outputs[:]
    del answer.raw_output_contents[:]
    for entry in response.outputs:
        if outputs and entry.name not in outputs:
            continue
        kept = answer.outputs.add()
        kept.CopyFrom(entry)
        kept.shape[0] = rows
        answer.raw_output_contents.append(b"".join(elements[entry.name]))
    return answer


@thorough
@given(seed=seeds)
def test_answers_are_the_slices_of_the_reply(seed: int) -> None:
    rng = random.Random(seed)
    schema, tails = echo_model(rng)
    members = [rng.randint(1, 5) for _ in range(rng.randint(1, 6))]
    response, elements = random_response(rng, sum(members), tails)
    reply = codec.Reply(Speller(rng).response(as_backends_answer(rng, response, elements)))
    reply.splits_into(sum(members))
    reader = codec.Codec()

    begin = 0
    for rows in members:
        request_id = rng.choice(("", "me", "x" * 200))
        outputs = [name for name in tails if rng.random() < 0.4]
        request = reader.prepare(echo_request(rows, request_id, outputs), schema)
        answer = codec.write_reply(request, [(reply, begin, rows)])
        own = {name: [cut(e, sum(members), begin, rows)] for name, e in elements.items()}
        parsed = Response.FromString(answer)
        parsed.DiscardUnknownFields()  # parameters are passed on as they came
        assert parsed == sliced(response, own, rows, request_id, outputs)
        begin += rows


@thorough
@given(seed=seeds)
def test_answer_of_several_replies_is_their_concatenation(seed: int) -> None:
    rng = random.Random(seed)
    schema, tails = echo_model(rng)
    parts, rows = [], 0
    own: dict[str, list[bytes]] = {name: [] for name in tails}
    first: Response | None = None
    for _ in range(rng.randint(2, 4)):
        count = rng.randint(1, 5)
        total = count + rng.randint(0, 3)
        begin = rng.randint(0, total - count)
        response, elements = random_response(rng, total, tails)
        first = first or response
        reply = codec.Reply(response.SerializeToString())
        reply.splits_into(total)
        parts.append((reply, begin, count))
        for name in tails:
            own[name].append(cut(elements[name], total, begin, count))
        rows += count
    request = codec.Codec().prepare(echo_request(rows, "large", []), schema)

    answer = codec.write_reply(request, parts)

    assert first is not None
    assert Response.FromString(answer) == sliced(first, own, rows, "large", [])


def decodes(message: bytes, kind: type) -> bool:
    try:
        kind.FromString(message)
    except DecodeError:
        return False
    return True


# The codec follows the protobuf of C++, which is Triton's. That of Python (upb) differs twice: it
# refuses tags above 32 bits, whose upper bits C++ drops, and takes lengths of six to ten bytes.
LONG_TAG = re.compile(rb"[\x80-\xff]{4}[\x10-\x7f]")
LONG_LENGTH = re.compile(rb"[\x80-\xff]{5,9}[\x00-\x7f]")


def check_decodability(message: bytes, model: Model) -> None:
    ours, python = prepare_code(message, model) != 13, decodes(message, Request)
    if ours and not python:
        assert LONG_TAG.search(message)
    elif python and not ours:
        assert LONG_LENGTH.search(message)


def prepare_code(message: bytes, model: Model) -> int:
    try:
        codec.Codec().prepare(message, model.schema())
    except codec.CodecError as error:
        return error.code
    return 0


@settings(deadline=None, max_examples=1500)
@given(seed=seeds)
def test_mutated_requests_decode_where_protobuf_decodes_them(seed: int) -> None:
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    request = random_request(rng, model)
    add_faults(rng, request, rng.randrange(2))
    message = mutate(rng, Speller(rng).request(request), rng.randint(1, 4))

    check_decodability(message, model)


@settings(deadline=None, max_examples=500)
@given(message=st.binary(max_size=200))
def test_arbitrary_bytes_decode_where_protobuf_decodes_them(message: bytes) -> None:
    check_decodability(message, MODELS[0])
    if decodes(message, Request):
        request = Request.FromString(message)
        names = (request.model_name, request.model_version, request.id)
        expected = tuple(name.split("\0")[0].encode() for name in names)
        assert codec.peek_model(message) == expected


@settings(deadline=None, max_examples=1000)
@given(seed=seeds)
def test_mutated_replies_are_refused_or_answered(seed: int) -> None:
    rng = random.Random(seed)
    schema, tails = echo_model(rng)
    response, _ = random_response(rng, 4, tails)
    message = mutate(rng, Speller(rng).response(response), rng.randint(1, 3))
    request = codec.Codec().prepare(echo_request(2, "id", ["first"]), schema)
    try:
        reply = codec.Reply(message)
        reply.splits_into(4)
        answer = codec.write_reply(request, [(reply, 1, 2)])
    except ValueError:
        return
    # Strings of a reply are passed on as they are, so only a reply that decodes answers decodably.
    if decodes(message, Response):
        parsed = Response.FromString(answer)
        assert len(parsed.outputs) == len(parsed.raw_output_contents)
        assert all(entry.shape[0] == 2 for entry in parsed.outputs)


@thorough
@given(
    elements=st.lists(st.binary(max_size=20), min_size=4, max_size=4), extra=st.binary(max_size=5)
)
def test_bytes_tensors_must_end_with_their_last_string(elements: list[bytes], extra: bytes) -> None:
    model = next(model for model in MODELS if model.name == "text")
    request = Request(model_name="text", raw_input_contents=[bytes_tensor(elements) + extra])
    request.inputs.add(name="S", datatype="BYTES", shape=[2, 2])

    assert prepare_code(request.SerializeToString(), model) == (3 if extra else 0)
