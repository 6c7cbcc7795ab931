"""The server session against hyper-h2 as an independent client: unary calls, statuses, bounds."""

from __future__ import annotations

import base64

import h2.errors
import h2.settings
import pytest

from scheduler._native import http2
from tests.unit.http2_peers import (
    CANCELLED,
    INFER,
    INTERNAL,
    INVALID_ARGUMENT,
    PREFACE,
    RESOURCE_EXHAUSTED,
    ROUTES,
    STREAM_INFER,
    STREAM_TEXT,
    UNIMPLEMENTED,
    H2Client,
    answer_with,
    connect,
    frame_message,
    frames_of,
    http2_frame,
)

pytestmark = pytest.mark.native

NO_ERROR = 0
SECOND = 1_000_000_000


def server(**options: object) -> http2.ServerSession:
    return http2.ServerSession(ROUTES, **options)


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
    client.server.release(event.bytes)
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


def refused(client: H2Client, stream: int) -> tuple[int | None, str]:
    events = client.exchange()
    assert events == []
    answer = client.answers[stream]
    assert answer.ended
    return answer.grpc_status, answer.grpc_message


def test_an_unimplemented_route_says_so() -> None:
    client = H2Client(server())
    stream = client.open(STREAM_INFER)
    assert refused(client, stream) == (UNIMPLEMENTED, STREAM_TEXT)
    assert client.answers[stream].reset == NO_ERROR


def test_an_unknown_encoding_is_unimplemented_with_what_is_accepted() -> None:
    client = H2Client(server())
    stream = client.open(extra=[("grpc-encoding", "gzip")])
    code, text = refused(client, stream)
    assert code == UNIMPLEMENTED
    assert "gzip" in text
    assert client.answers[stream].headers["grpc-accept-encoding"] == "identity"


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


@pytest.mark.parametrize("timeout", ["", "5", "m", "123456789m", "-1S", "1x", "1 S", "1.5S"])
def test_a_malformed_timeout_is_refused(timeout: str) -> None:
    client = H2Client(server())
    stream = client.open(extra=[("grpc-timeout", timeout)])
    code, text = refused(client, stream)
    assert code == INTERNAL
    assert "malformed grpc-timeout" in text


def test_a_request_without_a_message_is_refused() -> None:
    client = H2Client(server())
    stream = client.open(end_stream=True)
    assert refused(client, stream) == (INTERNAL, "Half-closed without a request")


@pytest.mark.parametrize("sent", [1, 4, 5, 9])
def test_a_truncated_message_is_refused(sent: int) -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"12345")[:sent], end_stream=True)
    assert refused(client, stream)[0] == INTERNAL


def test_a_second_message_is_refused() -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"one") + frame_message(b"two"), end_stream=True)
    code, text = refused(client, stream)
    assert code == INTERNAL
    assert "more than one message" in text


@pytest.mark.parametrize(("flag", "text"), [(1, "compressed flag"), (2, "Bad GRPC frame type")])
def test_a_bad_prefix_is_refused(flag: int, text: str) -> None:
    client = H2Client(server())
    stream = client.open()
    client.send(stream, frame_message(b"one", flag), end_stream=True)
    code, message = refused(client, stream)
    assert code == INTERNAL
    assert text in message


def test_a_refused_neighbour_does_not_harm_the_connection() -> None:
    client = H2Client(server())
    bad = client.open()
    client.send(bad, frame_message(b"one", 7))
    good = client.request(b"good")
    client.exchange(answer_with(client.server, b"fine"))
    assert client.answers[bad].grpc_status == INTERNAL
    assert client.answers[good].message == b"fine"
    assert client.goaway is None


# -- bounds ------------------------------------------------------------------------------------


def test_the_message_bound_is_exact() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(message_bytes_max=1000, budget=budget))
    stream = client.request(bytes(1000))
    (event,) = client.exchange()
    assert len(event.message) == 1000
    client.server.refuse(stream, CANCELLED, "")
    client.server.release(event.bytes)

    over = client.open()
    client.send(over, frame_message(bytes(1001))[:100])
    code, text = refused(client, over)
    assert code == RESOURCE_EXHAUSTED
    assert text == "Received message larger than max (1001 vs. 1000)"
    assert client.answers[over].reset == NO_ERROR
    assert budget.used == 0


