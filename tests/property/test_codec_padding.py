"""Padding and length buckets: rows of different lengths share a batch and come back as they were.

Tensors are numpy arrays of `bytes` objects, one an element, so that every datatype is alike.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler._native import codec
from tests.codec_messages import ELEMENT_BYTES, Request, Response, add_faults, bytes_tensor
from tests.codec_wire import Speller, mutate

pytestmark = pytest.mark.native
thorough = settings(deadline=None, max_examples=150)
BUCKETS = (2, 5, 9)
MASK_TYPES = [datatype for datatype in ELEMENT_BYTES if datatype != "BYTES"]
LENGTH_TYPES = [t for t in MASK_TYPES if t not in ("BOOL", "FP16", "BF16")]


def number(datatype: str, value: int) -> bytes:
    """A small count in a numeric datatype."""
    if datatype.startswith("FP") or datatype == "BF16":
        if datatype == "BF16":
            return struct.pack("<f", value)[2:]
        return struct.pack({"FP16": "<e", "FP32": "<f", "FP64": "<d"}[datatype], value)
    return value.to_bytes(ELEMENT_BYTES[datatype], "little")


def raw(array: np.ndarray, datatype: str) -> bytes:
    elements = list(array.reshape(-1))
    return bytes_tensor(elements) if datatype == "BYTES" else b"".join(elements)


@dataclass
class Member:
    prepared: codec.PreparedRequest
    message: bytes
    id: str
    tensor: np.ndarray
    length: int


class PaddedModel:
    """TOKENS is padded along one of its axes; MASK and LENGTH describe it; ECHO is like it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.datatype = rng.choice(list(ELEMENT_BYTES))
        self.rank = rng.randint(1, 3)
        self.axis = rng.randrange(self.rank)
        self.tail = [rng.randint(1, 3) for _ in range(self.rank)]
        if rng.random() < 0.05:
            # Long runs are passed on by reference.
            self.tail[rng.randrange(self.rank)] = 700
        self.mask = rng.choice(MASK_TYPES) if rng.random() < 0.7 else ""
        self.length = rng.choice(LENGTH_TYPES) if rng.random() < 0.7 else ""
        self.value = self.element()
        self.codec = codec.Codec()
        self.schema = codec.ModelSchema("m", max_batch_size=40)
        dims = list(self.tail)
        dims[self.axis] = -1
        inputs = [("TOKENS", self.datatype), ("MASK", self.mask), ("LENGTH", self.length)]
        rng.shuffle(inputs)
        self.inputs = [name for name, datatype in inputs if datatype]
        for name, datatype in inputs:
            if name == "TOKENS":
                self.schema.add_input(
                    name,
                    datatype,
                    dims,
                    buckets=BUCKETS,
                    axis=self.axis,
                    value=self.value,
                    mask="MASK" if self.mask else "",
                    length="LENGTH" if self.length else "",
                )
            elif datatype:
                self.schema.add_input(name, datatype, [-1] if name == "MASK" else [1])
        self.schema.add_output("OTHER", "INT32", [1])
        self.schema.add_output(
            "ECHO", self.datatype, [-1] * self.rank, trim_to="TOKENS", trim_axis=self.axis
        )

    def element(self) -> bytes:
        size = ELEMENT_BYTES[self.datatype]
        return self.rng.randbytes(size or self.rng.choice((0, 1, 5, 30)))

    def array(self, shape: list[int]) -> np.ndarray:
        array = np.empty(shape, object)
        for index in np.ndindex(*shape):
            array[index] = self.element()
        return array

    def row_shape(self, length: int) -> list[int]:
        shape = list(self.tail)
        shape[self.axis] = length
        return shape

    def member(self, length: int) -> Member:
        rows = self.rng.randint(1, 4)
        tensor = self.array([rows, *self.row_shape(length)])
        request = Request(model_name="m", id=self.rng.choice(("", "a")))
        request.inputs.add(name="TOKENS", datatype=self.datatype, shape=tensor.shape)
        request.raw_input_contents.append(raw(tensor, self.datatype))
        message = Speller(self.rng).request(request)
        prepared = self.codec.prepare(message, self.schema)
        return Member(prepared, message, request.id, tensor, length)

    def padded(self, tensor: np.ndarray, length: int) -> np.ndarray:
        """`tensor` with its axis filled up to `length`."""
        shape = [tensor.shape[0], *self.row_shape(length)]
        out = np.empty(shape, object)
        out[...] = np.array(self.value, object)
        here = [slice(None)] * (self.rank + 1)
        here[self.axis + 1] = slice(0, tensor.shape[self.axis + 1])
        out[tuple(here)] = tensor
        return out

    def merged(self, parts: list[tuple[Member, int, int]], length: int, rows: int) -> Request:
        request = Request(model_name="m", model_version="1")
        first, _, count = parts[0]
        if len(parts) == 1 and count == first.tensor.shape[0]:
            request.id = first.id
        # The last row again, up to `rows`.
        cut = [(member, member.tensor[begin : begin + n]) for member, begin, n in parts]
        have = sum(tensor.shape[0] for _, tensor in cut)
        cut += [(cut[-1][0], cut[-1][1][-1:])] * max(rows - have, 0)
        rows = max(rows, have)
        for name in self.inputs:
            if name == "TOKENS":
                datatype, shape = self.datatype, [rows, *self.row_shape(length)]
                data = b"".join(raw(self.padded(t, length), datatype) for _, t in cut)
            elif name == "MASK":
                datatype, shape = self.mask, [rows, length]
                one, zero = number(datatype, 1), number(datatype, 0)
                data = b"".join(
                    (one * m.length + zero * (length - m.length)) * t.shape[0] for m, t in cut
                )
            else:
                datatype, shape = self.length, [rows, 1]
                data = b"".join(number(datatype, m.length) * t.shape[0] for m, t in cut)
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.raw_input_contents.append(data)
        return request


