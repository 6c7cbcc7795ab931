"""Text forms of gRPC headers and the google.rpc details, against the specification's examples."""

from __future__ import annotations

import base64
import random
import urllib.parse

import pytest
from google.rpc import error_details_pb2, status_pb2

from scheduler._native import http2

pytestmark = pytest.mark.native

NEVER = 2**63 - 1
UNITS = {"n": 1, "u": 10**3, "m": 10**6, "S": 10**9, "M": 60 * 10**9, "H": 3600 * 10**9}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("value", [0, 1, 7, 99_999_999])
def test_timeouts_of_every_unit_are_read(unit: str, value: int) -> None:
    expected = min(value * UNITS[unit], NEVER)
    assert http2.timeout_from_text(f"{value}{unit}".encode()) == expected


@pytest.mark.parametrize("text", [b"", b" ", b"5", b"5 ", b"m", b"-1S", b"+1S", b"1h", b"1Sm"])
def test_malformed_timeouts_are_none(text: bytes) -> None:
    assert http2.timeout_from_text(text) is None


@pytest.mark.parametrize(
    ("text", "timeout_ns"),
    [
        (b"000000007S", 7 * 10**9),
        (b"123456789n", 123_456_789),
        (b"1000000000u", 10**12),
        (b"1000000001u", NEVER),
        (b"9" * 40 + b"n", NEVER),
        (b" 7 S ", 7 * 10**9),
    ],
)
def test_timeouts_beyond_the_specification_are_read_as_grpc_does(
    text: bytes, timeout_ns: int
) -> None:
    assert http2.timeout_from_text(text) == timeout_ns


@pytest.mark.parametrize(
    ("timeout_ns", "text"),
    [
        (-5, b"0n"),
        (0, b"0n"),
        (99_999_999, b"99999999n"),
        (100_000_000, b"100000u"),
        (100_000_001, b"100001u"),
        (3600 * 10**9, b"3600000m"),
        (NEVER - 1, b"2562048H"),
    ],
)
def test_timeouts_are_written_in_eight_digits(timeout_ns: int, text: bytes) -> None:
    assert http2.timeout_to_text(timeout_ns) == text


def test_a_written_timeout_is_never_shorter_and_hardly_longer(rng: random.Random) -> None:
    for _ in range(2000):
        timeout_ns = int(2 ** rng.uniform(0, 62))
        read = http2.timeout_from_text(http2.timeout_to_text(timeout_ns))
        assert read is not None
        assert timeout_ns <= read <= timeout_ns * 1.00001 + 1


def test_percent_encoding_leaves_printable_ascii(rng: random.Random) -> None:
    assert http2.encode_percent(b"a ~!\x7f\n%\xc3\xbc") == b"a ~!%7F%0A%25%C3%BC"
    for _ in range(500):
        text = rng.randbytes(rng.randrange(40))
        encoded = http2.encode_percent(text)
        assert all(0x20 <= byte <= 0x7E for byte in encoded)
        assert http2.decode_percent(encoded) == text
        assert urllib.parse.unquote_to_bytes(encoded) == text


@pytest.mark.parametrize("text", [b"%", b"%4", b"%zz", b"100%", b"%%41"])
def test_malformed_escapes_stay(text: bytes) -> None:
    assert http2.decode_percent(text) == text.replace(b"%41", b"A")


def test_base64_with_and_without_padding(rng: random.Random) -> None:
    for _ in range(500):
        data = rng.randbytes(rng.randrange(40))
        padded = base64.b64encode(data)
        assert http2.encode_base64(data) == padded.rstrip(b"=")
        assert http2.decode_base64(padded) == data
        assert http2.decode_base64(padded.rstrip(b"=")) == data


@pytest.mark.parametrize("text", [b"a", b"====", b"ab-c", b"abcde", b"a\x00bc"])
def test_malformed_base64_is_none(text: bytes) -> None:
    assert http2.decode_base64(text) is None


def test_details_are_googles_messages() -> None:
    data = http2.error_details(
        8,
        "voll ü".encode(),
        reason=b"QUEUE_FULL",
        retry_ns=1_500_000_000,
        quota=(b"tenant:a", b"10 requests/s"),
        field=(b"inputs[0]", b"wrong dtype"),
    )
    status = status_pb2.Status.FromString(data)
    assert (status.code, status.message) == (8, "voll ü")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    quota, bad = error_details_pb2.QuotaFailure(), error_details_pb2.BadRequest()
    for detail, message in zip(status.details, (info, retry, quota, bad), strict=True):
        assert detail.Unpack(message)
    assert (info.reason, info.domain) == ("QUEUE_FULL", "infersched")
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000
    assert [(v.subject, v.description) for v in quota.violations] == [("tenant:a", "10 requests/s")]
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("inputs[0]", "wrong dtype")
    ]
