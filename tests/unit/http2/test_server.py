"""The server session against hyper-h2 as an independent client: unary calls and refusals."""

from __future__ import annotations

import base64
import urllib.parse

import pytest

from tests.unit.http2.peers import (
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    STREAM_TEXT,
    UNIMPLEMENTED,
    H2Client,
    answer_with,
    frame_message,
    refused,
    server,
)

pytestmark = pytest.mark.native

SECOND = 1_000_000_000
NO_ERROR = 0


# -- unary calls -------------------------------------------------------------------------------


def test_a_request_is_announced_and_answered() -> None:
    client = H2Client(server())
    client.now = 5 * SECOND
    stream = client.request(b"question", [("grpc-timeout", "250m")])
    (event,) = client.exchange()
    assert event.kind == "request"
    assert event.stream == stream
    assert event.message == b"question"
    assert event.route == 0
    assert event.arrival == 5 * SECOND
    assert event.deadline == 5 * SECOND + SECOND // 4
    assert event.bytes == len(frame_message(b"question"))

    client.server.answer(stream, b"answer")
    client.server.release(event)
    client.exchange()
    answer = client.answers[stream]
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert answer.message == b"answer"
    assert answer.trailers == {"grpc-status": "0"}
    assert answer.ended
    assert answer.reset is None
    assert client.server.open_streams == 0


@pytest.mark.parametrize("size", [0, 1, 5, 16_379, 16_384, 65_531, 65_536, 1_000_000])
def test_messages_of_every_size_pass_whole(size: int) -> None:
    client = H2Client(server())
    message = bytes(i * 31 & 255 for i in range(size))
    stream = client.open()
    framed = frame_message(message)
    for start in range(0, len(framed), 30_000):
        piece = framed[start : start + 30_000]
        while client.h2.local_flow_control_window(stream) < len(piece):
            client.exchange()
        client.send(stream, piece)
    client.h2.end_stream(stream)
    events = client.exchange()
    assert [event.message for event in events] == [message]
    client.server.answer(stream, [message[:7], message[7:]])
    client.exchange()
    assert client.answers[stream].message == message


def test_trailers_of_an_answer_go_with_its_status() -> None:
    client = H2Client(server())
    stream = client.request(b"")
    client.exchange()
    client.server.answer(stream, b"x", [("x-queue-ms", "3")])
    client.exchange()
    assert client.answers[stream].trailers == {"grpc-status": "0", "x-queue-ms": "3"}


def test_chosen_metadata_come_sorted_and_no_other() -> None:
    client = H2Client(server(forward_metadata=["x-tenant", "a-key"], internal_headers=["x-in"]))
    extra = [("x-tenant", "t1"), ("x-in", "no"), ("x-rest", "no"), ("a-key", "k"), ("a-key", "l")]
    client.request(b"", extra)
    (event,) = client.exchange()
    assert event.metadata == b"a-key\0k\0a-key\0l\0x-tenant\0t1\0"


def test_metadata_may_be_chosen_by_how_their_names_begin() -> None:
    client = H2Client(server(forward_metadata=["x-*", "exact"], internal_headers=["x-in"]))
    extra = [("x-b", "1"), ("x-", "2"), ("x-in", "no"), ("ax-b", "no"), ("x", "no"), ("exact", "3")]
    client.request(b"", [*extra, ("exactly", "no")])
    (event,) = client.exchange()
    assert event.metadata == b"exact\x003\0x-\x002\0x-b\x001\0"


def test_all_metadata_are_those_of_the_client_only() -> None:
    """What belongs to the transport, or acts on the client's stream, is not passed on."""
    client = H2Client(server(forward_metadata=["*"]))
    transport = [("user-agent", "u"), ("grpc-trace-bin", "AA"), ("triton_grpc_error", "true")]
    client.request(b"", [("authorization", "a"), *transport])
    (event,) = client.exchange()
    assert event.metadata == b"authorization\0a\0"


def test_an_error_is_a_trailers_only_answer() -> None:
    client = H2Client(server())
    stream = client.request(b"")
    client.exchange()
    client.server.refuse(stream, RESOURCE_EXHAUSTED, "100 % füll\n", b"\x08\x08\xff", 250)
    client.exchange()
    answer = client.answers[stream]
    assert answer.headers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "8",
        "grpc-message": "100 %25 f%C3%BCll%0A",
        "grpc-status-details-bin": base64.b64encode(b"\x08\x08\xff").decode().rstrip("="),
        "grpc-retry-pushback-ms": "250",
    }
    assert answer.ended
    assert answer.data == b""


