"""Whatever is held, not complete, cancelled or set aside: the connection window stays exact."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from scheduler._native import http2
from tests.unit.http2.peers import STREAM_INFER, H2Client, frame_message, streaming

pytestmark = pytest.mark.native

CANCEL = 8
KIB = 1 << 10
WINDOWS = (64 * KIB, 100_000, 1 << 20, 8 << 20)
# Less than this may be kept back from the client: it is not worth a window update.
KEPT_MAX = 4 * KIB
HELD_MAX = 40


@dataclass
class Upload:
    """What a client sends on one stream, whole messages one after another."""

    stream: int
    data: bytes
    lengths: list[int]
    one_way: bool  # a message stream
    sent: int = 0
    events: list[http2.Event] = field(default_factory=list)

    def done(self) -> bool:
        return len(self.events) == len(self.lengths)


class Connection:
    """A client that sends without end, and a server that lets go as it likes."""

    def __init__(self, rng: random.Random, window: int) -> None:
        self.rng = rng
        self.window = window
        self.budget = http2.ByteBudget()
        self.server = streaming(
            self.budget,
            connection_window_bytes=self.window,
            stream_window_bytes=rng.choice((64 * KIB, 1 << 20, self.window)),
        )
        self.client = H2Client(self.server)
        self.unfinished: dict[int, Upload] = {}
        self.held: list[http2.Event] = []
        self.through = 0

    def is_long(self, length: int) -> bool:
        return length > self.window // 2

    def room(self) -> int:
        return self.window - self.server.unpaid_window_bytes

    def random_size(self) -> int:
        part = self.rng.choice((0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.6, 1, 1.1, 3))
        return int(self.window * part * self.rng.uniform(0.7, 1.3))

    def open(self) -> Upload:
        on_stream = self.rng.random() < 0.5
        messages = [bytes(self.random_size())]
        if on_stream:
            messages += [bytes(self.random_size()) for _ in range(self.rng.choice((0, 0, 1, 3)))]
        stream = self.client.open(STREAM_INFER) if on_stream else self.client.open()
        data = b"".join(map(frame_message, messages))
        lengths = [len(message) + 5 for message in messages]
        upload = Upload(stream, data, lengths, on_stream)
        self.unfinished[stream] = upload
        return upload

    def exchange(self) -> None:
        for event in self.client.exchange():
            if event.kind in ("request", "message"):
                self.unfinished[event.stream].events.append(event)
                self.held.append(event)
        held = sum(event.window_bytes for event in self.held)
        incomplete = self.server.unpaid_window_bytes - held
        assert 0 <= incomplete <= self.window // 2
        assert self.server.unpaid_window_bytes <= self.window

    def send(self, upload: Upload, bytes_max: int) -> bool:
        """Sends so much as the windows open; whether all of that has left."""
        end = min(upload.sent + bytes_max, len(upload.data))
        while upload.sent < end:
            h2 = self.client.h2
            room = min(
                h2.local_flow_control_window(upload.stream),
                h2.max_outbound_frame_size,
                end - upload.sent,
            )
            if room <= 0:
                return False
            padding = self.rng.randrange(200) if room > 300 and self.rng.random() < 0.1 else None
            size = room if padding is None else room - padding - 1
            h2.send_data(
                upload.stream, upload.data[upload.sent : upload.sent + size], False, padding
            )
            upload.sent += size
            self.exchange()
        if end == len(upload.data) and not (upload.done() and upload.one_way):
            self.client.h2.end_stream(upload.stream)
            self.exchange()
        return True

    def end(self, upload: Upload) -> None:
        """It was received whole."""
        assert [len(event.message) + 5 for event in upload.events] == upload.lengths
        for event in upload.events:
            if self.is_long(len(event.message) + 5):
                assert event.window_bytes == 0
        del self.unfinished[upload.stream]
        self.through += len(upload.events)
        if not upload.one_way:
            self.server.answer(upload.stream, b"")
        else:
            self.server.finish(upload.stream)
        self.exchange()

    def cancel(self, upload: Upload) -> None:
        del self.unfinished[upload.stream]
        self.client.h2.reset_stream(upload.stream, CANCEL)
        self.exchange()

    def let_go(self) -> None:
        event = self.held.pop(self.rng.randrange(len(self.held)))
        if event.window_bytes and self.rng.random() < 0.2:
            self.held.append(self.server.set_aside(event))
        else:
            self.server.release(event)
        self.exchange()

    def send_alone(self) -> None:
        """When no other is on its way: it waits for held ones only where it must."""
        upload = self.open()
        room = self.room()
        short = [length for length in upload.lengths if not self.is_long(length)]
        through = self.send(upload, len(upload.data))
        if sum(short) + KEPT_MAX <= room:
            assert through
        if sum(short) > room:
            assert not through
        while not through:
            assert self.held, "it waits for nothing"
            self.let_go()
            through = self.send(upload, len(upload.data))
        assert [event.window_bytes for event in upload.events] == [
            0 if self.is_long(length) else length for length in upload.lengths
        ]
        self.end(upload)

    def turn(self) -> None:
        choice = self.rng.random()
        uploads = list(self.unfinished.values())
        if choice < 0.6:
            starts = not uploads or (choice < 0.3 and len(uploads) < 8)
            upload = self.open() if starts else self.rng.choice(uploads)
            part = self.rng.choice((1, 7, 5_000, self.window // 3, 1 << 40, 1 << 40))
            if self.send(upload, part) and upload.sent == len(upload.data):
                self.end(upload)
        elif choice < 0.7 and uploads:
            self.cancel(self.rng.choice(uploads))
        elif (choice < 0.85 and self.held) or len(self.held) > HELD_MAX:
            self.let_go()
        elif choice > 0.95:
            for upload in uploads:
                self.cancel(upload)
            self.send_alone()

    def let_all_go(self) -> None:
        for upload in list(self.unfinished.values()):
            self.cancel(upload)
        while self.held:
            self.let_go()
        assert self.server.unpaid_window_bytes == 0
        assert self.budget.used == 0
        # Updates are sent for half a window at a time.
        assert self.client.h2.outbound_flow_control_window > self.window // 2


@pytest.mark.parametrize("seed", range(12))
def test_a_request_waits_only_for_held_ones_that_leave_it_too_little(seed: int) -> None:
    rng = random.Random(seed)
    connection = Connection(rng, rng.choice(WINDOWS))
    for _ in range(4):
        for _ in range(60):
            connection.turn()
        for upload in list(connection.unfinished.values()):
            connection.cancel(upload)
        for _ in range(10):
            connection.send_alone()
        connection.let_all_go()
    assert connection.through > 40


def test_no_window_is_lost_over_thousands_of_requests() -> None:
    connection = Connection(random.Random(99), 64 * KIB)
    while connection.through < 3_000:
        connection.turn()
        if connection.rng.random() < 0.01:
            connection.let_all_go()
    connection.let_all_go()
