"""What the codec reads from requests, merges and forwards."""

from __future__ import annotations

import random
import struct

import pytest
from tritonclient.grpc import service_pb2

from scheduler._native import codec
from tests.codec_messages import Request, bytes_tensor
from tests.codec_vectors import (
    INTERNAL,
    prepare,
    vector_request,
    vector_schema,
)
from tests.codec_wire import field, number_field, varint

pytestmark = pytest.mark.native


def test_undecodable_request() -> None:
    message = vector_request().SerializeToString()[:-1]

    with pytest.raises(codec.CodecError) as caught:
        codec.Codec().prepare(message, vector_schema())

    assert (caught.value.code, caught.value.text) == (INTERNAL, "Unable to parse request")
    assert codec.peek_model(message) is None


def test_last_of_repeated_names_counts() -> None:
    message = field(1, b"a") + field(3, b"x") + field(1, b"m") + field(2, b"4") + field(3, b"y")

    assert codec.peek_model(message) == (b"m", b"4", b"y")


def test_scheduling_parameters_are_read_and_not_forwarded() -> None:
    request = vector_request()
    request.parameters["priority"].uint64_param = 2
    request.parameters["timeout"].int64_param = 1500
    request.parameters["kept"].string_param = "yes"

    prepared = prepare(request)
    merged = Request.FromString(codec.merge([(prepared, 0, 1)]))

    assert (prepared.priority, prepared.timeout_us, prepared.has_sequence) == (2, 1500, False)
    assert list(merged.parameters) == ["kept"]
    assert merged.parameters["kept"].string_param == "yes"


def test_negative_timeout_is_no_limit() -> None:
    request = vector_request()
    request.parameters["timeout"].int64_param = -5

    assert prepare(request).timeout_us == 0


def unmergeable_requests() -> list[tuple[str, Request, codec.ModelSchema]]:
    sequence = vector_request()
    sequence.parameters["sequence_id"].int64_param = 5
    shared_input = vector_request()
    del shared_input.raw_input_contents[:]
    shared_input.inputs[0].parameters["shared_memory_region"].string_param = "r"
    shared_input.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16
    shared_output = vector_request()
    region = shared_output.outputs.add(name="O").parameters
    region["shared_memory_region"].string_param = "r"
    region["shared_memory_byte_size"].int64_param = 16
    zero_rows = vector_request(1)
    zero_rows.inputs[0].shape[0] = 0
    ragged = codec.ModelSchema("m", max_batch_size=8).add_input("I", "FP32", [4], ragged=True)
    flat = codec.ModelSchema("m").add_input("I", "FP32", [-1, 4])
    plain = vector_request()
    return [
        ("sequence parameter", sequence, vector_schema()),
        ("input in shared memory", shared_input, vector_schema()),
        ("output in shared memory", shared_output, vector_schema()),
        ("zero rows", zero_rows, vector_schema()),
        ("ragged input", plain, ragged),
        ("no batch dimension", plain, flat),
        ("sequence model", plain, vector_schema(sequence=True)),
        ("decoupled model", plain, vector_schema(decoupled=True)),
        ("merging switched off", plain, vector_schema(merge=False)),
    ]


@pytest.mark.parametrize(
    ("original", "schema"), [pytest.param(r, s, id=name) for name, r, s in unmergeable_requests()]
)
def test_requests_that_go_alone_are_forwarded_as_they_are(
    original: Request, schema: codec.ModelSchema
) -> None:
    # An unknown field and a surplus raw entry pass through too.
    expected = Request.FromString(number_field(99, 5) + original.SerializeToString())
    expected.raw_input_contents.append(b"surplus")
    request = Request.FromString(expected.SerializeToString())
    request.parameters["priority"].int64_param = 1
    request.parameters["timeout"].int64_param = 10
    message = request.SerializeToString()

    prepared = codec.Codec().prepare(message, schema)
    forwarded = codec.merge([(prepared, 0, prepared.rows)])

    assert not prepared.mergeable
    assert prepared.rows == 1
    assert Request.FromString(forwarded) == expected


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("dims", "row_bytes"), [([-1], 16), ([4], 0)])
def test_rows_have_their_bytes_whether_they_share_batches_or_not(
    merge: bool, dims: list[int], row_bytes: int
) -> None:
    schema = codec.ModelSchema("m", "1", max_batch_size=8, merge=merge)
    prepared = prepare(vector_request(3), schema.add_input("I", "FP32", dims))

    assert (prepared.mergeable, prepared.rows) == (merge, 3)
    assert prepared.row_bytes == row_bytes


