"""gzip and deflate of messages: read from any peer, written to those that accept them, bounded."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    INFER,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    STREAM_ROUTES,
    H2Client,
    Pair,
    connect,
    frame_message,
    kinds,
    opened,
    refused,
    released,
    streaming,
)

pytestmark = pytest.mark.native

Compress = Callable[[bytes], bytes]
ENCODINGS: list[tuple[str, Compress]] = [("gzip", gzip.compress), ("deflate", zlib.compress)]
each_encoding = pytest.mark.parametrize(
    ("encoding", "compress"), ENCODINGS, ids=[name for name, _ in ENCODINGS]
)
MIB = 1 << 20


def text_of(size: int) -> bytes:
    """Bytes that compress well and are not all the same."""
    return b"".join(b"%d," % i for i in range(size // 4 + 1))[:size]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def inflated(data: bytes, encoding: str) -> list[bytes]:
    """The messages of a body; every flagged one is inflated by Python's zlib."""
    messages = []
    while data:
        flag, size = struct.unpack(">BI", data[:5])
        part, data = data[5 : 5 + size], data[5 + size :]
        assert len(part) == size
        if flag:
            part = zlib.decompress(part, wbits=31 if encoding == "gzip" else 15)
        messages.append(part)
    return messages


def sent(client: H2Client, encoding: str, data: bytes, path: str = INFER) -> int:
    stream = client.open(path, [("grpc-encoding", encoding)])
    client.send(stream, data, end_stream=True)
    return stream


# -- received ------------------------------------------------------------------------------------


@each_encoding
@pytest.mark.parametrize("size", [0, 1, 100, 65_536, 3_000_000])
def test_a_compressed_request_is_seen_plain(encoding: str, compress: Compress, size: int) -> None:
    budget = http2.ByteBudget()
    session = streaming(budget)
    client = H2Client(session)
    for message in (text_of(size), bytes(size)):
        sent(client, encoding, frame_message(compress(message), 1))
        (request,) = client.exchange()
        assert (request.kind, request.message) == ("request", message)
        assert budget.used == request.bytes >= size
        session.release(request)
        assert budget.used == 0


@each_encoding
def test_flags_may_differ_from_message_to_message(encoding: str, compress: Compress) -> None:
    session = streaming()
    client = H2Client(session)
    plain, large = text_of(100), text_of(200_000)
    data = frame_message(plain) + frame_message(compress(large), 1) + frame_message(b"")
    sent(client, encoding, data * 2, STREAM_INFER)
    events = client.exchange()
    assert [e.message for e in events if e.kind == "message"] == [plain, large, b""] * 2
    assert kinds(events)[-1] == "half_closed"


@each_encoding
def test_a_flag_is_optional_under_an_encoding(encoding: str, compress: Compress) -> None:
    client = H2Client(streaming())
    sent(client, encoding, frame_message(b"plain"))
    assert [event.message for event in client.exchange()] == [b"plain"]


def test_an_empty_flagged_message_is_empty() -> None:
    """As a grpcio server has it."""
    client = H2Client(streaming())
    sent(client, "gzip", frame_message(b"", 1))
    assert [event.message for event in client.exchange()] == [b""]


BAD_GZIP = {
    "no gzip at all": b"x" * 30,
    "cut": gzip.compress(b"message")[:-1],
    "more behind it": gzip.compress(b"message") + b"x",
    "two members": gzip.compress(b"message") * 2,
    "wrong checksum": gzip.compress(b"message")[:-5] + b"\0" + gzip.compress(b"message")[-4:],
    "zlib's format": zlib.compress(b"message"),
}


@pytest.mark.parametrize("name", BAD_GZIP)
def test_corrupt_data_is_an_error_of_its_stream_only(name: str) -> None:
    budget = http2.ByteBudget()
    session = streaming(budget)
    client = H2Client(session)
    stream = sent(client, "gzip", frame_message(BAD_GZIP[name], 1))
    code, text = refused(client, stream)
    assert code == INTERNAL
    assert text.replace("%20", " ") == "Unexpected error decompressing data for algorithm gzip"
    sent(client, "gzip", frame_message(gzip.compress(b"good"), 1))
    assert [event.message for event in client.exchange()] == [b"good"]


def test_deflate_is_the_zlib_format() -> None:
    client = H2Client(streaming())
    raw = zlib.compress(b"message", wbits=-15)
    assert refused(client, sent(client, "deflate", frame_message(raw, 1)))[0] == INTERNAL


def test_a_corrupt_message_of_a_stream_ends_it_behind_what_was_sent() -> None:
    session = streaming()
    client = H2Client(session)
    stream = client.open(STREAM_INFER, [("grpc-encoding", "gzip")])
    client.send(stream, frame_message(gzip.compress(b"fine"), 1))
    start, message = client.exchange()
    assert (start.kind, message.message) == ("stream_opened", b"fine")
    session.send(stream, b"answer")
    client.send(stream, frame_message(b"rubbish", 1))
    assert kinds(client.exchange()) == ["cancelled"]
    answer = client.answers[stream]
    assert (answer.data, answer.grpc_status) == (frame_message(b"answer"), INTERNAL)