def test_what_follows_a_refusal_is_dropped_without_being_held() -> None:
    budget = http2.ByteBudget()
    session = server(message_bytes_max=1000, budget=budget, connection_window_bytes=1 << 17)
    client = H2Client(session)
    stream = client.open()
    client.send(stream, frame_message(bytes(60_000)))  # all sent before the refusal is read
    client.exchange()
    assert client.answers[stream].grpc_status == RESOURCE_EXHAUSTED
    assert budget.used == 0
    good = client.request(bytes(1000))
    client.exchange(answer_with(session, b"fine"))
    assert client.answers[good].message == b"fine"


def test_the_byte_budget_is_exact_and_shared() -> None:
    budget = http2.ByteBudget(2 * 105)
    first, second = H2Client(server(budget=budget)), H2Client(server(budget=budget))
    held = [client.request(bytes(100)) and client.exchange()[0] for client in (first, second)]
    assert budget.used == 210

    stream = first.open()
    first.send(stream, b"\0")  # one byte beyond
    code, text = refused(first, stream)
    assert code == RESOURCE_EXHAUSTED
    assert "host memory" in text
    assert int(first.answers[stream].headers["grpc-retry-pushback-ms"]) > 0
    assert "grpc-status-details-bin" in first.answers[stream].headers

    second.server.release(held[1].bytes)
    assert budget.used == 105
    first.request(bytes(100))
    assert [event.kind for event in first.exchange()] == ["request"]


def test_a_session_that_goes_gives_its_bytes_back() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(budget=budget))
    client.request(bytes(100))
    client.send(client.open(), frame_message(bytes(100))[:50])
    client.exchange()
    assert budget.used == 155
    del client
    assert budget.used == 0


def test_the_header_list_bound() -> None:
    session = server(header_list_bytes_max=4096)
    client = H2Client(session)
    fixed = sum(len(n) + len(v) + 32 for n, v in client.headers())
    fill = 4096 - fixed - len("x-fill") - 32
    fits = client.open(extra=[("x-fill", "v" * fill)])
    client.send(fits, frame_message(b"x"), end_stream=True)
    assert [event.kind for event in client.exchange()] == ["request"]
    over = client.open(extra=[("x-fill", "v" * (fill + 1))])
    code, text = refused(client, over)
    assert code == RESOURCE_EXHAUSTED
    assert "metadata" in text


def test_the_stream_bound_is_announced_and_kept() -> None:
    client = H2Client(server(streams_max=3))
    assert client.h2.remote_settings.max_concurrent_streams == 3
    streams = [client.request(b"x") for _ in range(3)]
    events = client.exchange()
    assert [event.stream for event in events] == streams
    # hyper-h2 keeps to it; a frame of our own does not.
    block = client.h2.encoder.encode(client.headers())
    client.server.feed(http2_frame(1, 5, streams[-1] + 2, block))
    client.exchange()
    assert client.goaway == h2.errors.ErrorCodes.PROTOCOL_ERROR
    assert client.server.finished()


def test_a_stream_that_ended_makes_room_for_another() -> None:
    client = H2Client(server(streams_max=1))
    for _ in range(5):
        stream = client.request(b"x")
        client.exchange(answer_with(client.server, b"y"))
        assert client.answers[stream].message == b"y"


# -- the connection window ---------------------------------------------------------------------

WINDOW = 1 << 17


def fill_window(client: H2Client, message_bytes: int) -> list[http2.Event]:
    """Sends requests until the connection window is used up."""
    events: list[http2.Event] = []
    while client.h2.outbound_flow_control_window >= message_bytes + 5:
        client.request(bytes(message_bytes))
        events += client.exchange()
    return events


def test_the_window_bounds_what_a_connection_holds() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(connection_window_bytes=WINDOW, budget=budget))
    events = fill_window(client, 10_000)
    assert WINDOW - 10_005 < budget.used <= WINDOW
    for event in events:
        client.server.answer(event.stream, b"")
        client.server.release(event.bytes)
    client.exchange()
    assert budget.used == 0
    assert client.h2.outbound_flow_control_window > WINDOW // 2


