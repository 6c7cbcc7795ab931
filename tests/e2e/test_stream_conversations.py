"""Every conversation over ModelStreamInfer goes through the scheduler as it goes to Triton."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.serving import ServedScheduler
from tests.streams import (
    Conversation,
    OpenStream,
    Request,
    converse,
    int_request,
    repeat_request,
    sequence_request,
)
from tests.wire.calls import Stub, connected, infer_request, rows

ENDS_AT_ERROR = (("triton_grpc_error", "true"),)
OK = grpc.StatusCode.OK


def plain(request_id: str = "", model: str = "identity", value: float = 1.0) -> Request:
    return infer_request(rows(value), model=model, request_id=request_id)


def misshaped(request_id: str = "") -> Request:
    return infer_request(rows(1, 1, 8), request_id=request_id)


CONVERSATIONS: dict[str, list[Request]] = {
    "nothing": [],
    "plain": [plain("a"), plain("b", value=2), plain("")],
    "plain, repeated ids": [plain("a"), plain("a", value=2), plain("a", value=3)],
    "a slow one first": [plain("s", "slow"), plain("f"), plain("t", "slow"), plain("g")],
    "unknown model": [plain("u", "nope"), plain("a")],
    "version": [infer_request(rows(1), version=v, request_id=v) for v in ("abc", "7", "1")],
    "misshaped": [misshaped("v"), plain("a"), misshaped()],
    "failing": [plain("x", "failing", -5), plain("y", "failing", 5)],
    "bad priority": [infer_request(rows(1), request_id="p", parameters={"priority": "x"})],
    "bytes": [plain("a", "unbatched"), plain("b", "identity_small")],
    "decoupled": [repeat_request(3, "a"), repeat_request(2, "b"), repeat_request(1, "c")],
    "decoupled, no id": [repeat_request(3)],
    "no responses": [repeat_request(0, "a")],
    "no responses, final wanted": [repeat_request(0, "a", wants_empty_final=True)],
    "final wanted": [repeat_request(2, "a", wants_empty_final=True), repeat_request(2, "b")],
    "error in the middle": [repeat_request(3, "a", fail_at=1)],
    "error, final wanted": [repeat_request(2, "a", fail_at=1, wants_empty_final=True)],
    "unfit for decoupled": [infer_request(rows(1), model="repeat", request_id="q")],
    "large": [repeat_request(5, "a", size=300_000)],
    "sequence": [
        sequence_request(1, 900, start=True, request_id="a"),
        sequence_request(2, 900, request_id="b"),
        sequence_request(3, 900, end=True, request_id="c"),
    ],
    "sequence of text": [
        sequence_request(1, "nine", start=True),
        sequence_request(2, "nine"),
        sequence_request(3, "nine", end=True),
    ],
    "two sequences and others": [
        sequence_request(1, 901, start=True, request_id="1"),
        sequence_request(10, 902, start=True, request_id="10"),
        plain("p"),
        sequence_request(2, 901, end=True, request_id="2"),
        sequence_request(20, 902, end=True, request_id="20"),
    ],
    "sequence without start": [sequence_request(1, 903, request_id="a"), plain("b")],
    "sequence without id": [sequence_request(1, None, start=True, request_id="a")],
    "sequence of id zero": [sequence_request(1, 0, start=True), sequence_request(1, "")],
    "sequence parameters to others": [
        infer_request(rows(1), parameters={"sequence_id": 7, "sequence_start": True})
    ],
    "unfit for sequence": [int_request("sequence", "a", NOPE=1)],
}


@pytest.fixture(scope="module")
def straight(triton: EmbeddedTriton) -> Iterator[Stub]:
    with connected(triton.grpc_address) as stub:
        yield stub


@pytest.fixture(scope="module")
def through(scheduler: ServedScheduler) -> Iterator[Stub]:
    with connected(scheduler.address) as stub:
        yield stub


def ordered_ids(requests: list[Request]) -> set[str]:
    return {request.id for request in requests if request.model_name != "repeat"}


def assert_same(expected: Conversation, got: Conversation, requests: list[Request]) -> None:
    """Replies of decoupled requests may be anywhere, all others are in the same order."""
    assert (got.code, got.text) == (expected.code, expected.text)
    ordered = ordered_ids(requests)
    kept = [[m for m in c.messages if m.infer_response.id in ordered] for c in (expected, got)]
    assert kept[1] == kept[0]
    for request in requests:
        assert got.of(request.id) == expected.of(request.id)
    assert len(got.messages) == len(expected.messages)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_the_same(name: str, straight: Stub, through: Stub) -> None:
    requests = CONVERSATIONS[name]
    expected = converse(straight, requests)
    assert expected.code == OK
    assert_same(expected, converse(through, requests), requests)


def test_decoupled_requests_go_beside_others_on_one_stream(straight: Stub, through: Stub) -> None:
    """Triton 2.51 itself hangs or dies of such a mixture after some rounds."""
    in_order = [
        sequence_request(1, 904, start=True, request_id="1"),
        plain("p"),
        sequence_request(2, 904, end=True, request_id="2"),
    ]
    decoupled = [repeat_request(3, "d"), repeat_request(2, "e", wants_empty_final=True)]
    expected = converse(straight, in_order)
    expected.messages += converse(straight, decoupled).messages
    mixed = [in_order[0], decoupled[0], in_order[1], decoupled[1], in_order[2]]
    for _ in range(30):
        assert_same(expected, converse(through, mixed), mixed)


# Execution errors of requests that wait alone: the Triton of the tests ends itself when an answer
# comes after the status.
ENDING = {
    "plain": [plain("a"), plain("x", "failing", -5)],
    "refused, not executed": [plain("u", "nope"), misshaped("v"), plain("a")],
    "unfit for decoupled": [infer_request(rows(1), model="repeat", request_id="q"), plain("a")],
}


@pytest.mark.parametrize("name", ENDING)
def test_a_failed_execution_ends_the_stream_where_the_client_wants_it(
    name: str, straight: Stub, through: Stub
) -> None:
    expected = converse(straight, ENDING[name], metadata=ENDS_AT_ERROR)
    got = converse(through, ENDING[name], metadata=ENDS_AT_ERROR)
    assert (got.code, got.text) == (expected.code, expected.text)
    # A status overtakes replies that are ready: on the way there one, here or none.
    if expected.code == OK:
        assert got.messages == expected.messages


@pytest.mark.parametrize(
    "values", [("true", "false"), ("false", "true"), ("True",), (" true",), ("",)], ids=str
)
def test_the_first_such_header_counts(
    values: tuple[str, ...], straight: Stub, through: Stub
) -> None:
    metadata = tuple((name, value) for name, _ in ENDS_AT_ERROR for value in values)
    expected = converse(straight, [plain("x", "failing", -5)], metadata=metadata)
    got = converse(through, [plain("x", "failing", -5)], metadata=metadata)
    assert got == expected
    assert (got.code != OK) == (values[0] == "true")


def test_a_failed_response_ends_the_stream_and_the_other_requests(through: Stub) -> None:
    requests = [repeat_request(200, "b", delay_ms=20), repeat_request(3, "a", fail_at=1)]
    got = converse(through, requests, metadata=ENDS_AT_ERROR)
    assert (got.code, got.text) == (grpc.StatusCode.INTERNAL, "response 1 fails")
    assert len(got.of("a")) <= 1
    assert len(got.of("b")) < 200


def test_without_that_header_the_stream_goes_on_after_a_failure(through: Stub) -> None:
    got = converse(through, [plain("x", "failing", -5), repeat_request(2, "a", fail_at=0)])
    assert got.code == OK
    assert sorted(filter(None, got.errors()))[0].startswith("Failed to process the request(s)")
    assert [message.error_message for message in got.of("a")] == ["response 0 fails", ""]


def test_a_stream_has_the_metadata_that_it_has_straight(straight: Stub, through: Stub) -> None:
    def metadata(stub: Stub) -> list[set[str]]:
        with OpenStream(stub) as stream:
            stream.send(repeat_request(2))
            stream.read_many(2)
            stream.half_close()
            with pytest.raises(StopIteration):
                stream.read()
            found = (stream.call.initial_metadata(), stream.call.trailing_metadata())
            return [{key for key, _ in block} for block in found]

    assert metadata(through) == metadata(straight)