def bucket_of(length: int) -> int:
    return next((bucket for bucket in BUCKETS if length <= bucket), length)


@thorough
@given(seed=st.integers(0, 2**32 - 1))
def test_requests_of_one_bucket_share_a_padded_batch(seed: int) -> None:
    rng = random.Random(seed)
    model = PaddedModel(rng)
    bucket = rng.choice((*BUCKETS, 11))
    lengths = [n for n in range(12) if bucket_of(n) == bucket]
    members = [model.member(rng.choice(lengths)) for _ in range(rng.randint(1, 5))]
    assert all(member.prepared.mergeable for member in members)
    assert len({member.prepared.signature_id for member in members}) == 1

    parts = []
    for member in members:
        rows = member.tensor.shape[0]
        begin = rng.randrange(rows) if rng.random() < 0.3 else 0
        parts.append((member, begin, rng.randint(1, rows - begin)))
    rows = rng.choice((0, 0, 30))
    merged = codec.merge([(m.prepared, begin, n) for m, begin, n in parts], rows)

    assert Request.FromString(merged) == model.merged(parts, bucket, rows)


@thorough
@given(seed=st.integers(0, 2**32 - 1))
def test_outputs_are_cut_back_to_the_length_of_each_request(seed: int) -> None:
    rng = random.Random(seed)
    model = PaddedModel(rng)
    bucket = rng.choice(BUCKETS)
    lengths = [n for n in range(12) if bucket_of(n) == bucket]
    members = [model.member(rng.choice(lengths)) for _ in range(rng.randint(1, 4))]
    echo = np.concatenate([model.padded(member.tensor, bucket) for member in members])
    total = echo.shape[0]
    response = Response(model_name="m", model_version="1")
    response.outputs.add(name="OTHER", datatype="INT32", shape=[total, bucket])
    response.outputs.add(name="ECHO", datatype=model.datatype, shape=echo.shape)
    other = [rng.randbytes(4 * bucket) for _ in range(total)]
    response.raw_output_contents.extend([b"".join(other), raw(echo, model.datatype)])
    reply = codec.Reply(Speller(rng).response(response))
    whole = len(members) == 1 and rng.random() < 0.5
    if not whole:
        reply.splits_into(total)

    begin = 0
    for member in members:
        rows = member.tensor.shape[0]
        parts = [(reply, begin, rows)]
        if rows > 1 and not whole and rng.random() < 0.3:
            parts = [(reply, begin, 1), (reply, begin + 1, rows - 1)]
        answer = Response.FromString(codec.write_reply(member.prepared, parts, whole=whole))
        answer.DiscardUnknownFields()  # what passes through whole

        expected = Response(model_name="m", model_version="1", id=member.id)
        expected.outputs.add(name="OTHER", datatype="INT32", shape=[rows, bucket])
        expected.outputs.add(name="ECHO", datatype=model.datatype, shape=member.tensor.shape)
        expected.raw_output_contents.append(b"".join(other[begin : begin + rows]))
        expected.raw_output_contents.append(raw(member.tensor, model.datatype))
        assert answer == expected
        begin += rows


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_other_buckets_and_other_shapes_do_not_share(seed: int) -> None:
    rng = random.Random(seed)
    model = PaddedModel(rng)

    ids = {n: model.member(n).prepared.signature_id for n in range(13)}

    for a in range(13):
        for b in range(13):
            assert (ids[a] == ids[b]) == (bucket_of(a) == bucket_of(b))


def check_sizes(request: Request) -> None:
    """Every input has the bytes that its shape and datatype say."""
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        count = 1
        for dim in tensor.shape:
            count *= dim
        if tensor.datatype != "BYTES":
            assert len(data) == count * ELEMENT_BYTES[tensor.datatype]
            continue
        at = 0
        for _ in range(count):
            at += 4 + int.from_bytes(data[at : at + 4], "little")
        assert at == len(data)


@thorough
@given(seed=st.integers(0, 2**32 - 1), faults=st.integers(0, 2), damage=st.integers(0, 2))
def test_damaged_requests_are_refused_or_padded_rightly(
    seed: int, faults: int, damage: int
) -> None:
    rng = random.Random(seed)
    model = PaddedModel(rng)
    request = Request.FromString(model.member(rng.randrange(12)).message)
    add_faults(rng, request, faults)
    message = mutate(rng, request.SerializeToString(), damage)
    try:
        prepared = model.codec.prepare(message, model.schema)
    except codec.CodecError:
        return
    if prepared.mergeable and prepared.rows <= 1000:
        merged = codec.merge([(prepared, 0, prepared.rows)], rng.choice((0, 30)))
        check_sizes(Request.FromString(merged))