def send_as_windows_open(client: H2Client, stream: int, data: bytes) -> list[http2.Event]:
    events: list[http2.Event] = []
    sent = 0
    for _ in range(10_000):
        room = min(
            client.h2.local_flow_control_window(stream),
            client.h2.max_outbound_frame_size,
            len(data) - sent,
        )
        if room > 0:
            client.h2.send_data(stream, data[sent : sent + room])
            sent += room
        events += client.exchange()
        if sent == len(data):
            client.h2.end_stream(stream)
            return events + client.exchange()
    raise AssertionError(f"stuck after {sent} of {len(data)} bytes")


def test_a_message_larger_than_the_windows_gets_through() -> None:
    client = H2Client(server(connection_window_bytes=WINDOW, stream_window_bytes=WINDOW))
    message = bytes(range(256)) * 4000
    events = send_as_windows_open(client, client.open(), frame_message(message))
    assert [event.message for event in events] == [message]


def test_incomplete_messages_of_many_streams_do_not_lock_the_window() -> None:
    client = H2Client(server(connection_window_bytes=WINDOW))
    framed = frame_message(bytes(WINDOW))
    streams = [client.open() for _ in range(8)]
    sent = dict.fromkeys(streams, 0)
    events: list[http2.Event] = []
    for _ in range(1000):
        for stream in streams:
            room = min(client.h2.local_flow_control_window(stream), 16_384)
            piece = framed[sent[stream] : sent[stream] + room]
            if piece:
                client.h2.send_data(stream, piece)
                sent[stream] += len(piece)
                if sent[stream] == len(framed):
                    client.h2.end_stream(stream)
        events += client.exchange(answer_with(client.server, b"y"))
        if len(events) == len(streams):
            break
    assert sorted(event.stream for event in events) == streams


def test_a_held_request_stalls_a_large_message_until_released() -> None:
    client = H2Client(server(connection_window_bytes=WINDOW))
    client.request(b"held")
    (held,) = client.exchange()
    stream = client.open()
    framed = frame_message(bytes(2 * WINDOW))
    sent = 0
    while (room := min(client.h2.local_flow_control_window(stream), 16_384)) > 0:
        client.h2.send_data(stream, framed[sent : sent + room])
        sent += room
        client.exchange()
    assert sent < len(framed)
    client.server.release(held.bytes)
    client.exchange()
    assert client.h2.local_flow_control_window(stream) > 0


def test_windows_are_whole_again_after_refusals_and_resets() -> None:
    """No byte of a request that ended in any way is lost from the connection window."""
    client = H2Client(server(connection_window_bytes=WINDOW, message_bytes_max=50_000))
    for turn in range(60):
        stream = client.open()
        if turn % 3 == 0:  # too large
            client.send(stream, frame_message(bytes(60_000))[:20_000])
        elif turn % 3 == 1:  # reset half-way
            client.send(stream, frame_message(bytes(40_000))[:20_000])
            client.h2.reset_stream(stream, 8)
        else:  # complete, reset before it is answered
            client.send(stream, frame_message(bytes(20_000)), end_stream=True)
            for event in client.exchange():
                client.h2.reset_stream(stream, 8)
                client.exchange()
                client.server.release(event.bytes)
        client.exchange()
    # Updates are sent for half a window at a time.
    assert client.h2.outbound_flow_control_window > WINDOW // 2


# -- cancellation ------------------------------------------------------------------------------


def test_a_reset_is_told_once_and_only_for_announced_requests() -> None:
    client = H2Client(server())
    unfinished = client.open()
    client.send(unfinished, b"\0\0")
    stream = client.request(b"x")
    (event,) = client.exchange()
    client.h2.reset_stream(unfinished, 8)
    client.h2.reset_stream(stream, 8)
    assert [(e.kind, e.stream) for e in client.exchange()] == [("cancelled", stream)]
    client.server.release(event.bytes)
    client.server.connection_lost()
    assert client.server.events() == []


def test_a_request_reset_before_it_is_taken_is_never_announced() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(budget=budget))
    stream = client.request(b"x")
    client.h2.reset_stream(stream, 8)
    assert client.exchange() == []
    assert budget.used == 0


def test_a_lost_connection_cancels_what_is_open() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(budget=budget))
    streams = [client.request(b"x") for _ in range(3)]
    events = client.exchange()
    client.server.answer(streams[0], b"answered")
    client.server.connection_lost()
    assert {(e.kind, e.stream) for e in client.server.events()} == {
        ("cancelled", streams[1]),
        ("cancelled", streams[2]),
    }
    for event in events:
        client.server.answer(event.stream, b"late")
        client.server.release(event.bytes)
    assert budget.used == 0
    assert client.server.finished()
    assert client.server.pull() == b""
    assert not client.server.feed(b"more")


