"""A fake Triton that has the data plane's shared memory, and reads and writes what calls name."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane
from tests.wire.fake_triton import FakeTriton, Request, Response, identity

REGION = "infersched-payload-test"


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, by its parameters."""

    region: str
    offset: int
    size: int

    @classmethod
    def of(cls, tensor: Any) -> Place | None:
        parameters = tensor.parameters
        if "shared_memory_region" not in parameters:
            return None
        return cls(
            parameters["shared_memory_region"].string_param,
            parameters["shared_memory_offset"].int64_param,
            parameters["shared_memory_byte_size"].int64_param,
        )

    def overlaps(self, other: Place) -> bool:
        return self.offset < other.offset + other.size and other.offset < self.offset + self.size


def places_of(request: Request) -> list[Place]:
    tensors: list[Message] = [*request.inputs, *request.outputs]
    return [place for place in map(Place.of, tensors) if place is not None]


class SharedMemory:
    """The segment of a data plane, as a backend sees it."""

    def __init__(self, plane: DataPlane) -> None:
        self.key = plane.applied.shared_memory_key
        fd = os.open(Path("/dev/shm", self.key.lstrip("/")), os.O_RDWR)
        try:
            self.memory = mmap.mmap(fd, plane.applied.shared_memory_bytes)
        finally:
            os.close(fd)

    def read(self, place: Place) -> bytes:
        return self.memory[place.offset : place.offset + place.size]

    def write(self, place: Place, data: bytes) -> None:
        assert len(data) <= place.size
        self.memory[place.offset : place.offset + len(data)] = data

    def identity(self, request: Request, context: grpc.ServicerContext | None = None) -> Response:
        """As a Triton that has the region: tensors come and go where the request says."""
        plain = Request()
        plain.CopyFrom(request)
        raw = iter(request.raw_input_contents)
        del plain.raw_input_contents[:]
        for tensor in plain.inputs:
            place = Place.of(tensor)
            plain.raw_input_contents.append(next(raw) if place is None else self.read(place))
        reply = identity(plain)
        for wanted in request.outputs:
            place = Place.of(wanted)
            for index, output in enumerate(reply.outputs):
                if place is not None and output.name == wanted.name:
                    self.write(place, reply.raw_output_contents[index])
                    reply.raw_output_contents[index] = b""
        return reply


def backend(fake: FakeTriton, key: str = "", region: str = REGION) -> pb.Backend:
    """The fake as an Apply names it; with a key it has the memory under that name."""
    return pb.Backend(
        index=0,
        address=fake.address,
        connections=1,
        state=pb.BACKEND_STATE_SERVING,
        shared_memory_key=key,
        shared_memory_region=region if key else "",
    )


def share(
    plane: DataPlane, fake: FakeTriton, models: list[pb.Model], size: int = 64 << 20
) -> SharedMemory:
    """Applies these models at the fake, which then has the data plane's memory."""
    limits = pb.Limits(shared_memory_bytes_max=size)
    assert plane.apply(models, [backend(fake)], limits) == ""
    memory = SharedMemory(plane)
    fake.behaviour = memory.identity
    assert plane.apply(models, [backend(fake, memory.key)], limits) == ""
    return memory
