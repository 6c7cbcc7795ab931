"""Corners of padding: masks that clients send, bounds, requests that go alone."""

from __future__ import annotations

import struct

import pytest

from scheduler._native import codec
from tests.codec_messages import Request, Response
from tests.codec_vectors import INVALID_ARGUMENT, prepare, refusal

pytestmark = pytest.mark.native

TOO_LARGE = "[request id: <id_unknown>] tensor sizes exceed what can be addressed"


def token_schema(*, length_type: str = "INT32", **options: object) -> codec.ModelSchema:
    """TOKENS INT32[-1] in buckets of 4 and 8, padded by 9; MASK INT32[-1]; LENGTH [1]."""
    schema = codec.ModelSchema("m", max_batch_size=8, **options)  # type: ignore[arg-type]
    schema.add_input(
        "TOKENS",
        "INT32",
        [-1],
        buckets=(4, 8),
        value=struct.pack("<i", 9),
        mask="MASK",
        length="LENGTH",
    )
    schema.add_input("MASK", "INT32", [-1]).add_input("LENGTH", length_type, [1])
    return schema.add_output("OUT", "INT32", [-1], trim_to="TOKENS")


def token_request(*rows: list[int], mask: list[int] | None = None) -> Request:
    request = Request(model_name="m")
    request.inputs.add(name="TOKENS", datatype="INT32", shape=[len(rows), len(rows[0])])
    request.raw_input_contents.append(numbers(*[token for row in rows for token in row]))
    if mask is not None:
        request.inputs.add(name="MASK", datatype="INT32", shape=[1, len(mask)])
        request.raw_input_contents.append(numbers(*mask))
    return request


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def alone(request: Request, schema: codec.ModelSchema) -> Request:
    prepared = prepare(request, schema)
    return Request.FromString(codec.merge([(prepared, 0, prepared.rows)]))


def sent(request: Request) -> dict[str, tuple[list[int], bytes]]:
    return {
        tensor.name: (list(tensor.shape), data)
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def test_a_request_alone_is_padded_too() -> None:
    assert sent(alone(token_request([1, 2, 3]), token_schema())) == {
        "TOKENS": ([1, 4], numbers(1, 2, 3, 9)),
        "MASK": ([1, 4], numbers(1, 1, 1, 0)),
        "LENGTH": ([1, 1], numbers(3)),
    }


def test_a_mask_of_the_client_is_padded_along() -> None:
    request = token_request([1, 2, 3], mask=[1, 0, 1])

    assert sent(alone(request, token_schema()))["MASK"] == ([1, 4], numbers(1, 0, 1, 0))


def test_a_mask_of_another_length_keeps_the_tensor_as_it_is() -> None:
    found = sent(alone(token_request([1, 2, 3], mask=[1, 0]), token_schema()))

    assert found["TOKENS"] == ([1, 3], numbers(1, 2, 3))
    assert found["MASK"] == ([1, 2], numbers(1, 0))


def test_requests_with_and_without_a_mask_have_batches_of_their_own() -> None:
    reader, schema = codec.Codec(), token_schema()
    requests = token_request([1, 2, 3]), token_request([1, 2, 3], mask=[1, 1, 1])

    prepared = [reader.prepare(r.SerializeToString(), schema) for r in requests]

    assert prepared[0].signature_id != prepared[1].signature_id


def test_no_required_input_but_the_described_one_may_be_left_out() -> None:
    request = token_request([1], mask=[1])
    del request.inputs[:]
    del request.raw_input_contents[:]

    code, text = refusal(request, token_schema())

    assert code == INVALID_ARGUMENT
    assert "expected number of inputs between 1 and 3 but got 0 inputs" in text
    assert "missing required input(s) ['TOKENS']" in text


def test_another_padding_value_makes_another_batch() -> None:
    reader = codec.Codec()
    message = token_request([1]).SerializeToString()
    schemas = [
        codec.ModelSchema("m", max_batch_size=8).add_input(
            "TOKENS", "INT32", [-1], buckets=(4,), value=numbers(value)
        )
        for value in (1, 2)
    ]

    prepared = [reader.prepare(message, schema) for schema in schemas]

    assert prepared[0].signature_id != prepared[1].signature_id


def test_lengths_that_their_input_cannot_hold_are_refused() -> None:
    schema = token_schema(length_type="INT8")
    assert sent(alone(token_request([1] * 127), schema))["LENGTH"] == ([1, 1], b"\x7f")

    assert refusal(token_request([1] * 128), schema) == (INVALID_ARGUMENT, TOO_LARGE)


def test_no_mask_is_written_for_lengths_that_are_only_claimed() -> None:
    schema = codec.ModelSchema("m", max_batch_size=8).add_input(
        "TOKENS", "INT32", [-1, -1], buckets=(4,), mask="MASK"
    )
    schema.add_input("MASK", "BOOL", [-1])
    for length in (2**20, 2**40, 2**62):
        request = Request(model_name="m", raw_input_contents=[b""])
        request.inputs.add(name="TOKENS", datatype="INT32", shape=[1, length, 0])
        assert refusal(request, schema) == (INVALID_ARGUMENT, TOO_LARGE)


@pytest.mark.parametrize("inner", [0, 2**20, 2**60])
def test_empty_tensors_are_not_filled_up_to_what_their_shape_claims(inner: int) -> None:
    schema = codec.ModelSchema("m", max_batch_size=8)
    schema.add_input("TOKENS", "INT32", [-1, -1], buckets=(4,))
    request = Request(model_name="m", raw_input_contents=[b""])
    request.inputs.add(name="TOKENS", datatype="INT32", shape=[1, 0, inner])

    assert sent(alone(request, schema)) == {"TOKENS": ([1, 0, inner], b"")}


def test_a_batch_that_padding_would_make_too_large_is_not_padded() -> None:
    schema = codec.ModelSchema("m", max_batch_size=1024)
    schema.add_input("TOKENS", "INT8", [-1, -1], buckets=(1, 2**20))
    for inner, length in ((1, 2**20), (2, 3)):
        request = Request(model_name="m", raw_input_contents=[bytes(3 * inner)])
        request.inputs.add(name="TOKENS", datatype="INT8", shape=[1, 3, inner])
        assert sent(alone(request, schema))["TOKENS"][0] == [1, length, inner]


def test_requests_that_go_alone_are_not_padded() -> None:
    request = token_request([1, 2, 3], mask=[1, 1, 1])
    request.parameters["sequence_id"].int64_param = 3

    assert alone(request, token_schema()) == request


def test_other_outputs_and_class_results_are_not_cut() -> None:
    request = token_request([1, 2, 3])
    request.outputs.add(name="OUT").parameters["classification"].int64_param = 4
    response = Response(model_name="m", model_version="1")
    response.outputs.add(name="OUT", datatype="BYTES", shape=[1, 4])
    response.raw_output_contents.append(bytes(16))
    reply = codec.Reply(response.SerializeToString())
    reply.splits_into(1)

    answer = codec.write_reply(prepare(request, token_schema()), [(reply, 0, 1)])

    assert Response.FromString(answer) == response


def test_a_reply_of_another_length_is_not_cut() -> None:
    response = Response(model_name="m", model_version="1")
    response.outputs.add(name="OUT", datatype="INT32", shape=[1, 2])
    response.raw_output_contents.append(bytes(8))
    reply = codec.Reply(response.SerializeToString())

    answer = codec.write_reply(
        prepare(token_request([1, 2, 3]), token_schema()), [(reply, 0, 1)], whole=True
    )

    assert Response.FromString(answer) == response