def test_five_thousand_cancels_in_a_row_leave_the_connection_usable() -> None:
    client = H2Client(server())
    for _ in range(5000):
        stream = client.request(b"x")
        client.h2.reset_stream(stream, 8)
        client.exchange()
    assert client.server.resets_received == 5000
    stream = client.request(b"y")
    client.exchange(answer_with(client.server, b"later"))
    assert client.answers[stream].message == b"later"
    assert client.goaway is None


class RawStreams:
    """Opens streams and resets them in raw frames, faster than hyper-h2 can."""

    def __init__(self, client: H2Client) -> None:
        self.client = client
        self.block = client.h2.encoder.encode(client.headers())
        client.h2.encoder.encode(client.headers())
        self.stream = 1

    def reset_many(self, count: int) -> bool:
        frames = bytearray()
        for _ in range(count):
            # Without END_STREAM; every header is in the table after the first block.
            frames += http2_frame(1, 4, self.stream, self.block)
            frames += http2_frame(3, 0, self.stream, b"\0\0\0\x08")
            self.stream += 2
        alive = self.client.server.feed(bytes(frames), self.client.now)
        self.client.receive(self.client.server.pull())
        return alive and self.client.goaway is None


def test_the_reset_bound_is_a_burst_and_a_rate() -> None:
    client = H2Client(server())
    raw = RawStreams(client)
    assert raw.reset_many(20_000)
    client.now = SECOND
    assert raw.reset_many(10_000)  # what a second earns
    raw.reset_many(1)
    assert client.goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    assert client.server.finished()


def test_answers_earn_resets() -> None:
    client = H2Client(server())
    raw = RawStreams(client)
    assert raw.reset_many(20_000)
    block = client.h2.encoder.encode(client.headers())
    client.server.feed(
        http2_frame(1, 4, raw.stream, block) + http2_frame(0, 1, raw.stream, frame_message(b"x"))
    )
    raw.stream += 2
    (event,) = client.server.events()
    client.server.answer(event.stream, b"y")
    client.server.pull()
    assert raw.reset_many(10)
    raw.reset_many(1)
    assert client.goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


# -- slow readers ------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_not_read_either() -> None:
    bound = 100_000
    client = H2Client(server(unsent_answer_bytes_max=bound))
    streams = [client.request(b"x") for _ in range(4)]
    client.exchange()
    client.h2.increment_flow_control_window(1 << 20)
    for stream in streams:
        client.h2.increment_flow_control_window(1 << 20, stream)
    client.exchange()
    client.server.answer(streams[0], bytes(bound - 5))
    assert client.server.wants_read()  # at the bound
    client.server.answer(streams[1], b"")
    assert not client.server.wants_read()
    data = client.server.pull(bound // 4)
    assert not client.server.wants_read()  # hysteresis
    data += client.server.pull(bound // 2)
    assert client.server.wants_read()
    client.receive(data)
    client.exchange()
    assert client.answers[streams[0]].message == bytes(bound - 5)


def test_a_client_that_closes_its_windows_is_read_but_served_no_more() -> None:
    client = H2Client(server(unsent_answer_bytes_max=100_000))
    client.acknowledge = False
    first = client.request(b"x")
    client.exchange()
    client.server.answer(first, bytes(300_000))
    client.exchange()
    assert client.server.wants_read()  # its window update must be seen
    second = client.request(b"x")
    assert client.exchange() == []
    assert client.answers[second].grpc_status == RESOURCE_EXHAUSTED
    client.acknowledge = True
    client.h2.acknowledge_received_data(65_535, first)
    client.exchange()
    assert client.answers[first].message == bytes(300_000)
    third = client.request(b"x")
    client.exchange(answer_with(client.server, b"again"))
    assert client.answers[third].message == b"again"


def test_a_pull_is_bounded_and_refers_to_large_pieces() -> None:
    client = H2Client(server())
    client.h2.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 1 << 20})
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 22})
    stream = client.request(b"x")
    client.exchange()
    client.h2.increment_flow_control_window(1 << 22)
    client.exchange()
    client.server.answer(stream, [b"h" * 100, b"p" * 100_000, b"t" * 100])
    slices = client.server.pull_slices()
    assert [len(piece) for piece in slices][1] == 100_000
    assert len(slices) == 3
    client.receive(b"".join(slices))
    assert client.answers[stream].message == b"h" * 100 + b"p" * 100_000 + b"t" * 100

    streams = [client.request(b"x") for _ in range(10)]
    client.exchange()
    for other in streams:
        client.server.answer(other, bytes(10_000))
    part = client.server.pull(10_000)
    assert len(part) < 21_000
    assert client.server.wants_write()
    client.receive(part)
    client.exchange()
    assert [client.answers[other].message for other in streams] == [bytes(10_000)] * 10