@pytest.mark.parametrize("text", ["x" * 200_000, "ü€" * 50_000, "a" + "ü" * 50_000, "%" * 9999])
def test_a_long_error_text_is_cut_between_characters(text: str) -> None:
    client = H2Client(server())
    stream = client.request(b"")
    client.exchange()
    client.server.refuse(stream, INTERNAL, text, bytes(100_000))
    client.exchange()
    answer = client.answers[stream]
    assert answer.grpc_status == INTERNAL
    # What gRPC clients take for certain, by their measure, is made use of.
    block = sum(len(name) + len(value) + 32 for name, value in answer.headers.items())
    assert 8192 - 100 <= block <= 8192
    assert text.startswith(urllib.parse.unquote(answer.grpc_message, errors="strict"))


def test_answers_to_streams_that_are_gone_are_ignored() -> None:
    client = H2Client(server())
    stream = client.request(b"")
    client.exchange()
    client.server.answer(stream, b"first")
    client.server.answer(stream, b"second")
    client.server.refuse(stream, INTERNAL, "third")
    client.exchange()
    client.server.answer(stream, b"fourth")
    client.server.answer(stream + 2, b"never opened")
    client.exchange()
    assert client.answers[stream].message == b"first"
    assert client.answers.keys() == {stream}


# -- what is refused ---------------------------------------------------------------------------


def test_an_unimplemented_route_says_so() -> None:
    client = H2Client(server())
    stream = client.open(STREAM_INFER)
    assert refused(client, stream) == (UNIMPLEMENTED, STREAM_TEXT)
    assert client.answers[stream].reset == NO_ERROR


def test_an_unknown_encoding_is_unimplemented_with_what_is_accepted() -> None:
    client = H2Client(server())
    stream = client.open(extra=[("grpc-encoding", "br")])
    code, text = refused(client, stream)
    assert code == UNIMPLEMENTED
    assert "'br'" in text
    assert client.answers[stream].headers["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_identity_encoding_is_accepted() -> None:
    client = H2Client(server())
    client.request(b"x", [("grpc-encoding", "identity"), ("grpc-accept-encoding", "gzip")])
    assert [event.message for event in client.exchange()] == [b"x"]


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;x=y"]
)
def test_content_types_of_grpc_are_accepted(content_type: str) -> None:
    client = H2Client(server())
    stream = client.h2.get_next_available_stream_id()
    headers = [h for h in client.headers() if h[0] != "content-type"]
    client.h2.send_headers(stream, [*headers, ("content-type", content_type)])
    client.send(stream, frame_message(b"x"), end_stream=True)
    assert [event.kind for event in client.exchange()] == ["request"]


@pytest.mark.parametrize("content_type", ["application/json", "application/grpcx", None])
def test_other_content_types_are_415(content_type: str | None) -> None:
    client = H2Client(server())
    stream = client.h2.get_next_available_stream_id()
    headers = [h for h in client.headers() if h[0] != "content-type"]
    if content_type is not None:
        headers.append(("content-type", content_type))
    client.h2.send_headers(stream, headers)
    assert refused(client, stream)[0] == INVALID_ARGUMENT
    assert client.answers[stream].headers[":status"] == "415"


def test_other_methods_are_405() -> None:
    client = H2Client(server())
    stream = client.open(method="GET", end_stream=True)
    assert refused(client, stream)[0] == INTERNAL
    assert client.answers[stream].headers[":status"] == "405"


@pytest.mark.parametrize("timeout", ["", "5", "m", "-1S", "1x", "1.5S"])
def test_a_malformed_timeout_is_refused(timeout: str) -> None:
    client = H2Client(server())
    stream = client.open(extra=[("grpc-timeout", timeout)])
    code, text = refused(client, stream)
    assert code == INTERNAL
    assert "malformed grpc-timeout" in text


def test_a_request_without_a_message_is_refused() -> None:
    client = H2Client(server())
    stream = client.open(end_stream=True)
    assert refused(client, stream) == (INTERNAL, "Unable to parse request")


@pytest.mark.parametrize("sent", [1, 4, 5, 9])
def test_a_truncated_message_is_refused(sent: int) -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"12345")[:sent], end_stream=True)
    assert refused(client, stream) == (INTERNAL, "Unable to parse request")


def test_a_second_message_is_refused() -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"one") + frame_message(b"two"), end_stream=True)
    code, text = refused(client, stream)
    assert code == INTERNAL
    assert "more than one message" in text


@pytest.mark.parametrize("flag", [1, 2])
def test_a_bad_prefix_is_refused(flag: int) -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"one", flag), end_stream=True)
    assert refused(client, stream) == (INTERNAL, "Unable to parse request")


def test_a_refused_neighbour_does_not_harm_the_connection() -> None:
    client = H2Client(server())
    bad = client.open()
    client.send(bad, frame_message(b"one", 7))
    good = client.request(b"good")
    client.exchange(answer_with(client.server, b"fine"))
    assert client.answers[bad].grpc_status == INTERNAL
    assert client.answers[good].message == b"fine"
    assert client.goaway is None
