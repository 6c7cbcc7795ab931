"""Which region of a backend is taken for the data plane's segment; a fake Triton has wrong ones."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from scheduler.control import payload_memory
from scheduler.control.payload_memory import PREFIX, PayloadMemory
from scheduler.dataplane import segment

ADDRESS = "127.0.0.1:8001"
KEY = f"/{PREFIX}0123"
SEGMENT_BYTES = 1 << 20
Status = service_pb2.SystemSharedMemoryStatusResponse
Region = Status.RegionStatus


class Triton:
    """Its system shared memory; it checks nothing."""

    def __init__(self, **regions: Region) -> None:
        self.regions = regions

    async def rpc(self, method: str, request: Any, _timeout_s: float) -> Any:
        if method == "SystemSharedMemoryUnregister":
            self.regions.pop(request.name, None)
        elif method == "SystemSharedMemoryRegister":
            self.regions[request.name] = Region(
                name=request.name, key=request.key, byte_size=request.byte_size
            )
        return Status(regions=self.regions)


def region_used(triton: Triton) -> str:
    """The one that the data plane is told of."""
    watch = SimpleNamespace(
        address=ADDRESS,
        takes_calls=True,
        calls=triton,
        server=SimpleNamespace(version="2.60.0"),
    )
    address = SimpleNamespace(host="127.0.0.1")
    backend = SimpleNamespace(address=address, shared_memory="auto")
    pool: Any = SimpleNamespace(watches={ADDRESS: watch}, backends={ADDRESS: backend})

    async def look() -> str:
        changed = asyncio.Event()
        memory = PayloadMemory(pool, changed.set)
        memory.segment(KEY, SEGMENT_BYTES)
        await asyncio.wait_for(changed.wait(), 30)
        await memory.close()
        return memory.regions[ADDRESS]

    return asyncio.run(look())


def test_both_planes_name_the_memory_alike() -> None:
    assert payload_memory.PREFIX == segment.PREFIX


def test_a_region_of_the_whole_segment_is_used_again() -> None:
    name = f"{PREFIX}one"
    triton = Triton(**{name: Region(name=name, key=KEY, byte_size=SEGMENT_BYTES)})
    assert region_used(triton) == name


@pytest.mark.parametrize(
    "region",
    [
        Region(name="theirs", key=KEY, byte_size=SEGMENT_BYTES),
        Region(name=f"{PREFIX}part", key=KEY, byte_size=SEGMENT_BYTES // 2),
        Region(name=f"{PREFIX}late", key=KEY, byte_size=SEGMENT_BYTES, offset=4096),
    ],
    ids=lambda region: region.name,
)
def test_a_region_that_others_made_of_the_segment_is_not_used(region: Region) -> None:
    """Offsets in it would lead elsewhere."""
    triton = Triton(**{region.name: region})
    used = region_used(triton)
    assert used != region.name
    assert set(triton.regions) == {used}
