"""Scripts of HTTP/2 frames for the session fuzzers, one a feature, as tests/fuzz/script.h reads
them: what fresh sessions of ours would not say by themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACT, CLOCK, CUT, MESSAGE, PULL, FIELDS = range(0xF0, 0xF6)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ENCODINGS = ("identity", "gzip", "deflate")
# Sizes of messages that script.h makes: their places in its table.
SIZES = 17
LARGE = (12, 13, 14, 15)

Header = tuple[str, str]
REPLY: list[Header] = [(":status", "200"), ("content-type", "application/grpc")]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def block(headers: Sequence[Header]) -> bytes:
    """Literals that leave the table as it is."""
    texts = [(name.encode(), value.encode()) for name, value in headers]
    return b"".join(bytes((0, len(n))) + n + bytes((len(v),)) + v for n, v in texts)


def header_frames(
    rng: random.Random, stream: int, headers: Sequence[Header], end: bool = False
) -> bytes:
    """The block in one frame, padded or not, or in several."""
    text, flags = block(headers), END_STREAM if end else 0
    choice = rng.randrange(3)
    if choice == 0:
        return frame(HEADERS, flags | END_HEADERS, stream, text)
    if choice == 1:
        return frame(HEADERS, flags | END_HEADERS | PADDED, stream, b"\3" + text + bytes(3))
    first, second = sorted(rng.sample(range(len(text) + 1), 2))
    return (
        frame(HEADERS, flags, stream, text[:first])
        + frame(CONTINUATION, 0, stream, text[first:second])
        + frame(CONTINUATION, END_HEADERS, stream, text[second:])
    )


def step(kind: int, *choices: int) -> bytes:
    """Of the script itself; choices are taken from the end."""
    return frame(kind, 0, 0, bytes(reversed(choices)))


def message(rng: random.Random, stream: int, encoding: int, flags: int, *, large: bool) -> bytes:
    size = rng.choice(LARGE) if large else rng.randrange(SIZES)
    choices = [size, encoding, rng.randrange(4)]
    if flags & PADDED:
        choices.append(rng.randrange(250))
    return frame(MESSAGE, flags, stream, bytes(reversed([*choices, 0])))


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def window(stream: int, size: int) -> bytes:
    return frame(WINDOW, 0, stream, number(size))


def settings(identifier: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, identifier.to_bytes(2, "big") + number(value))


def between(rng: random.Random) -> bytes:
    """What may come anywhere: time, cuts, pulls, acts, windows, settings, pings, many fields."""
    choice = rng.randrange(9)
    if choice == 8:
        flags = END_HEADERS + rng.randrange(2)
        return frame(FIELDS, flags, rng.choice((1, 3, 5, 7)), bytes(rng.choices(range(15), k=3)))
    if choice < 3:
        return step(ACT, *(rng.randrange(256) for _ in range(rng.randrange(1, 7))))
    if choice == 3:
        return step(CLOCK, rng.randrange(6))
    if choice == 4:
        return step(CUT, rng.randrange(6), rng.randrange(2)) + step(PULL, rng.randrange(4))
    if choice == 5:
        return window(rng.choice((0, 1, 3, 5)), rng.choice((1, 1000, 10**6)))
    if choice == 6:
        return settings(rng.choice((1, 3, 4, 5)), rng.choice((0, 1, 100, 16_384, 10**6)))
    return frame(PING, rng.randrange(2), 0, bytes(8))


def reply(rng: random.Random, stream: int) -> list[bytes]:
    """What a server sends on one stream: a reply, trailers only, several messages, part of one."""
    encoding = rng.randrange(3)
    trailers = [("grpc-status", rng.choice(("0", "0", "8", "14"))), ("x-a", "1")]
    if rng.random() < 0.2:
        return [header_frames(rng, stream, [*REPLY, *trailers], end=True)]
    told = [("grpc-encoding", ENCODINGS[encoding])] if encoding else []
    parts = [header_frames(rng, stream, [*REPLY, *told])]
    for _ in range(rng.choice((0, 1, 1, 1, 3))):
        flags = rng.choice((0, 0, PADDED))
        parts.append(message(rng, stream, encoding, flags, large=rng.random() < 0.3))
    end = rng.random()
    if end < 0.7:
        parts.append(header_frames(rng, stream, trailers, end=True))
    elif end < 0.8:
        parts.append(frame(RESET, 0, stream, number(rng.choice((0, 7, 8, 11)))))
    elif end < 0.9:
        parts.append(frame(GOAWAY, 0, 0, number(rng.choice((0, stream, 2**31 - 1))) + number(0)))
    return parts


def request_headers(rng: random.Random, path: str) -> list[Header]:
    headers = [
        *((":method", "POST"), (":scheme", "http"), (":path", path)),
        *((":authority", "a"), ("te", "trailers"), ("content-type", "application/grpc")),
        ("grpc-accept-encoding", "gzip,deflate"),
    ]
    if rng.random() < 0.3:
        headers.append(("grpc-timeout", rng.choice(("5S", "1n", "20m"))))
    return headers


def request(rng: random.Random, stream: int, paths: Sequence[str]) -> list[bytes]:
    """What a client sends on one stream."""
    encoding = rng.randrange(3)
    headers = request_headers(rng, rng.choice(paths))
    if encoding:
        headers.append(("grpc-encoding", ENCODINGS[encoding]))
    parts = [header_frames(rng, stream, headers)]
    for _ in range(rng.choice((0, 1, 1, 2))):
        flags = rng.choice((0, PADDED))
        parts.append(message(rng, stream, encoding, flags, large=rng.random() < 0.4))
    if rng.random() < 0.1:
        parts.append(frame(RESET, 0, stream, number(8)))
    last = message(rng, stream, encoding, END_STREAM, large=rng.random() < 0.4)
    return [*parts, last if rng.random() < 0.7 else frame(DATA, END_STREAM, stream)]


def interleaved(rng: random.Random, streams: Sequence[list[bytes]]) -> bytes:
    """The streams' parts in turns, each in its order, with other things between them."""
    left = [list(parts) for parts in streams]
    script = b""
    while any(left):
        parts = rng.choice([parts for parts in left if parts])
        script += parts.pop(0)
        if rng.random() < 0.4:
            script += between(rng)
    return script


