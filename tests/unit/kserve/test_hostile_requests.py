"""Requests that were made to cost much more than others of their size."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Sequence

import pytest

from scheduler._native import codec
from tests.codec_messages import Request
from tests.codec_vectors import vector_request, vector_schema
from tests.codec_wire import field

pytestmark = pytest.mark.native

# Of what a plain one takes. In one chain of a hash table it is a hundred times that and more.
COST_MAX = 10


def processor_s(messages: Sequence[bytes]) -> float:
    """To read them all, with every request held until the last one is there."""
    reader, schema, held = codec.Codec(), vector_schema(), []
    started = time.thread_time()
    for message in messages:
        try:
            held.append(reader.prepare(message, schema))
        except codec.CodecError as error:
            held.append(error)
    return time.thread_time() - started


# -- names ----------------------------------------------------------------------------------------

MULTIPLIER = 0xC6A4A7935BD1E995
MASK = 2**64 - 1


def mixed(word: int) -> int:
    """What the hash of libstdc++, MurmurHash64A, makes of eight bytes."""
    word = word * MULTIPLIER & MASK
    return (word ^ word >> 47) * MULTIPLIER & MASK


def unmixed(word: int) -> int:
    inverse = pow(MULTIPLIER, -1, 2**64)
    word = word * inverse & MASK
    return (word ^ word >> 47) * inverse & MASK


def colliding_names(doublings: int) -> list[str]:
    """2 ** `doublings` names of one hash: of every 16 characters there are two that leave the same
    state."""
    state = 0xC70F6907 ^ 16 * doublings * MULTIPLIER & MASK
    choices = []
    for _ in range(doublings):
        found: list[bytes] = []
        for number in itertools.count():
            first = b"%08d" % number
            after = (state ^ mixed(int.from_bytes(first, "little"))) * MULTIPLIER & MASK
            second = unmixed(after).to_bytes(8, "little")  # leaves a state of zero
            if max(second) < 128 and 0 not in second:
                found.append(first + second)
            if len(found) == 2:
                break
        choices.append(found)
        state = 0
    return [b"".join(name).decode() for name in itertools.product(*choices)]


def test_names_that_collide_cost_no_more_than_others() -> None:
    colliding = colliding_names(12)
    plain = [f"{number:0{len(colliding[0])}d}" for number in range(len(colliding))]

    def message(names: list[str]) -> bytes:
        request = vector_request()
        for name in names:
            request.inputs.add(name=name)
        return request.SerializeToString()

    assert processor_s([message(colliding)] * 3) < COST_MAX * processor_s([message(plain)] * 3)


# -- signatures -----------------------------------------------------------------------------------

# With this as one of the words that it multiplies, the hash forgot what came before.
FORGETTING = struct.pack("<Q", 0xE7037ED1A0B428DB)


def signature_message(number: int, padding: int, double: bytes) -> bytes:
    text = field(1, b"a" * (1 + padding)) + field(2, field(3, b"%08d" % number))
    last = field(1, b"b") + field(2, b"\x21" + double)
    return vector_request().SerializeToString() + field(4, text) + field(4, last)


def test_signatures_cannot_be_made_to_collide() -> None:
    def cost(padding: int, double: bytes) -> float:
        return processor_s([signature_message(n, padding, double) for n in range(8000)])

    plain_s = cost(0, struct.pack("<d", 0.5))
    # One of these has the word where the hash looks for it.
    assert max(cost(padding, FORGETTING) for padding in range(8)) < COST_MAX * plain_s


# -- typed contents -------------------------------------------------------------------------------

RESOURCE_EXHAUSTED = 8


@pytest.mark.parametrize("faulty", [False, True])
def test_typed_contents_take_no_more_memory_than_they_may(faulty: bool) -> None:
    """A byte of them may be eight of the tensor."""
    schema = codec.ModelSchema("t", max_batch_size=4).add_input("T", "INT64", [-1])
    request = Request(model_name="t")
    request.inputs.add(name="T", datatype="INT64", shape=[2 if faulty else 1, 1000])
    request.inputs[0].contents.int64_contents.extend([1] * 1000)
    message = request.SerializeToString()
    assert len(message) < 1100

    with pytest.raises(codec.CodecError) as caught:
        codec.Codec().prepare(message, schema, converted_bytes_max=7999)
    assert caught.value.code == RESOURCE_EXHAUSTED
    if faulty:
        with pytest.raises(codec.CodecError, match="Expected 16000, got 8000"):
            codec.Codec().prepare(message, schema, converted_bytes_max=8000)
    else:
        assert codec.Codec().prepare(message, schema, converted_bytes_max=8000).rows == 1