# -- the end of a connection -------------------------------------------------------------------


GOAWAY = 7


def last_streams(data: bytes) -> list[int]:
    """The last stream ids of the GOAWAY frames in `data`."""
    return [
        int.from_bytes(payload[:4], "big")
        for kind, _, _, payload in frames_of(data)
        if kind == GOAWAY
    ]


def test_drain_announces_then_names_the_last_stream_and_serves_it() -> None:
    pair = connect(server())
    first = pair.client.call(INFER, b"x")
    pair.pump()
    late = pair.client.call(INFER, b"y")
    on_its_way = pair.client.pull()
    pair.server.begin_drain()
    notice = pair.server.pull()
    assert last_streams(notice) == [2**31 - 1]
    pair.client.feed(notice)
    assert pair.client.draining()

    pair.server.feed(on_its_way)
    pair.server.feed(pair.client.pull())
    final = pair.server.pull()
    assert last_streams(final) == [late]
    pair.client.feed(final)
    pair.server_events += pair.server.events()
    assert [event.stream for event in pair.take_server()] == [first, late]
    assert not pair.server.finished()
    pair.server.answer(first, b"one")
    pair.server.answer(late, b"two")
    pair.pump()
    assert [event.message for event in pair.take_client()] == [b"one", b"two"]
    assert pair.server.finished()
    assert pair.client.finished()


def test_a_second_drain_does_not_wait_for_the_client() -> None:
    client = H2Client(server())
    client.server.begin_drain()
    client.server.begin_drain()
    client.server.pull()
    assert client.server.finished()


def test_streams_after_the_final_goaway_are_ignored() -> None:
    client = H2Client(server())
    client.server.begin_drain()
    client.exchange()
    block = client.h2.encoder.encode(client.headers())
    client.server.feed(http2_frame(1, 5, 1, block))
    assert client.server.events() == []


def test_a_ping_is_answered() -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0) + http2_frame(6, 0, 0, b"12345678"))
    assert http2_frame(6, 1, 0, b"12345678") in session.pull()


@pytest.mark.parametrize(
    "flood",
    [http2_frame(6, 0, 0, b"12345678"), http2_frame(4, 0, 0)],
    ids=["ping", "settings"],
)
def test_a_flood_of_frames_to_acknowledge_ends_the_connection(flood: bytes) -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0))
    session.pull()
    assert session.feed(flood * 900)
    session.pull()
    assert not session.feed(flood * 5000)
    session.pull()
    assert session.finished()


def test_an_endless_header_block_ends_the_connection() -> None:
    session = server()
    session.feed(PREFACE + http2_frame(4, 0, 0))
    alive = session.feed(http2_frame(1, 0, 1, b"\x40\x01a\x01b"))
    for _ in range(100):
        alive = alive and session.feed(http2_frame(9, 0, 1, b"\x40\x01a\x01b"))
    session.pull()
    assert not alive
    assert session.finished()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(40),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(0, 0, 1, b"data on an idle stream"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(1, 5, 2, b"\x82"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(8, 0, 0, b"\0\0\0\0"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(1, 5, 1, b"\xff\xff\xff\xff\xff"),
        PREFACE + http2_frame(4, 0, 0) + http2_frame(5, 4, 1, b"\0\0\0\2\x82"),
        PREFACE + http2_frame(4, 0, 0)[:3] + b"\x04\0\0\0\0\0" + bytes(70_000),
    ],
    ids=["http1", "idle", "even", "zero-window", "hpack", "push", "settings-size"],
)
def test_illegal_http2_ends_the_connection(data: bytes) -> None:
    session = server()
    session.feed(data)
    session.pull()
    assert session.finished()
    assert session.events() == []
