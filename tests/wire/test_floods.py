"""One connection that floods: its own end at worst; memory and the others' answers are unharmed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import Closed, RawClient, grpc_message

FLOOD_S = 1.0
GROWTH_BYTES_MAX = 48 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def header_block(client: RawClient) -> bytes:
    """Of an inference request, without dynamic table entries, so that it can be sent again."""
    client.h2.encoder.header_table_size = 0
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        (b":authority", b"test"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    block: bytes = client.h2.encoder.encode(fields)
    return block


def rapid_resets(client: RawClient) -> Callable[[int], bytes]:
    """Opens streams and resets them in the same breath (CVE-2023-44487)."""
    block = header_block(client)

    def batch(turn: int) -> bytes:
        data = b""
        for n in range(200):
            stream = 2 * (turn * 200 + n) + 1
            data += frame(1, 4, stream, block) + frame(3, 0, stream, b"\0\0\0\x08")
        return data

    return batch


def resets_of_whole_requests(client: RawClient) -> Callable[[int], bytes]:
    block = header_block(client)
    message = grpc_message(infer_request(rows(1)).SerializeToString())

    def batch(turn: int) -> bytes:
        data = b""
        for n in range(100):
            stream = 2 * (turn * 100 + n) + 1
            data += frame(1, 4, stream, block) + frame(0, 1, stream, message)
            data += frame(3, 0, stream, b"\0\0\0\x08")
        return data

    return batch


def continuations(client: RawClient) -> Callable[[int], bytes]:
    """A header block that never ends (CVE-2024-28182)."""
    literal = b"\x00\x03abc\x7f\x80\x7e" + b"v" * 16_000  # name "abc", a long value

    def batch(turn: int) -> bytes:
        first = frame(1, 0, 1, header_block(client)) if turn == 0 else b""
        return first + frame(9, 0, 1, literal[:16_384]) * 20

    return batch


def settings(client: RawClient) -> Callable[[int], bytes]:
    return lambda turn: frame(4, 0, 0, b"\0\3\0\0\0\x64") * 2000


def empty_data(client: RawClient) -> Callable[[int], bytes]:
    block = header_block(client)
    return lambda turn: (frame(1, 4, 1, block) if turn == 0 else b"") + frame(0, 0, 1) * 5000


def priorities(client: RawClient) -> Callable[[int], bytes]:
    """PRIORITY frames for streams that do not exist."""
    return lambda turn: b"".join(
        frame(2, 0, 2 * (turn * 1000 + n) + 1, b"\0\0\0\0\x10") for n in range(1000)
    )


def window_updates(client: RawClient) -> Callable[[int], bytes]:
    return lambda turn: frame(8, 0, 0, b"\0\0\0\1") * 5000


def unknown_frames(client: RawClient) -> Callable[[int], bytes]:
    return lambda turn: frame(0x77, 0, 0, b"x" * 16_000) * 20


FLOODS = (
    rapid_resets,
    resets_of_whole_requests,
    continuations,
    settings,
    empty_data,
    priorities,
    window_updates,
    unknown_frames,
)


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_harms_nobody_else(
    flood: Callable[[RawClient], Callable[[int], bytes]], plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model()], [fake.address])
    process = psutil.Process(plane.process.pid)
    stop = threading.Event()
    with RawClient(plane.address) as client, connected(plane.address) as other:
        other.ModelInfer(infer_request(rows(0)), timeout=30)
        before = process.memory_info().rss
        client.socket.settimeout(0.2)
        batch = flood(client)

        def run() -> None:
            turn = 0
            with contextlib.suppress(OSError, Closed):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        client.socket.sendall(batch(turn))
                    turn += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            until = time.monotonic() + FLOOD_S
            slowest_s = 0.0
            n = 0
            while time.monotonic() < until:
                n += 1
                started = time.monotonic()
                response = other.ModelInfer(infer_request(rows(n % 1000)), timeout=30)
                slowest_s = max(slowest_s, time.monotonic() - started)
                np.testing.assert_array_equal(output(response), rows(n % 1000))
        finally:
            stop.set()
            thread.join()
        grown = process.memory_info().rss - before
    assert slowest_s < 10
    assert grown < GROWTH_BYTES_MAX or "asan" in str(process.environ().get("LD_PRELOAD")), grown
    wait_until(lambda: plane.snapshot().client_connections == 0, "both are gone")
