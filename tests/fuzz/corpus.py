"""Writes the inputs that the fuzzers start from: real messages with random choices behind them.

A fuzzer takes wire bytes from the front of its input and choices, one byte each, from its end; what
else those of the sessions find in it is in scripts.py.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from scheduler._native import http2
from tests.codec_messages import (
    CONTENTS_FIELD,
    ELEMENT_BYTES,
    Response,
    Tensor,
    add_faults,
    fill_contents,
    random_elements,
    random_request,
    raw_bytes,
)
from tests.codec_messages import Model as TestModel
from tests.codec_wire import Speller, field, mutate
from tests.fuzz import scripts

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ROUTES = [(INFER, "unary", ""), (STREAM, "message_stream", ""), ("/x.X/Gone", "unimplemented", "")]
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]
# Inputs stay small; of a large message the beginning is enough.
WIRE_BYTES_MAX = 3_500
# As the fuzzer's models name them, and in the order of its data types.
INPUTS = ("A", "B", "S", "T_FP32")
OUTPUTS = ("X", "Y", "W")
TYPES = (*(t for t in ELEMENT_BYTES if t not in ("BYTES", "BF16")), "BYTES", "BF16")


class Choices:
    """The bytes at the end of an input, in the order in which the fuzzer asks for them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.taken = bytearray()

    def choose(self, below: int, value: int | None = None) -> int:
        value = self.rng.randrange(below) if value is None else value
        self.taken.append(value)
        return value

    def behind(self, wire: bytes) -> bytes:
        return wire + bytes(self.taken[::-1])


def random_dims(choices: Choices) -> tuple[int, ...]:
    rank = choices.choose(4)
    return tuple({-1: -1, 0: -1}.get(d := choices.choose(6) - 1, d) for _ in range(rank))


def random_model(choices: Choices) -> TestModel:
    """Follows `random_model` of codec_request.cc choice by choice."""
    max_batch_size = choices.choose(9)
    choices.choose(4)
    choices.choose(32)
    inputs, outputs = [], []
    for name in INPUTS[: 1 + choices.choose(4)]:
        datatype = TYPES[choices.choose(14)]
        dims = random_dims(choices)
        inputs.append(Tensor(name, datatype, dims, choices.choose(16) < 4))
    for name in OUTPUTS[: 1 + choices.choose(3)]:
        datatype = TYPES[choices.choose(14)]
        outputs.append(Tensor(name, datatype, random_dims(choices)))
    if choices.choose(4) == 0:
        choices.choose(4)
    return TestModel("m", tuple(inputs), tuple(outputs), max_batch_size)


def codec_request(rng: random.Random) -> bytes:
    choices = Choices(rng)
    model = random_model(choices)
    request = random_request(rng, model, rows=rng.choice((None, 3)))
    add_faults(rng, request, rng.choice((0, 0, 1, 2)))
    if rng.random() < 0.2:
        request.parameters["sequence_id"].int64_param = 5
        request.parameters["sequence_start"].bool_param = True
    message = Speller(rng).request(request)
    choices.choose(4, 1)
    return choices.behind(message)


def random_response(rng: random.Random, rows: int) -> Response:
    response = Response(model_name="m", model_version="3", id=rng.choice(("", "ours")))
    if rng.random() < 0.5:
        response.parameters["triton_final_response"].bool_param = rng.random() < 0.5
    typed = rng.random() < 0.3
    for name in ("X", "Y", "W"):
        datatype = rng.choice([t for t in TYPES if not typed or t in CONTENTS_FIELD])
        shape = [rows, *(rng.randint(0, 3) for _ in range(rng.randint(0, 2)))]
        output = response.outputs.add(name=name, datatype=datatype, shape=shape)
        elements = random_elements(rng, datatype, math.prod(shape))
        if typed:
            output.contents.SetInParent()
            fill_contents(output.contents, datatype, elements)
        else:
            response.raw_output_contents.append(raw_bytes(elements))
    return response


def codec_reply(rng: random.Random) -> bytes:
    choices = Choices(rng)
    stream = choices.choose(2)
    choices.choose(5)
    rows = rng.randint(1, 12)
    message = Speller(rng).response(random_response(rng, rows))
    if stream:
        text = b"[request id: ours] no" if rng.random() < 0.3 else b""
        message = (field(1, text) if text else b"") + field(2, message)
    else:
        choices.choose(12, rows - 1)
        choices.choose(max(rows, 1))
    if rng.random() < 0.2:
        message = mutate(rng, message, 1)
    return choices.behind(message)


def exchange(rng: random.Random) -> tuple[bytes, bytes]:
    """What one of our clients and one of our servers send each other."""
    compressed = rng.choice(("identity", "gzip", "deflate"))
    client = http2.ClientSession(compression=compressed)
    server = http2.ServerSession(ROUTES, response_compression=compressed)
    sent, answered = b"", b""

    def pump() -> None:
        nonlocal sent, answered
        while data := client.pull():
            sent += data
            server.feed(data)
            for event in server.events():
                answer_event(rng, server, event)
            back = server.pull()
            answered += back
            client.feed(back)
            client.events()

    pump()
    for _ in range(rng.randrange(1, 6)):
        message = rng.randbytes(rng.choice((0, 5, 60, 700, 50_000)))
        choice = rng.randrange(4)
        if choice < 2:
            client.call(INFER, message, rng.choice((None, 10**9)), b"x-a\0001\0")
        elif choice == 2:
            stream = client.open_stream(STREAM)
            for _ in range(rng.randrange(3)):
                client.send(stream, message)
            client.half_close(stream)
        else:
            stream = client.forward_open([(":path", "/x.X/Y"), *GRPC])
            client.forward_data(stream, message, True)
        if rng.random() < 0.5:
            pump()
    pump()
    return sent, answered


