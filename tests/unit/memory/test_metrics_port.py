"""Device memory by a Triton's metrics port, with ports that lie, hang and babble."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from scheduler.memory.source import BYTES_MAX, SourceError
from scheduler.memory.triton_metrics import (
    ANSWER_BYTES_MAX,
    DEVICES_MAX,
    READING_PERIOD_NS,
    TritonMetricsSource,
    device_readings,
)

GIB = 2**30
TEXT = """# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-aaaa-1"} 17179869184.000000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-bbbb-2"} 8.589934592e+09
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-bbbb-2"} 0
nv_gpu_memory_used_bytes{gpu_uuid="GPU-aaaa-1"} 5368709120.000000
nv_gpu_utilization{gpu_uuid="GPU-aaaa-1"} 0.5
"""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def port(behaviour: Behaviour, timeout_s: float = 60.0) -> Iterator[TritonMetricsSource]:
    """A source whose port treats every connection so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer, contextlib.suppress(OSError):
                    behaviour(peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield TritonMetricsSource("port", "127.0.0.1", listener.getsockname()[1], timeout_s)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def answering(*pieces: bytes) -> Behaviour:
    def answer(peer: socket.socket) -> None:
        peer.recv(4096)
        for piece in pieces:
            peer.sendall(piece)

    return answer


def test_tells_the_devices_of_a_scrape() -> None:
    with port(answering(HEAD, TEXT.encode())) as source:
        before_ns = time.monotonic_ns()
        first, second = sorted(source.poll(), key=lambda reading: reading.key)
    assert (first.key, second.key) == ("GPU-aaaa-1", "GPU-bbbb-2")
    assert (first.total_bytes, first.free_bytes, first.used_bytes) == (16 * GIB, 11 * GIB, 5 * GIB)
    assert second.free_bytes == second.total_bytes == 8 * GIB
    age_ns = READING_PERIOD_NS  # Triton's reading may have been so old already
    assert before_ns <= first.measured_at_ns + age_ns <= time.monotonic_ns()


def test_a_proxy_that_keeps_the_connection_open_does_not_hang() -> None:
    body = TEXT.encode()
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body))

    def keep_open(peer: socket.socket) -> None:
        answering(head[:20], head[20:] + body[:100], body[100:])(peer)
        peer.recv(1)  # until the client leaves

    with port(keep_open) as source:
        assert len(source.poll()) == 2


def told(total: str, used: str) -> bytes:
    return (
        f'nv_gpu_memory_total_bytes{{gpu_uuid="GPU-a"}} {total}\n'
        f'nv_gpu_memory_used_bytes{{gpu_uuid="GPU-a"}} {used}\n'
    ).encode()


@pytest.mark.parametrize(
    ("total", "used", "problem"),
    [
        ("1e9", "2e9", "free memory is -1000000000 bytes"),
        ("1e9", "-5", "used memory is -5 bytes"),
        ("NaN", "0", "total memory is nan"),
        ("+Inf", "0", "total memory is inf"),
        ("1e9", "NaN", "memory is nan"),
        ("1e300", "0", "bytes"),
        (str(BYTES_MAX + 1), "0", "bytes"),
        ("0", "0", "total memory is 0 bytes"),
        ("much", "0", "no number"),
    ],
)
def test_figures_that_cannot_be_true(total: str, used: str, problem: str) -> None:
    (reading,) = device_readings(told(total, used), 1)
    assert problem in reading.problem
    assert reading.free_bytes == reading.total_bytes == 0


def test_the_largest_figures_that_can_be_true() -> None:
    (reading,) = device_readings(told(str(BYTES_MAX), str(BYTES_MAX)), 1)
    assert (reading.problem, reading.free_bytes) == ("", 0)


def test_half_of_the_figures() -> None:
    (reading,) = device_readings(told("1e9", "0").splitlines()[0] + b"\n", 1)
    assert reading.problem == "its used memory is not told"


def devices(count: int) -> bytes:
    return b"".join(
        b'nv_gpu_memory_total_bytes{gpu_uuid="GPU-%d"} 1e9\n' % number for number in range(count)
    )


def test_no_more_devices_than_a_host_can_have() -> None:
    assert len(device_readings(devices(DEVICES_MAX), 1)) == DEVICES_MAX
    with pytest.raises(SourceError, match=f"names {DEVICES_MAX + 1} devices"):
        device_readings(devices(DEVICES_MAX + 1), 1)


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        (answering(HEAD, b"nv_inference_count 3\n"), "sees no GPU"),
        (answering(b"HTTP/1.1 404 Not Found\r\n\r\n"), r"status 404; .*--metrics-port"),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), r"does not speak HTTP; .*--metrics-port"),
        (answering(HEAD, b"node_load1 0.5\n"), r"no metrics of a Triton; .*--metrics-port"),
        (answering(), "does not speak HTTP"),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"nv"), "cut short"),
        (answering(HEAD, told("1e9", '0" gpu_uuid="')[:40]), "sees no GPU"),
    ],
)
def test_a_port_that_is_no_tritons(behaviour: Behaviour, text: str) -> None:
    with port(behaviour) as source, pytest.raises(SourceError, match=text):
        source.poll()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    with pytest.raises(SourceError, match=r"does not answer: .*--metrics-port"):
        TritonMetricsSource("port", "127.0.0.1", number, 60.0).poll()


def hang(peer: socket.socket) -> None:
    peer.recv(4096)
    peer.recv(4096)  # until the source leaves


def drip(peer: socket.socket) -> None:
    """Never silent for long, never ready."""
    peer.recv(4096)
    peer.sendall(HEAD)
    peer.settimeout(0.02)
    while True:
        peer.sendall(b"#")
        with contextlib.suppress(TimeoutError):
            if not peer.recv(1):
                return


@pytest.mark.parametrize("behaviour", [hang, drip])
def test_a_port_that_hangs_is_left(behaviour: Behaviour) -> None:
    told = pytest.raises(SourceError, match=r"does not answer.*(timed out|longer than)")
    with port(behaviour, timeout_s=0.3) as source, told:
        source.poll()


def test_an_answer_without_end_is_left() -> None:
    def babble(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(HEAD)
        while True:
            peer.sendall(b"#" * 65536)

    told = pytest.raises(SourceError, match=f"larger than {ANSWER_BYTES_MAX} bytes")
    with port(babble) as source, told:
        source.poll()
