"""Every bound of the server session, at the bound: bytes, windows, streams, headers, answers."""

from __future__ import annotations

import h2.errors
import h2.settings
import pytest

from scheduler._native import http2
from tests.unit.http2.peers import (
    CANCELLED,
    LIVE,
    RESOURCE_EXHAUSTED,
    STREAM_INFER,
    H2Client,
    answer_with,
    frame_message,
    http2_frame,
    refused,
    server,
    streaming,
)

pytestmark = pytest.mark.native

NO_ERROR = 0


# -- bounds ------------------------------------------------------------------------------------


def test_the_message_bound_is_exact() -> None:
    budget = http2.ByteBudget()
    client = H2Client(server(message_bytes_max=1000, budget=budget))
    stream = client.request(bytes(1000))
    (event,) = client.exchange()
    assert len(event.message) == 1000
    client.server.refuse(stream, CANCELLED, "")
    client.server.release(event)

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

    second.server.release(held[1])
    assert budget.used == 105
    first.request(bytes(100))
    assert [event.kind for event in first.exchange()] == ["request"]


@pytest.mark.parametrize(
    "kept", [{"forward_metadata": ["x-kept"]}, {"watched_headers": ["x-kept"]}, {}]
)
def test_headers_that_are_kept_count_until_their_stream_is_closed(kept: dict[str, object]) -> None:
    """Compressed, a header of some bytes may stand for many kilobytes."""
    each = len("x-kept") + 1000 + 32 if kept else 0
    budget = http2.ByteBudget(2 * 1038 + 20)
    session = server(budget=budget, **kept)
    client = H2Client(session)
    streams = [client.open(extra=[("x-kept", "v" * 1000)]) for _ in range(3)]
    client.exchange()
    if kept:
        assert refused(client, streams[2])[0] == RESOURCE_EXHAUSTED
    assert budget.used == 2 * each

    client.send(streams[0], frame_message(b"fine"), end_stream=True)
    client.exchange(answer_with(session, b"fine"))
    assert client.answers[streams[0]].message == b"fine"
    assert budget.used == each
    client.h2.reset_stream(streams[1])
    client.exchange()
    assert budget.used == 0


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
        client.server.release(event)
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


@pytest.mark.parametrize("part", [0.3, 0.5, 1])
def test_incomplete_messages_of_many_streams_do_not_lock_the_window(part: float) -> None:
    client = H2Client(server(connection_window_bytes=WINDOW))
    client.request(b"held")
    client.exchange()
    framed = frame_message(bytes(int(part * WINDOW) - 5))
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


@pytest.mark.parametrize("on_stream", [False, True], ids=["call", "stream"])
def test_a_large_message_does_not_wait_for_a_small_request_that_is_held(on_stream: bool) -> None:
    client = H2Client(streaming(connection_window_bytes=WINDOW, stream_window_bytes=WINDOW))
    client.request(b"held")
    (held,) = client.exchange()
    message = bytes(range(256)) * (4 * WINDOW // 256)
    stream = client.open(STREAM_INFER) if on_stream else client.open()
    events = send_as_windows_open(client, stream, frame_message(message))
    assert message in [event.message for event in events if event.stream == stream]
    client.server.release(held)


@pytest.mark.parametrize("on_stream", [False, True], ids=["call", "stream"])
@pytest.mark.parametrize(
    "held_windows",
    [[0.6], [1], [2], [4], [0.25] * 3, [0.45] * 2, [0.01] * 5],
    ids=lambda windows: f"{len(windows)} of {windows[0]}",
)
@pytest.mark.parametrize("windows", [0.6, 1.1, 4])
def test_a_message_longer_than_half_the_window_does_not_wait_for_held_requests(
    held_windows: list[float], windows: float, on_stream: bool
) -> None:
    client = H2Client(streaming(connection_window_bytes=WINDOW, stream_window_bytes=WINDOW))
    for part in held_windows:
        send_as_windows_open(client, client.open(), frame_message(bytes(int(part * WINDOW))))
    message = bytes(int(windows * WINDOW))
    stream = client.open(STREAM_INFER) if on_stream else client.open()
    events = send_as_windows_open(client, stream, frame_message(message))
    assert message in [event.message for event in events if event.stream == stream]


def test_long_held_requests_leave_all_of_the_window_to_others() -> None:
    client = H2Client(server(connection_window_bytes=WINDOW))
    for _ in range(3):
        send_as_windows_open(client, client.open(), frame_message(bytes(2 * WINDOW)))
    events = fill_window(client, 10_000)
    assert len(events) == WINDOW // 10_005


def test_held_requests_that_fill_the_window_stall_others_until_they_are_released() -> None:
    client = H2Client(server(connection_window_bytes=WINDOW))
    held = fill_window(client, 10_000)
    for size in (10_000, 2 * WINDOW):
        with pytest.raises(AssertionError, match="stuck"):
            send_as_windows_open(client, client.open(), frame_message(bytes(size)))
    for event in held[:3]:
        client.server.release(event)
    client.exchange()
    (event,) = send_as_windows_open(client, client.open(), frame_message(bytes(2 * WINDOW)))
    assert len(event.message) == 2 * WINDOW


def test_what_is_relayed_does_not_wait_for_held_requests() -> None:
    """It is paid back at once, though it may never come to half a window."""
    client = H2Client(server(connection_window_bytes=WINDOW))
    fill_window(client, int(0.3 * WINDOW))
    stream = client.open(LIVE)
    for _ in range(30):
        client.send(stream, bytes(10_000))
        (event,) = (e for e in client.exchange() if e.kind == "forward_data")
        client.server.forward_consumed(stream, len(event.message))
        client.exchange()


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
                client.server.release(event)
        client.exchange()
    # Updates are sent for half a window at a time.
    assert client.h2.outbound_flow_control_window > WINDOW // 2


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


def test_refusals_that_are_not_read_stop_the_reading() -> None:
    session = server(streams_max=10)
    client = H2Client(session)
    block = client.h2.encoder.encode(client.headers(STREAM_INFER))
    fed = 0
    while session.wants_read() and fed < 20_000:
        stream = 2 * fed + 1
        session.feed(http2_frame(1, 5, stream, block) + http2_frame(3, 0, stream, bytes(4)))
        fed += 1
    assert 4000 < fed < 5000
    session.pull()
    assert session.wants_read()


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