def test_a_request_without_batch_dimension_is_one_row() -> None:
    request = vector_request(3)
    request.inputs.add(name="T", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\x02\0\0\0ab")
    schema = codec.ModelSchema("m").add_input("I", "FP32", [-1, 4]).add_input("T", "BYTES", [1])
    prepared = prepare(request, schema)

    assert (prepared.rows, prepared.row_bytes) == (1, 48)


def test_request_alone_keeps_its_id_and_a_batch_has_none() -> None:
    reader = codec.Codec()
    a, b = (
        reader.prepare(vector_request(2, id=i).SerializeToString(), vector_schema()) for i in "ab"
    )

    assert Request.FromString(codec.merge([(a, 0, 2)])).id == "a"
    assert Request.FromString(codec.merge([(a, 0, 1)])).id == ""
    assert Request.FromString(codec.merge([(a, 0, 2), (b, 0, 2)])).id == ""


def typed_request(datatype: str, name: str, values: list[object]) -> Request:
    request = Request(model_name="t")
    entry = request.inputs.add(name="T", datatype=datatype, shape=[1, len(values)])
    getattr(entry.contents, name).extend(values)
    return request


@pytest.mark.parametrize(
    ("datatype", "name", "values", "raw"),
    [
        ("BOOL", "bool_contents", [True, False], b"\1\0"),
        ("INT8", "int_contents", [-1, 300], b"\xff\x2c"),
        ("INT16", "int_contents", [-2, 70000], struct.pack("<hH", -2, 70000 & 0xFFFF)),
        ("INT32", "int_contents", [-3, 2**31 - 1], struct.pack("<ii", -3, 2**31 - 1)),
        ("INT64", "int64_contents", [-(2**63), 5], struct.pack("<qq", -(2**63), 5)),
        ("UINT8", "uint_contents", [255, 256], b"\xff\0"),
        ("UINT16", "uint_contents", [65535, 65537], struct.pack("<HH", 65535, 1)),
        ("UINT32", "uint_contents", [0, 2**32 - 1], struct.pack("<II", 0, 2**32 - 1)),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], struct.pack("<QQ", 0, 2**64 - 1)),
        ("FP32", "fp32_contents", [0.5, -1.0], struct.pack("<ff", 0.5, -1.0)),
        ("FP64", "fp64_contents", [0.1, -1.0], struct.pack("<dd", 0.1, -1.0)),
        ("BYTES", "bytes_contents", [b"", b"ab"], bytes_tensor([b"", b"ab"])),
    ],
)
def test_typed_contents_become_raw(
    datatype: str, name: str, values: list[object], raw: bytes
) -> None:
    schema = codec.ModelSchema("t", max_batch_size=4).add_input("T", datatype, [-1])

    prepared = prepare(typed_request(datatype, name, values), schema)
    merged = Request.FromString(codec.merge([(prepared, 0, 1)]))

    assert list(merged.raw_input_contents) == [raw]
    assert not merged.inputs[0].HasField("contents")


@pytest.mark.parametrize("packed", [True, False])
def test_numbers_of_every_length_become_raw(packed: bool) -> None:
    """Short ones are read eight at a time."""
    rng = random.Random(packed)
    values = [rng.getrandbits(rng.choice((1, 7, 7, 7, 7, 8, 64))) for _ in range(5000)]
    numbers = b"".join(varint(value) for value in values)
    contents = field(3, numbers) if packed else b"".join(number_field(3, v) for v in values)
    entry = Request.InferInputTensor(name="T", datatype="INT64", shape=[1, len(values)])
    message = field(1, b"t") + field(5, entry.SerializeToString() + field(5, contents))
    schema = codec.ModelSchema("t", max_batch_size=4).add_input("T", "INT64", [-1])

    merged = codec.merge([(codec.Codec().prepare(message, schema), 0, 1)])

    raw = struct.pack(f"<{len(values)}Q", *values)
    assert list(Request.FromString(merged).raw_input_contents) == [raw]


def signature(request: Request, reader: codec.Codec, metadata: bytes = b"") -> int:
    return reader.prepare(request.SerializeToString(), vector_schema(), metadata).signature_id


