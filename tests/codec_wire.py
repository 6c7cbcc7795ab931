"""Spells ModelInfer messages out on the wire with every freedom that protobuf gives.

Field order, repeated singular fields, unknown fields and groups, packed and unpacked numbers, long
varints; and random damage to the result.
"""

from __future__ import annotations

import random
import struct

from tritonclient.grpc import service_pb2

from tests.codec_messages import Request, Response


def varint(value: int, *, bytes_min: int = 1) -> bytes:
    """`value` modulo 2**64, padded to `bytes_min` bytes by continuation bytes of zero bits."""
    value &= 2**64 - 1
    out = bytearray()
    while True:
        out.append(value & 0x7F | 0x80)
        value >>= 7
        if not value and len(out) >= bytes_min:
            out[-1] &= 0x7F
            return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def number_field(number: int, value: int, *, bytes_min: int = 1) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value, bytes_min=bytes_min)


def noise(rng: random.Random, depth: int = 0) -> bytes:
    """One unknown field that every parser skips."""
    number = rng.choice((9, 100, 2**20, 2**29 - 1))
    kind = rng.randrange(5 if depth < 3 else 4)
    if kind == 0:
        return number_field(number, rng.getrandbits(64), bytes_min=rng.choice((1, 10)))
    if kind == 1:
        return varint(number << 3 | 1) + rng.randbytes(8)
    if kind == 2:
        return field(number, rng.randbytes(rng.randrange(4)))
    if kind == 3:
        return varint(number << 3 | 5) + rng.randbytes(4)
    inner = b"".join(noise(rng, depth + 1) for _ in range(rng.randrange(3)))
    return varint(number << 3 | 3) + inner + varint(number << 3 | 4)