def replies(rng: random.Random) -> bytes:
    return interleaved(rng, [reply(rng, 1 + 2 * i) for i in range(rng.randrange(1, 6))])


def requests(rng: random.Random, paths: Sequence[str]) -> bytes:
    streams = [request(rng, 1 + 2 * i, paths) for i in range(rng.randrange(1, 5))]
    # A client's ids grow: the first frames in their order, then the rest.
    first = b"".join(parts.pop(0) for parts in streams)
    return first + interleaved(rng, streams)


def paced(rng: random.Random, path: str) -> bytes:
    """One message of twice a stream's window, in small frames."""
    headers = header_frames(rng, 1, request_headers(rng, path))
    return headers + frame(MESSAGE, END_STREAM, 1, bytes((0, 0, 0, LARGE[-1])))


def put_off(rng: random.Random, path: str) -> bytes:
    """At once what inflates to more than a session inflates in one turn, and more behind it."""
    gzip = [("grpc-encoding", "gzip")]
    script = step(CUT, 1, 0) + header_frames(rng, 1, [*request_headers(rng, path), *gzip])
    script += frame(MESSAGE, 0, 1, bytes((0, 0, 1, SIZES - 1))) * 3
    script += header_frames(rng, 3, request_headers(rng, path))
    script += frame(MESSAGE, 0, 3, bytes((0, 0, 0, LARGE[0]))) * rng.randrange(1, 3)
    return script + step(CUT, 0, 0) + b"".join(between(rng) for _ in range(3))