def answer_event(rng: random.Random, server: http2.ServerSession, event: http2.Event) -> None:
    if event.kind == "request":
        if rng.random() < 0.7:
            server.answer(
                event.stream, rng.randbytes(rng.choice((0, 7, 2000, 50_000))), [("x-t", "1")]
            )
        else:
            server.refuse(event.stream, 3, "no", b"\1\2", 5)
        server.release(event)
    elif event.kind == "message":
        server.send(event.stream, event.message)
        server.release(event)
    elif event.kind == "half_closed":
        server.finish(event.stream)
    elif event.kind == "forward_headers":
        server.forward_headers(event.stream, [(":status", "200"), *GRPC])
    elif event.kind == "forward_data":
        server.forward_data(event.stream, event.message)
        server.forward_consumed(event.stream, len(event.message))
        server.forward_trailers(event.stream, [("grpc-status", "0")])


def http2_server(rng: random.Random) -> bytes:
    kind = rng.choice(("exchange", "requests", "requests", "paced", "put_off"))
    # Of the paced ones and those put off the configuration is what lets them be it.
    fixed: dict[str, tuple[int | None, ...]] = {
        "paced": (0, 1, 2, 0, 0, None, None, 1, 2),
        "put_off": (2, 1, 0, 0, 0, None, None, None, 2),
    }
    choices = Choices(rng)
    for below, value in zip((3, 2, 3, 4, 4, 3, 2, 2, 3), fixed.get(kind, (None,) * 9), strict=True):
        choices.choose(below, value)
    choices.choose(4, int(kind == "exchange"))  # whose bytes begin with the preface
    if kind == "exchange":
        return choices.behind(exchange(rng)[0][:WIRE_BYTES_MAX])
    if kind == "requests":
        return choices.behind(scripts.requests(rng, [*(path for path, *_ in ROUTES), "/x.X/Y"]))
    script = scripts.paced(rng, INFER) if kind == "paced" else scripts.put_off(rng, STREAM)
    return choices.behind(script)


def http2_client(rng: random.Random) -> bytes:
    choices = Choices(rng)
    for below in (3, 5, 3, 4, 4, 2, 8):
        choices.choose(below)
    count = 1 + choices.choose(5)
    for _ in range(count):
        kind = rng.randrange(4)
        for below, value in ((4, None), (2, None), (4, kind)):
            choices.choose(below, value)
        if kind == 2:
            choices.choose(2)
        elif kind != 1:
            choices.choose(5)
    if rng.random() < 0.5:
        return choices.behind(exchange(rng)[1][:WIRE_BYTES_MAX])
    return choices.behind(scripts.replies(rng))


SEEDS: dict[str, Callable[[random.Random], bytes]] = {
    "codec_request": codec_request,
    "codec_reply": codec_reply,
    "http2_server": http2_server,
    "http2_client": http2_client,
}

WORDS: dict[str, tuple[bytes, ...]] = {
    "codec_request": (
        *(t.encode() for t in TYPES),
        *(b"priority", b"timeout", b"sequence_id", b"sequence_start", b"sequence_end"),
        *(b"classification", b"shared_memory_region", b"shared_memory_byte_size"),
        *(b"shared_memory_offset", b"triton_enable_empty_final_response"),
        *(b"\x2a", b"\x32", b"\x3a", b"\x22\x0c\x0a", b"\x12\x02\x10", b"\x2a\x02\x32"),
        *(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x10"),
    ),
    "codec_reply": (
        *(t.encode() for t in TYPES),
        *(b"triton_final_response", b"[request id: ours]", b"\x22\x1b\x0a\x15"),
        *(b"\x2a", b"\x32", b"\x12", b"\x1a\x01", b"\x0a"),
    ),
    "http2_server": (
        *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"application/grpc", b"grpc-timeout"),
        *(b"grpc-encoding", b"gzip", b"deflate", b"identity", b"te", b"trailers", b":path"),
        *(INFER.encode(), STREAM.encode(), b"x-a", b"x-w", b"x-internal", b"99999999H"),
        *(b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0", b"\0\0\4\3\0\0\0\0\1\0\0\0\x08"),
        *(b"\0\0\4\x08\0\0\0\0\0\0\0\xff\xff", b"\0\0\x08\6\0\0\0\0\0", b"\0\0\5\0\1\0\0\0\1"),
    ),
    "http2_client": (
        *(b":status", b"grpc-status", b"grpc-message", b"grpc-status-details-bin"),
        *(b"grpc-retry-pushback-ms", b"grpc-encoding", b"gzip", b"deflate", b"-bin"),
        *(b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0", b"\0\0\4\3\0\0\0\0\1\0\0\0\7"),
        *(b"\0\0\x08\7\0\0\0\0\0\0\0\0\1\0\0\0\0", b"\0\0\5\0\1\0\0\0\1"),
    ),
}


def seeds(target: str, rng: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield SEEDS[target](rng)


def write_corpus(directory: Path, target: str, rng: random.Random, count: int) -> None:
    """`count` files named by their content."""
    directory.mkdir(parents=True, exist_ok=True)
    for data in seeds(target, rng, count):
        (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


def write_dictionary(path: Path, target: str) -> None:
    """The words in libFuzzer's form."""
    lines = ["".join(f"\\x{byte:02x}" for byte in word) for word in WORDS[target]]
    path.write_text("".join(f'"{line}"\n' for line in lines))