# -- bounds --------------------------------------------------------------------------------------


@each_encoding
@pytest.mark.parametrize("make", [text_of, bytes, noise], ids=["text", "zeros", "noise"])
def test_the_bound_is_of_the_inflated_size(
    encoding: str, compress: Compress, make: Callable[[int], bytes]
) -> None:
    client = H2Client(streaming(message_bytes_max=100_000))
    sent(client, encoding, frame_message(compress(make(100_000)), 1))
    assert [event.message for event in client.exchange()] == [make(100_000)]
    stream = sent(client, encoding, frame_message(compress(make(100_001)), 1))
    code, text = refused(client, stream)
    assert code == RESOURCE_EXHAUSTED
    assert text.replace("%20", " ").startswith("Received message larger than max")


def test_a_bomb_is_refused_at_the_bound() -> None:
    """64 MiB in 64 KiB: neither the bound of a message nor that of the memory is passed."""
    bomb = frame_message(gzip.compress(bytes(64 * MIB)), 1)
    for options, budget in (
        ({"message_bytes_max": 4 * MIB}, http2.ByteBudget()),
        ({}, http2.ByteBudget(4 * MIB)),
    ):
        session = streaming(budget, **options)
        client = H2Client(session)
        stream = client.open(INFER, [("grpc-encoding", "gzip")])
        client.exchange()
        used_max = 0
        for start in range(0, len(bomb), 1000):
            if client.answers[stream].ended:
                break
            client.send(stream, bomb[start : start + 1000])
            client.exchange()
            used_max = max(used_max, budget.used)
        assert client.answers[stream].grpc_status == RESOURCE_EXHAUSTED
        assert used_max <= 4 * MIB + 100_000
        assert budget.used == 0


def test_what_inflates_to_much_takes_many_turns() -> None:
    """64 MiB that come in one read do not hold up other connections for as long as they take."""
    session = streaming(stream_window_bytes=1 << 20)
    client = H2Client(session)
    stream = sent(client, "gzip", frame_message(gzip.compress(bytes(64 * MIB)), 1))
    last = client.request(b"behind it")
    assert session.wants_read()
    assert session.feed(client.h2.data_to_send())
    turns, events = 0, []
    while not events:
        assert session.has_events()
        assert not session.wants_read()
        client.receive(session.pull())
        events = session.events()
        turns += 1
    assert turns >= 7
    events += client.exchange()
    assert [(event.stream, len(event.message)) for event in events] == [
        (stream, 64 * MIB),
        (last, 9),
    ]
    assert session.wants_read()


def test_input_put_off_goes_with_its_connection() -> None:
    budget = http2.ByteBudget()
    session = streaming(budget, stream_window_bytes=1 << 20)
    client = H2Client(session)
    sent(client, "gzip", frame_message(gzip.compress(bytes(64 * MIB)), 1))
    session.feed(client.h2.data_to_send())
    assert session.has_events()
    session.connection_lost()
    assert (session.events(), session.has_events(), session.pull()) == ([], False, b"")
    assert budget.used == 0


def test_inflating_is_charged_while_a_message_is_incomplete() -> None:
    budget = http2.ByteBudget()
    session = streaming(budget)
    client = H2Client(session)
    data = frame_message(gzip.compress(text_of(500_000)), 1)
    stream = client.open(INFER, [("grpc-encoding", "gzip")])
    client.send(stream, data[:-1])
    client.exchange()
    assert budget.used > 500_000 - 40_000 + len(data)
    client.h2.reset_stream(stream)
    client.exchange()
    assert budget.used == 0


# -- sent ----------------------------------------------------------------------------------------


def answered(accepts: str | None, compression: str, message: bytes) -> tuple[H2Client, int]:
    """A client whose unary request was answered with `message`."""
    session = streaming(response_compression=compression)
    client = H2Client(session)
    extra = [] if accepts is None else [("grpc-accept-encoding", accepts)]
    stream = client.request(b"x", extra)
    (request,) = client.exchange()
    session.answer(stream, [message[:10], message[10:]])
    session.release(request)
    client.exchange()
    return client, stream


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [500, 70_000, 3_000_000])
def test_answers_are_compressed_for_clients_that_accept_it(encoding: str, size: int) -> None:
    message = text_of(size)
    client, stream = answered("identity, deflate,gzip", encoding, message)
    answer = client.answers[stream]
    assert answer.headers["grpc-encoding"] == encoding
    assert answer.data[0] == 1
    assert len(answer.data) < size
    assert inflated(answer.data, encoding) == [message]
    assert answer.grpc_status == 0


@pytest.mark.parametrize("accepts", [None, "identity", "deflate", "gzipped, xgzip"])
def test_answers_stay_plain_for_clients_that_do_not(accepts: str | None) -> None:
    message = text_of(1000)
    client, stream = answered(accepts, "gzip", message)
    assert client.answers[stream].message == message
    assert "grpc-encoding" not in client.answers[stream].headers


