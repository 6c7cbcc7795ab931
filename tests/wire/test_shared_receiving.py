"""When a message is received into shared memory, and how much of that there is."""

from __future__ import annotations

import os

import pytest

from scheduler.dataplane.segment import create_segment, free_bytes, path_of
from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, wait_until
from tests.wire.calls import connected
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import RawClient
from tests.wire.shared_payload import backend, places_of, share
from tests.wire.test_shared_payload import (
    SEGMENT_BYTES,
    WIDTH,
    ask,
    nothing_held,
    shared_calls,
    wide_model,
)


@pytest.mark.parametrize("sent", [0, 60_000, 250_000])
def test_a_claimed_length_holds_no_memory(plane: DataPlane, fake: FakeTriton, sent: int) -> None:
    """Eight such streams would have all of it; frames may claim what does not come, too."""
    share(plane, fake, [wide_model()])
    claimed = SEGMENT_BYTES // 8 - 4096
    with RawClient(plane.address) as raw, connected(plane.address) as client:
        frame = min(raw.h2.max_outbound_frame_size, 200_000)
        for _ in range(8):
            stream = raw.request_headers()
            raw.send_data(stream, b"\0" + claimed.to_bytes(4, "big") + bytes(sent))
        raw.send_raw(frame.to_bytes(3, "big") + bytes(2) + stream.to_bytes(4, "big") + bytes(9))
        wait_until(lambda: plane.snapshot().host_bytes >= 8 * sent, "all has arrived")
        ask(client, 1)
        assert shared_calls(plane) == 1
        assert plane.snapshot().shared_memory.used_bytes == 0


@pytest.mark.parametrize(
    ("claimed", "sent"), [(600_000, 100_000), (1 << 20, 100_000), (3_000_000, 800_000)]
)
def test_a_large_part_of_a_message_has_memory_for_the_whole(
    plane: DataPlane, fake: FakeTriton, claimed: int, sent: int
) -> None:
    share(plane, fake, [wide_model()])
    with RawClient(plane.address) as raw:
        stream = raw.request_headers()
        raw.send_data(stream, b"\0" + claimed.to_bytes(4, "big") + bytes(sent))
        wait_until(
            lambda: claimed <= plane.snapshot().shared_memory.used_bytes < claimed + (1 << 17),
            "it is received where it is shared",
        )
    nothing_held(plane)


def test_the_segment_leaves_others_half_of_what_is_free() -> None:
    """Of /dev/shm, which containers give 64 MiB by default."""
    segment = create_segment(1 << 50)
    try:
        assert 0 < segment.size <= 0.6 * free_bytes()  # it moves while tests run
        assert path_of(segment.key).stat().st_size == segment.size
    finally:
        segment.remove()
        os.close(segment.fd)


def test_without_room_there_is_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.dataplane.segment.free_bytes", lambda: 4096)
    with pytest.raises(OSError, match="no room"):
        create_segment(1 << 20)


def test_what_the_host_memory_has_no_room_for_goes_by_the_wire(
    plane: DataPlane, fake: FakeTriton
) -> None:
    """An output, here; the input is charged already, and shared where it lies."""
    model = wide_model()
    model.outputs[0].dims[:] = [20 * WIDTH]
    memory = share(plane, fake, [model])
    limits = pb.Limits(shared_memory_bytes_max=SEGMENT_BYTES, host_bytes_max=8 * WIDTH * 4)
    assert plane.apply([model], [backend(fake, memory.key)], limits) == ""
    with connected(plane.address) as client:
        ask(client, 1)
    assert [len(places_of(request)) for request in fake.requests] == [1]
    nothing_held(plane)
