"""What the codec makes of replies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scheduler._native import codec
from tests.codec_messages import Response
from tests.codec_vectors import (
    ROW,
    prepare,
    vector_request,
)
from tests.codec_wire import number_field

pytestmark = pytest.mark.native


def reply_of(rows: int, **fields: object) -> Response:
    response = Response(model_name="m", model_version="1", **fields)
    response.outputs.add(name="O", datatype="FP32", shape=[rows, 4])
    response.outputs.add(name="P", datatype="FP32", shape=[rows, 1])
    response.raw_output_contents.extend([ROW * rows, bytes(4 * rows)])
    return response


def test_whole_reply_passes_through_but_for_the_id() -> None:
    request = prepare(vector_request(id="mine"))
    reply = codec.Reply(number_field(99, 1) + reply_of(1, id="batch").SerializeToString())

    answer = codec.write_reply(request, [(reply, 0, 1)], whole=True)

    expected = number_field(99, 1) + reply_of(1, id="mine").SerializeToString()
    assert Response.FromString(answer) == Response.FromString(expected)


def test_whole_reply_needs_no_raw_contents() -> None:
    """Outputs in shared memory and replies of other shapes are none of the codec's business."""
    response = Response(model_name="m", id="mine")
    response.outputs.add(name="O", datatype="FP32", shape=[3])
    request = prepare(vector_request(id="mine"))

    answer = codec.write_reply(
        request, [(codec.Reply(response.SerializeToString()), 0, 1)], whole=True
    )

    assert answer == response.SerializeToString()


def broken_reply(change: Callable[[Response], object]) -> bytes:
    response = reply_of(2)
    change(response)
    return response.SerializeToString()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.outputs[0].shape.__setitem__(0, 3), "another number of rows"),
        (lambda r: r.outputs[0].ClearField("shape"), "another number of rows"),
        (lambda r: r.outputs[0].shape.__setitem__(1, 5), "byte size"),
        (lambda r: r.outputs[0].shape.__setitem__(1, -4), "impossible shape"),
        (lambda r: r.outputs[0].shape.__setitem__(1, 2**62), "impossible shape|byte size"),
        (lambda r: setattr(r.outputs[0], "datatype", "FP8"), "no known datatype"),
        (lambda r: setattr(r.outputs[0], "datatype", "BYTES"), "strings"),
        (lambda r: r.outputs[0].contents.fp32_contents.append(1), "typed contents"),
        (lambda r: r.raw_output_contents.pop(), "2 outputs but 1 raw"),
        (lambda r: r.raw_output_contents.append(b""), "2 outputs but 3 raw"),
    ],
)
def test_replies_that_cannot_be_split_say_why(
    change: Callable[[Response], object], text: str
) -> None:
    reply = codec.Reply(broken_reply(change))

    with pytest.raises(ValueError, match=text):
        reply.splits_into(2)


def typed_reply(change: Callable[[Response], object]) -> codec.Reply:
    response = reply_of(2)
    del response.raw_output_contents[:]
    response.outputs[0].contents.fp32_contents.extend([1, 2, 3, 4] * 2)
    response.outputs[1].contents.fp32_contents.extend([0, 0])
    change(response)
    return codec.Reply(response.SerializeToString())


def test_typed_contents_are_split_as_raw_ones() -> None:
    reply = typed_reply(lambda r: None)
    reply.splits_into(2)

    answer = codec.write_reply(prepare(vector_request(id="mine")), [(reply, 1, 1)])

    assert Response.FromString(answer) == reply_of(1, id="mine")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.outputs[0].contents.fp32_contents.pop(), "byte size"),
        (lambda r: r.outputs[0].ClearField("contents"), "byte size"),
        (lambda r: r.outputs[0].contents.int_contents.append(1), "contents of another datatype"),
        (lambda r: setattr(r.outputs[0], "datatype", "FP16"), "contents of another datatype"),
        (lambda r: setattr(r.outputs[0], "datatype", "FP8"), "contents of another datatype"),
    ],
)
def test_typed_contents_that_do_not_fit_say_why(
    change: Callable[[Response], object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        typed_reply(change).splits_into(2)


def test_malformed_reply() -> None:
    with pytest.raises(ValueError, match="not a ModelInferResponse"):
        codec.Reply(reply_of(1).SerializeToString()[:-1])


def test_rows_beyond_the_reply_are_refused() -> None:
    request = prepare(vector_request(2))
    reply = codec.Reply(reply_of(2).SerializeToString())
    reply.splits_into(2)

    with pytest.raises(ValueError, match="fewer rows"):
        codec.write_reply(request, [(reply, 1, 2)])


def test_parts_that_disagree_are_refused() -> None:
    first, second = reply_of(1), reply_of(1)
    second.outputs[1].shape[1] = 0
    second.raw_output_contents[1] = b""
    replies = [codec.Reply(r.SerializeToString()) for r in (first, second)]
    for reply in replies:
        reply.splits_into(1)

    with pytest.raises(ValueError, match="disagree about output 'P'"):
        codec.write_reply(prepare(vector_request(2)), [(reply, 0, 1) for reply in replies])


def test_parts_may_differ_in_outputs_that_the_request_does_not_want() -> None:
    """Each part of a large request is merged with others, which want other outputs."""
    wanted = vector_request(2, id="large")
    wanted.outputs.add(name="P")
    alone = reply_of(1)
    del alone.outputs[0], alone.raw_output_contents[0]
    together = reply_of(3)
    parts = []
    for response, rows in ((together, 3), (alone, 1)):
        reply = codec.Reply(response.SerializeToString())
        reply.splits_into(rows)
        parts.append((reply, rows - 1, 1))

    for order in (parts, parts[::-1]):
        answer = Response.FromString(codec.write_reply(prepare(wanted), order))

        assert [(output.name, list(output.shape)) for output in answer.outputs] == [("P", [2, 1])]
        assert list(answer.raw_output_contents) == [bytes(8)]


def test_a_part_without_an_output_that_the_request_wants_is_told() -> None:
    lacking = reply_of(1)
    del lacking.outputs[0], lacking.raw_output_contents[0]
    replies = [codec.Reply(r.SerializeToString()) for r in (reply_of(1), lacking)]
    for reply in replies:
        reply.splits_into(1)

    with pytest.raises(ValueError, match="different outputs"):
        codec.write_reply(prepare(vector_request(2)), [(reply, 0, 1) for reply in replies])
