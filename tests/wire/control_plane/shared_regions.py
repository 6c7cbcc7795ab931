"""Regions of shared memory, for tests of two Tritons of this host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import service_pb2

from scheduler.v1 import dataplane_pb2 as pb
from tests.wire.control_plane.words import TIMEOUT_S, Cold

RegisterRequest = service_pb2.SystemSharedMemoryRegisterRequest
UnregisterRequest = service_pb2.SystemSharedMemoryUnregisterRequest
StatusRequest = service_pb2.SystemSharedMemoryStatusRequest
# Triton maps regions, so offsets are whole pages.
PAGE_BYTES = 4096
REGION_BYTES = 2 * PAGE_BYTES


@contextlib.contextmanager
def shared_memory(name: str) -> Iterator[str]:
    """The key of a new piece of shared memory."""
    path = Path("/dev/shm") / f"infersched-{name}-{os.getpid()}"
    path.write_bytes(bytes(REGION_BYTES))
    try:
        yield f"/{path.name}"
    finally:
        path.unlink(missing_ok=True)


def regions(stub: Cold, name: str = "") -> dict[str, tuple[str, int, int]]:
    answer = stub.SystemSharedMemoryStatus(StatusRequest(name=name), timeout=TIMEOUT_S)
    return {n: (r.key, r.offset, r.byte_size) for n, r in answer.regions.items()}


def told(apply: pb.Apply) -> dict[str, list[int]]:
    return {region.name: list(region.backend_indices) for region in apply.regions}
