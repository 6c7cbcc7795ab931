"""Messages of ModelStreamInfer, sequences and shared-memory regions, as the codec sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tritonclient.grpc import service_pb2

from scheduler._native import codec
from tests.codec_messages import Request, Response
from tests.codec_vectors import (
    INVALID_ARGUMENT,
    ROW,
    prepare,
    refusal,
    vector_request,
    vector_schema,
)

pytestmark = pytest.mark.native

UNIMPLEMENTED = 12
StreamResponse = service_pb2.ModelStreamInferResponse


def sequence_request(sequence_id: int | str | None, **flags: bool) -> Request:
    request = vector_request(id="7")
    if isinstance(sequence_id, int):
        request.parameters["sequence_id"].int64_param = sequence_id
    elif sequence_id is not None:
        request.parameters["sequence_id"].string_param = sequence_id
    for name, flag in flags.items():
        request.parameters[name].bool_param = flag
    return request


def test_sequence_parameters_are_read() -> None:
    prepared = prepare(sequence_request(42, sequence_start=True, sequence_end=False))

    assert prepared.has_sequence
    assert prepared.sequence_text == b"42"
    assert (prepared.sequence_start, prepared.sequence_end) == (True, False)
    assert not prepared.mergeable


def test_equal_ids_have_equal_keys_and_others_not() -> None:
    ids: list[int | str] = [1, 2, -1, 2**63 - 1, "1", "a", "b", "x" * 128]

    keys = [prepare(sequence_request(i)).sequence for i in ids]

    assert keys == [prepare(sequence_request(i)).sequence for i in ids]
    assert len(set(keys)) == len(ids)
    assert 0 not in keys


@pytest.mark.parametrize("nothing", [0, "", "\0rest", None])
def test_the_ids_that_say_no_sequence(nothing: int | str | None) -> None:
    prepared = prepare(sequence_request(nothing, sequence_start=True))

    assert (prepared.sequence, prepared.sequence_text) == (0, b"")
    assert prepared.has_sequence


def test_negative_ids_are_shown_unsigned_as_triton_does() -> None:
    assert prepare(sequence_request(-1)).sequence_text == b"18446744073709551615"


def test_a_request_after_a_sequence_has_none() -> None:
    reader = codec.Codec()
    message = sequence_request(5, sequence_start=True, sequence_end=True).SerializeToString()
    reader.prepare(message, vector_schema())

    later = reader.prepare(vector_request().SerializeToString(), vector_schema())

    assert not later.has_sequence
    assert (later.sequence, later.sequence_text, later.regions) == (0, b"", [])


@pytest.mark.parametrize(
    ("name", "value", "code", "text"),
    [
        (
            "sequence_id",
            {"uint64_param": 1},
            INVALID_ARGUMENT,
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        ),
        (
            "sequence_id",
            {"string_param": "x" * 129},
            UNIMPLEMENTED,
            "string correlation ID cannot be longer than 128 characters",
        ),
        (
            "sequence_start",
            {"int64_param": 1},
            INVALID_ARGUMENT,
            "invalid value type for 'sequence_start' parameter, expected bool_param.",
        ),
        (
            "sequence_end",
            {},
            INVALID_ARGUMENT,
            "invalid value type for 'sequence_end' parameter, expected bool_param.",
        ),
    ],
)
def test_wrong_sequence_parameters_are_refused_in_tritons_words(
    name: str, value: dict[str, object], code: int, text: str
) -> None:
    request = vector_request(id="7")
    request.parameters[name].SetInParent()
    for field, content in value.items():
        setattr(request.parameters[name], field, content)

    assert refusal(request) == (code, text)


def region_request(**parameters: object) -> Request:
    """A request whose input has these parameters and no raw contents."""
    request = vector_request(id="7")
    del request.raw_input_contents[:]
    for name, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(request.inputs[0].parameters[name], field, value)
    return request


def test_regions_of_inputs_and_outputs_are_named_once() -> None:
    request = region_request(shared_memory_region="in", shared_memory_byte_size=16)
    for name, region in (("O", "out"), ("P", "in")):
        parameters = request.outputs.add(name=name).parameters
        parameters["shared_memory_region"].string_param = region
        parameters["shared_memory_byte_size"].int64_param = 16
        parameters["shared_memory_offset"].int64_param = 4

    prepared = prepare(request)

    assert prepared.regions == [b"in", b"out"]
    assert not prepared.mergeable
    assert codec.merge([(prepared, 0, 1)]) == request.SerializeToString()


def test_other_parameters_with_that_beginning_are_no_region() -> None:
    request = vector_request()
    request.inputs[0].parameters["shared_memory_kind"].string_param = "none"

    prepared = prepare(request)

    assert prepared.regions == []
    assert prepared.mergeable


def with_contents(request: Request) -> Request:
    request.inputs[0].contents.fp32_contents.append(1)
    return request


def with_output(**parameters: object) -> Request:
    request = vector_request(id="7")
    output = request.outputs.add(name="O")
    for name, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(output.parameters[name], field, value)
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            region_request(shared_memory_region=5, shared_memory_byte_size=16),
            "invalid value type for 'shared_memory_region' parameter for tensor 'I', expected "
            "string_param.",
        ),
        (
            region_request(shared_memory_region="r", shared_memory_byte_size="16"),
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'I', expected "
            "int64_param.",
        ),
        (
            region_request(
                shared_memory_region="r", shared_memory_byte_size=16, shared_memory_offset="0"
            ),
            "invalid value type for 'shared_memory_offset' parameter for tensor 'I', expected "
            "int64_param.",
        ),
        (
            region_request(shared_memory_region="r"),
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' "
            "parameter for tensor 'I'",
        ),
        (
            region_request(shared_memory_offset=1),
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter "
            "for tensor 'I'",
        ),
        (
            region_request(shared_memory_byte_size=1),
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' "
            "parameter for tensor 'I'",
        ),
        (
            with_contents(region_request(shared_memory_region="r", shared_memory_byte_size=16)),
            "unexpected 'content' provided when using shared memory for input tensor 'I' for "
            "model 'm'",
        ),
        (
            with_output(shared_memory_byte_size=1),
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' "
            "parameter for tensor 'O'",
        ),
        (
            with_output(shared_memory_region="r", shared_memory_byte_size=16, classification=1),
            "output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_wrong_regions_are_refused_in_tritons_words(request_: Request, text: str) -> None:
    assert refusal(request_) == (INVALID_ARGUMENT, text)


@pytest.mark.parametrize("empty_final", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_a_stream_request_is_the_request_under_another_id(
    asked: bool | None, empty_final: bool
) -> None:
    request = sequence_request(9, sequence_start=True, sequence_end=False)
    request.parameters["priority"].int64_param = 1
    request.parameters["timeout"].int64_param = 1_000_000
    if asked is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = asked
    prepared = prepare(request)
    assert prepared.wants_empty_final == bool(asked)

    sent = Request.FromString(
        codec.write_stream_request(prepared, b"ours", empty_final=empty_final)
    )

    flag = sent.parameters.pop("triton_enable_empty_final_response", None)
    assert (flag is not None and flag.bool_param) == empty_final
    request.parameters.pop("triton_enable_empty_final_response", None)
    del request.parameters["timeout"]
    request.id = "ours"
    assert sent == request


def stream_reply(*, final: bool | None = True, rows: int = 1, **fields: object) -> StreamResponse:
    reply = StreamResponse(infer_response=Response(model_name="m", model_version="1", **fields))
    if final is not None:
        reply.infer_response.parameters["triton_final_response"].bool_param = final
    if rows:
        reply.infer_response.outputs.add(name="O", datatype="FP32", shape=[rows, 4])
        reply.infer_response.raw_output_contents.append(ROW * rows)
    return reply


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 400])
@pytest.mark.parametrize("client_id", ["", "client"])
def test_stream_replies_pass_but_for_the_id(final: bool, rows: int, client_id: str) -> None:
    expected = stream_reply(final=final, rows=rows, id="17")

    reply = codec.StreamReply(expected.SerializeToString())

    assert (reply.id, reply.error_message) == (b"17", b"")
    assert (reply.final, reply.empty) == (final, final and rows == 0)
    assert Response.FromString(reply.response or b"") == expected.infer_response
    expected.infer_response.id = client_id
    written = codec.write_stream_reply(reply, b"17", client_id.encode())
    assert StreamResponse.FromString(written) == expected


def test_the_id_in_error_texts_becomes_the_clients() -> None:
    for client_id, shown in (("", "<id_unknown>"), ("mine", "mine"), ("mi\0ne", "mi")):
        refused = StreamResponse(error_message="[request id: 17] no such thing: 17")
        refused.infer_response.id = "17"
        reply = codec.StreamReply(refused.SerializeToString())
        assert (reply.final, reply.empty) == (True, False)

        refused.error_message = f"[request id: {shown}] no such thing: 17"
        refused.infer_response.id = client_id
        written = codec.write_stream_reply(reply, b"17", client_id.encode())
        assert StreamResponse.FromString(written) == refused


def test_an_error_of_a_request_that_goes_on_is_not_final() -> None:
    failed = stream_reply(final=False, rows=0, id="17")
    failed.error_message = "one response failed"

    reply = codec.StreamReply(failed.SerializeToString())

    assert (reply.final, reply.empty) == (False, False)


@pytest.mark.parametrize("rows", [1, 400])
def test_a_unary_reply_becomes_a_message_of_the_stream(rows: int) -> None:
    plain = stream_reply(final=None, rows=rows, id="7").infer_response
    reply = codec.Reply(plain.SerializeToString())
    request = prepare(vector_request(1, id="7"))

    wrapped = codec.wrap_stream_reply(request, [(reply, 0, 1)], whole=True)

    assert StreamResponse.FromString(wrapped) == stream_reply(rows=rows, id="7")
    assert codec.StreamReply(wrapped).final


@pytest.mark.parametrize("client_id", [b"", b"mine", b"mi\0ne"])
def test_errors_of_a_stream(client_id: bytes) -> None:
    refused = StreamResponse.FromString(codec.write_stream_error(b"no", client_id))
    expected = StreamResponse(error_message="no")
    expected.infer_response.SetInParent()
    expected.infer_response.id = client_id.decode()
    assert refused == expected

    request = prepare(vector_request(id=client_id.decode(), model_version="1"))
    failed = StreamResponse.FromString(codec.write_stream_failure(request, b"no"))
    expected = stream_reply(rows=0, id=client_id.decode())
    expected.error_message = "no"
    assert failed == expected


def test_malformed_stream_replies() -> None:
    message = stream_reply(id="17").SerializeToString()
    twice = message + message
    nested: Callable[[bytes], bytes] = lambda body: bytes((0x12, len(body))) + body  # noqa: E731
    for broken in (message[:-1], twice, nested(b"\x1a\x05ab"), nested(b"\x22\x02\x0a\x05")):
        with pytest.raises(ValueError, match="not a ModelStreamInferResponse"):
            codec.StreamReply(broken)