def test_what_must_agree_for_two_requests_to_share_a_batch() -> None:
    reader = codec.Codec()
    plain = vector_request()
    custom = vector_request()
    custom.parameters["custom"].bool_param = True
    other = vector_request()
    other.parameters["custom"].int64_param = 1
    classes = vector_request()
    classes.outputs.add(name="O").parameters["classification"].int64_param = 1
    more_classes = vector_request()
    more_classes.outputs.add(name="O").parameters["classification"].int64_param = 2
    held = [
        reader.prepare(request.SerializeToString(), vector_schema(), metadata)
        for request, metadata in (
            (plain, b""),
            (custom, b""),
            (other, b""),
            (classes, b""),
            (more_classes, b""),
            (plain, b"header"),
        )
    ]

    assert len({request.signature_id for request in held}) == len(held)
    assert 0 not in {request.signature_id for request in held}
    same = vector_request(5, id="other")
    same.parameters["priority"].int64_param = 1
    same.parameters["timeout"].int64_param = 1
    same.outputs.add(name="P")
    assert signature(same, reader) == held[0].signature_id


def test_unused_signatures_are_dropped_and_used_ones_are_not() -> None:
    reader = codec.Codec()
    held = reader.prepare(vector_request().SerializeToString(), vector_schema())
    for i in range(5000):
        request = vector_request()
        request.parameters["custom"].int64_param = i
        signature(request, reader)

    assert reader.signature_count < 1000
    assert signature(vector_request(), reader) == held.signature_id


def test_hostile_element_counts_are_refused() -> None:
    message = vector_request().SerializeToString() + field(5, b"") * 70_000

    with pytest.raises(codec.CodecError, match="too many inputs"):
        codec.Codec().prepare(message, vector_schema())


def test_large_tensors_survive_their_request_message() -> None:
    """Long runs are passed by reference, short ones by copy; both must come out the same."""
    schema = codec.ModelSchema("b", max_batch_size=8).add_input("I", "UINT8", [-1])
    reader = codec.Codec()
    parts = []
    for size in (10, 5000):
        for fill in (1, 2):
            request = Request(model_name="b", raw_input_contents=[bytes([fill]) * size])
            request.inputs.add(name="I", datatype="UINT8", shape=[1, size])
            parts.append(reader.prepare(request.SerializeToString(), schema))

    merged = Request.FromString(codec.merge([(parts[2], 0, 1), (parts[3], 0, 1)]))

    assert merged.raw_input_contents[0] == b"\1" * 5000 + b"\2" * 5000
    assert parts[0].signature_id == parts[1].signature_id != parts[2].signature_id


def test_contents_message_type_is_the_one_of_tritonclient() -> None:
    """The fields the codec reads by number are the ones of the generated modules."""
    names = {f.number: f.name for f in service_pb2.InferTensorContents.DESCRIPTOR.fields}

    assert names == {
        1: "bool_contents",
        2: "int_contents",
        3: "int64_contents",
        4: "uint_contents",
        5: "uint64_contents",
        6: "fp32_contents",
        7: "fp64_contents",
        8: "bytes_contents",
    }


@pytest.mark.parametrize("place", ["input", "output"])
def test_what_follows_a_region_is_left_to_triton(place: str) -> None:
    """It looks the region up first, which only it can."""
    request = vector_request()
    if place == "input":
        del request.raw_input_contents[:]
        tensor = request.inputs[0]
    else:
        tensor = request.outputs.add(name="P")
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 16
    request.outputs.add(name="O").parameters["classification"].double_param = 0.5

    prepared = prepare(request)

    assert Request.FromString(codec.merge([(prepared, 0, 1)])) == request
    assert not prepared.mergeable


def test_an_empty_tensor_of_large_other_dimensions_goes_alone() -> None:
    """Each could be addressed, but not the batch of many such rows."""
    request = Request(model_name="m")
    request.inputs.add(name="X", datatype="FP32", shape=[1, 0, 1 << 40])
    request.raw_input_contents.append(b"")
    schema = codec.ModelSchema("m", max_batch_size=8).add_input("X", "FP32", [-1, -1])
    assert not codec.Codec().prepare(request.SerializeToString(), schema).mergeable
    request.inputs[0].shape[2] = 1 << 20
    assert codec.Codec().prepare(request.SerializeToString(), schema).mergeable