@pytest.mark.parametrize("message", [b"", b"x", noise(50_000), bytes(5 * MIB)])
def test_what_does_not_shrink_or_takes_too_long_goes_uncompressed(message: bytes) -> None:
    client, stream = answered("gzip", "gzip", message)
    assert client.answers[stream].message == message


def test_the_longest_message_that_is_compressed() -> None:
    client, stream = answered("gzip", "gzip", bytes(4 * MIB))
    assert client.answers[stream].data[0] == 1
    client, stream = answered("gzip", "gzip", bytes(4 * MIB + 1))
    assert client.answers[stream].data[0] == 0


def test_messages_of_a_stream_are_compressed_one_by_one() -> None:
    session = streaming(response_compression="gzip")
    client = H2Client(session)
    stream = client.open(STREAM_INFER, [("grpc-accept-encoding", "identity,gzip")])
    client.exchange()
    messages = [text_of(1000), b"small", noise(1000), text_of(100_000)]
    for message in messages:
        session.send(stream, message)
    session.finish(stream)
    client.exchange()
    answer = client.answers[stream]
    assert answer.headers["grpc-encoding"] == "gzip"
    assert len(answer.data) < 60_000
    assert inflated(answer.data, "gzip") == messages


def pair_of(encoding: str, **options: Any) -> Pair:
    """Both of ours compress."""
    return connect(
        http2.ServerSession(STREAM_ROUTES, response_compression=encoding),
        http2.ClientSession(compression=encoding, **options),
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_our_peers_compress_for_each_other(encoding: str) -> None:
    pair = pair_of(encoding)
    message = text_of(2_000_000)
    call = pair.client.call(INFER, message)
    stream = opened(pair, message, b"small", message, half_close=True)
    events = pair.take_server()
    assert [e.message for e in events if e.kind == "request"] == [message]
    assert released(pair, events) == [message, b"small", message]
    pair.server.answer(call, message)
    for part in (message, b"small"):
        pair.server.send(stream, part)
    pair.server.finish(stream)
    pair.pump()
    replies = pair.take_client()
    assert [e.message for e in replies if e.kind == "message"] == [message, b"small"]
    assert [e.message for e in replies if e.kind == "reply"].count(message) == 1
    assert [e.code for e in replies if e.kind == "reply"] == [0, 0]


def test_compressed_calls_are_shorter_on_the_wire() -> None:
    pair = pair_of("gzip")
    pair.client.call(INFER, text_of(100_000))
    assert len(pair.client.pull()) < 60_000


def test_a_compressed_reply_is_bounded_by_its_inflated_size() -> None:
    pair = pair_of("gzip", message_bytes_max=100_000)
    at, over = (pair.client.call(INFER, b"x") for _ in range(2))
    pair.pump()
    pair.server.answer(at, bytes(100_000))
    pair.server.answer(over, bytes(100_001))
    pair.pump()
    replies = {event.stream: event for event in pair.take_client()}
    assert (replies[at].code, len(replies[at].message)) == (0, 100_000)
    assert replies[over].code == RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", ["gzip", "br", None])
def test_a_reply_that_cannot_be_inflated_is_an_error_of_its_call(encoding: str | None) -> None:
    pair = connect(http2.ServerSession())
    call = pair.client.call(INFER, b"x")
    pair.pump()
    headers = [("content-type", "application/grpc")]
    if encoding is not None:
        headers.append(("grpc-encoding", encoding))
    pair.server.forward_headers(call, headers)
    pair.server.forward_data(call, frame_message(b"rubbish", 1))
    pair.pump()
    (reply,) = [event for event in pair.take_client() if event.kind == "reply"]
    assert reply.code == INTERNAL


def test_forwarded_streams_keep_their_bytes() -> None:
    session = streaming(response_compression="gzip")
    client = H2Client(session)
    data = frame_message(gzip.compress(b"message"), 1)
    stream = client.open("/other/Method", [("grpc-encoding", "gzip")])
    client.send(stream, data, end_stream=True)
    events = client.exchange()
    assert ("grpc-encoding", "gzip") in events[0].headers
    assert b"".join(event.message for event in events) == data
    session.forward_headers(
        stream, [("content-type", "application/grpc"), ("grpc-encoding", "gzip")]
    )
    session.forward_data(stream, data)
    session.forward_trailers(stream, [("grpc-status", "0")])
    client.exchange()
    assert client.answers[stream].data == data
    assert client.answers[stream].headers["grpc-encoding"] == "gzip"


def test_large_noise_is_given_up_early() -> None:
    """A start that does not shrink decides: the rest is not even tried."""
    message = noise(300_000) + bytes(700_000)
    client, stream = answered("gzip", "gzip", message)
    assert client.answers[stream].message == message
    client, stream = answered("gzip", "gzip", bytes(700_000) + noise(300_000))
    assert client.answers[stream].data[0] == 1