class Speller:
    """Writes messages in one of their many spellings.

    `noisy_maps` puts unknown fields into map entries too: protobuf's C++ parser, and so Triton,
    skips them there, while the one below `service_pb2` then loses the entry.
    """

    def __init__(
        self, rng: random.Random, *, oddness: float = 0.3, noisy_maps: bool = False
    ) -> None:
        self.rng = rng
        self.oddness = oddness
        self.noisy_maps = noisy_maps

    def odd(self) -> bool:
        return self.rng.random() < self.oddness

    def join(self, groups: list[list[bytes]], *, noisy: bool = True) -> bytes:
        """The fields in any order that keeps the order inside each group, noise in between."""
        slots = [i for i, group in enumerate(groups) for _ in group]
        if self.odd():
            self.rng.shuffle(slots)
        queues = [iter(group) for group in groups]
        out = []
        for slot in slots:
            if noisy and self.odd():
                out.append(noise(self.rng))
            out.append(next(queues[slot]))
        return b"".join(out)

    def text(self, number: int, value: str) -> list[bytes]:
        fields = [field(number, value.encode())] if value else []
        if self.odd():
            fields.insert(0, field(number, b"overwritten"))
            if not value:
                fields.append(field(number, b""))
        return fields

    def parameter(self, value: service_pb2.InferParameter) -> bytes:
        kind = value.WhichOneof("parameter_choice")
        fields = []
        if self.odd():
            fields.append(self.rng.choice((number_field(2, -5), field(3, b"old"))))
        if kind == "bool_param":
            fields.append(number_field(1, value.bool_param))
        elif kind == "int64_param":
            fields.append(number_field(2, value.int64_param))
        elif kind == "string_param":
            fields.append(field(3, value.string_param.encode()))
        elif kind == "double_param":
            fields.append(varint(4 << 3 | 1) + struct.pack("<d", value.double_param))
        elif kind == "uint64_param":
            fields.append(number_field(5, value.uint64_param))
        else:
            fields = []
        return self.join([fields])

    def parameters(
        self, number: int, parameters: dict[str, service_pb2.InferParameter]
    ) -> list[bytes]:
        entries = []
        for key, value in parameters.items():
            if self.odd():
                entries.append(field(number, field(1, key.encode()) + field(2, number_field(1, 1))))
            halves = [field(1, key.encode())] if key else []
            body = self.parameter(value)
            other = [field(2, body)] if body or self.odd() else []
            entries.append(field(number, self.join([halves, other], noisy=self.noisy_maps)))
        return entries

    def numbers(self, number: int, values: list[int]) -> list[bytes]:
        """A repeated varint field: packed, unpacked, or in pieces of both."""
        if not self.odd():
            return [field(number, b"".join(varint(v) for v in values))] if values else []
        fields = []
        while values:
            count = self.rng.randint(1, len(values))
            piece, values = values[:count], values[count:]
            long = self.rng.choice((1, 10))
            if self.rng.random() < 0.5:
                fields.append(field(number, b"".join(varint(v, bytes_min=long) for v in piece)))
            else:
                fields.extend(number_field(number, v, bytes_min=long) for v in piece)
        return fields

    def floats(self, number: int, values: list[float], code: str) -> list[bytes]:
        packed = [struct.pack(f"<{code}", value) for value in values]
        if not self.odd():
            return [field(number, b"".join(packed))] if packed else []
        wire_type = 5 if code == "f" else 1
        return [varint(number << 3 | wire_type) + element for element in packed]

    def contents(self, number: int, contents: service_pb2.InferTensorContents) -> list[bytes]:
        groups = [
            self.numbers(1, [int(v) for v in contents.bool_contents]),
            self.numbers(2, list(contents.int_contents)),
            self.numbers(3, list(contents.int64_contents)),
            self.numbers(4, list(contents.uint_contents)),
            self.numbers(5, list(contents.uint64_contents)),
            self.floats(6, list(contents.fp32_contents), "f"),
            self.floats(7, list(contents.fp64_contents), "d"),
            [field(8, element) for element in contents.bytes_contents],
        ]
        if not self.odd():
            return [field(number, self.join(groups))]
        # A submessage that occurs twice is merged.
        halves: tuple[list[list[bytes]], list[list[bytes]]] = ([], [])
        for group in groups:
            cut = self.rng.randint(0, len(group))
            halves[0].append(group[:cut])
            halves[1].append(group[cut:])
        return [field(number, self.join(half)) for half in halves]

    def request(self, request: Request) -> bytes:
        inputs = []
        for entry in request.inputs:
            groups = [
                self.text(1, entry.name),
                self.text(2, entry.datatype),
                self.numbers(3, list(entry.shape)),
                self.parameters(4, entry.parameters),
                self.contents(5, entry.contents) if entry.HasField("contents") else [],
            ]
            inputs.append(field(5, self.join(groups)))
        outputs = [
            field(6, self.join([self.text(1, o.name), self.parameters(2, o.parameters)]))
            for o in request.outputs
        ]
        return self.join(
            [
                self.text(1, request.model_name),
                self.text(2, request.model_version),
                self.text(3, request.id),
                self.parameters(4, request.parameters),
                inputs,
                outputs,
                [field(7, raw) for raw in request.raw_input_contents],
            ]
        )

    def response(self, response: Response) -> bytes:
        outputs = [
            field(
                5,
                self.join(
                    [
                        self.text(1, entry.name),
                        self.text(2, entry.datatype),
                        self.numbers(3, list(entry.shape)),
                        self.parameters(4, entry.parameters),
                        self.contents(5, entry.contents) if entry.HasField("contents") else [],
                    ]
                ),
            )
            for entry in response.outputs
        ]
        return self.join(
            [
                self.text(1, response.model_name),
                self.text(2, response.model_version),
                self.text(3, response.id),
                self.parameters(4, response.parameters),
                outputs,
                [field(6, raw) for raw in response.raw_output_contents],
            ]
        )


def mutate(rng: random.Random, message: bytes, count: int) -> bytes:
    """`count` random flips, cuts and insertions."""
    out = bytearray(message)
    for _ in range(count):
        at = rng.randrange(len(out) + 1)
        choice = rng.randrange(5)
        if choice == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif choice == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif choice == 2:
            del out[at:]
        elif choice == 3:
            del out[at : at + rng.randrange(1, 4)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 4))
    return bytes(out)
