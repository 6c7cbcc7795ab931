"""Device memory by the metrics port of a Triton: `nv_gpu_memory_{total,used}_bytes{gpu_uuid}`.

For GPUs of other hosts. Triton itself reads them every two seconds (`--metrics-interval-ms`), so
the figures are told as that much older than their scrape; MIG instances are not told apart there.
The port is not trusted: one answer may take so long and be so large, and what cannot be true is
told as a problem.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

from scheduler.config.device_memory import DEVICES_MAX, KEY_CHARACTERS_MAX
from scheduler.memory.source import DeviceReading, SourceError, figures_problem

ANSWER_BYTES_MAX = 8 * 2**20
RETRY_PERIOD_S = 1.0
# Of Triton's own reading of the GPUs (--metrics-interval-ms): a scrape may tell one so old.
READING_PERIOD_NS = 2_000_000_000
_CHUNK_BYTES = 65_536
# Where somebody else is there, or nobody.
_HINT = "if the Triton has another --metrics-port, name it in `metrics` of the backend (off: none)"

_SAMPLE = re.compile(
    rb"^nv_gpu_memory_(total|used)_bytes\{([^}\n]*)\}[ \t]+(\S+)", re.MULTILINE | re.ASCII
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})", re.IGNORECASE)
_UUID = re.compile(rb'(?:^|,)\s*gpu_uuid="([\w:./-]{1,%d})"' % KEY_CHARACTERS_MAX, re.ASCII)


class TritonMetricsSource:
    """One metrics port."""

    retry_period_s = RETRY_PERIOD_S

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        timeout_s: float,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._clock_ns = clock_ns
        self.name = name

    def poll(self) -> list[DeviceReading]:
        """Raises SourceError."""
        asked_at_ns = self._clock_ns()
        try:
            answer = self._fetch()
        except OSError as error:  # a time-out is one
            reason = str(error) or type(error).__name__
            raise SourceError(f"it does not answer: {reason}; {_HINT}") from error
        # Batches that ended since then may not show in the figures yet.
        return device_readings(_body(answer), max(asked_at_ns - READING_PERIOD_NS, 1))

    def close(self) -> None:
        """Nothing is held."""

    def _fetch(self) -> bytes:
        """The whole answer to a GET, within the time-out. HTTP/1.0: it ends with the connection, or
        where it says; a proxy may keep the connection open all the same."""
        end_s = time.monotonic() + self._timeout_s
        host, port = self._address
        with socket.create_connection(self._address, timeout=self._timeout_s) as connection:
            request = f"GET /metrics HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: text/plain\r\n\r\n"
            connection.sendall(request.encode())
            answer = bytearray()
            while True:
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"the answer takes longer than {self._timeout_s:g} s")
                connection.settimeout(left_s)
                piece = connection.recv(_CHUNK_BYTES)
                answer += piece
                if not piece or _is_whole(answer):
                    return bytes(answer)
                if len(answer) > ANSWER_BYTES_MAX:
                    raise SourceError(f"its answer is larger than {ANSWER_BYTES_MAX} bytes")


def _is_whole(answer: bytearray) -> bool:
    """Whether it says how long it is, and is."""
    end = answer.find(b"\r\n\r\n")
    length = _LENGTH.search(answer, 0, end) if end >= 0 else None
    return length is not None and len(answer) - end - 4 >= int(length[1])


def _body(answer: bytes) -> bytes:
    head, separator, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None or not separator:
        raise SourceError(f"it does not speak HTTP; {_HINT}")
    if status[1] != b"200":
        raise SourceError(f"it answers /metrics with status {status[1].decode()}; {_HINT}")
    length = _LENGTH.search(head)
    if length is not None and int(length[1]) > len(body):
        raise SourceError("its answer is cut short")
    return body


def device_readings(text: bytes, measured_at_ns: int) -> list[DeviceReading]:
    """The devices of a scrape. Raises SourceError where it names none."""
    figures: dict[str, dict[str, bytes]] = {}
    for kind, labels, value in _SAMPLE.findall(text):
        uuid = _UUID.search(labels)
        if uuid is not None:
            figures.setdefault(uuid[1].decode(), {})[kind.decode()] = value
    if not figures and re.search(rb"^(?:# \w+ )?nv_", text, re.MULTILINE) is None:
        raise SourceError(f"it has no metrics of a Triton; {_HINT}")
    if not figures:
        raise SourceError(
            "it has no nv_gpu_memory_total_bytes: the Triton sees no GPU, or was started with "
            "--allow-gpu-metrics=false"
        )
    if len(figures) > DEVICES_MAX:
        raise SourceError(f"it names {len(figures)} devices, more than {DEVICES_MAX}")
    return [_reading(key, told, measured_at_ns) for key, told in figures.items()]


def _reading(key: str, told: dict[str, bytes], measured_at_ns: int) -> DeviceReading:
    try:
        total, used = float(told["total"]), float(told["used"])
    except KeyError as error:
        problem = f"its {error.args[0]} memory is not told"
    except ValueError:
        problem = "its memory is no number"
    else:
        problem = figures_problem(total, total - used, used)
    if problem:
        return DeviceReading(key, measured_at_ns, problem=problem)
    return DeviceReading(
        key,
        measured_at_ns,
        total_bytes=int(total),
        free_bytes=int(total - used),
        used_bytes=int(used),
    )
