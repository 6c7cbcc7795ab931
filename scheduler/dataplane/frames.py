"""Frames of the steering interface: a 4-byte little-endian length, then one protobuf message."""

from __future__ import annotations

import struct
from collections.abc import Iterator

INTERFACE_VERSION = 1
# A catalog of thousands of models fits; more is a broken peer.
FRAME_BYTES_MAX = 64 << 20

_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """The peer sent a length that no message of this interface has."""


def pack_frame(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


class FrameReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields every message completed by `data`. Raises FrameError on an oversize length."""
        self._pending += data
        while len(self._pending) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._pending)
            if size > FRAME_BYTES_MAX:
                raise FrameError(f"frame of {size} bytes exceeds {FRAME_BYTES_MAX}")
            end = _LENGTH.size + size
            if len(self._pending) < end:
                return
            message = bytes(self._pending[_LENGTH.size : end])
            del self._pending[:end]
            yield message
