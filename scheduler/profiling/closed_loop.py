"""Equal requests to one server, a set number of them at any time, and how long each took.

They are sent by a compiled client in an event loop, as the data plane sends its batches: what a
client in Python adds to each, up to half a millisecond, would be taken for the model's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import uvloop

from scheduler._native.gateway import says_out_of_memory
from scheduler._native.loadgen import Load
from scheduler._native.timerfd import TimerFd

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
CONNECT_TIMEOUT_S = 10.0
BATCH_TIMEOUT_S = 600.0
_POLL_S = 0.002
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class LoopError(Exception):
    """No connection, or an answer that is not OK; says which."""


class LoopOutOfMemoryError(LoopError):
    """The answer says that the device ran out of memory."""


def closed_loop(
    address: str,
    message: bytes,
    count: int,
    in_flight: int,
    on_reply: Callable[[], None] = lambda: None,
) -> list[int]:
    """Times of `count` requests from sending to reply, in ns within 0.4 %. Raises LoopError."""
    if count <= 0:
        return []
    return uvloop.run(_closed_loop(address, message, count, min(in_flight, count), on_reply))


async def _closed_loop(
    address: str, message: bytes, count: int, in_flight: int, on_reply: Callable[[], None]
) -> list[int]:
    replies = _Replies(on_reply)
    lanes = [count // in_flight + (lane < count % in_flight) for lane in range(in_flight)]
    tasks: list[asyncio.Task[list[int]]] = []
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        tasks.append(asyncio.create_task(_lane(address, message, lanes[0], replies)))
        if in_flight > 1:
            # Batches that take the same time and start together end together, and then wait for
            # each other's answer: the lanes start evenly apart.
            await asyncio.wait((tasks[0], replies.first), return_when=asyncio.FIRST_COMPLETED)
            apart_s = (loop.time() - started) / in_flight
            for requests in lanes[1:]:
                tasks.append(asyncio.create_task(_lane(address, message, requests, replies)))
                await asyncio.sleep(apart_s)
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [time_ns for times in found for time_ns in times]


class _Replies:
    """Tells of each reply."""

    def __init__(self, on_reply: Callable[[], None]) -> None:
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_reply = on_reply

    def came(self, count: int) -> None:
        for _ in range(count):
            self._on_reply()
        if count and not self.first.done():
            self.first.set_result(None)


async def _lane(address: str, message: bytes, count: int, replies: _Replies) -> list[int]:
    """`count` requests one after the other."""
    load = Load(
        asyncio.get_running_loop(),
        TimerFd(),
        path=INFER_PATH,
        authority=address,
        in_flight=1,
        requests_max=count,
        timeout_ns=round(BATCH_TIMEOUT_S * 1e9),
    )
    load.add_payload(message, 1)
    transport = await _connected(load, address)
    try:
        load.window_begin()
        load.begin()
        answered = 0
        while answered < count:
            await asyncio.sleep(_POLL_S)
            totals = load.totals()
            replies.came(totals["answered"] - answered)
            answered = totals["answered"]
            failed = totals["statuses"].keys() - {"0"}
            if failed:
                code, text = int(min(failed)), totals["first_error"]
                kind = LoopOutOfMemoryError if says_out_of_memory(code, text) else LoopError
                raise kind(f"{_CODES.get(code, code)}: {text}")
            if totals["connections_lost"]:
                raise LoopError(f"UNAVAILABLE: {address} closed the connection")
        return [
            (lower + upper) // 2
            for lower, upper, times in load.latency_buckets()
            for _ in range(times)
        ]
    finally:
        transport.close()


async def _connected(load: Load, address: str) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    try:
        opened = loop.create_connection(load.protocol, host.strip("[]"), int(port))
        transport, _ = await asyncio.wait_for(opened, CONNECT_TIMEOUT_S)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise LoopError(f"UNAVAILABLE: {address}: {error}") from error
    end = loop.time() + CONNECT_TIMEOUT_S
    while not load.ready:
        if loop.time() > end:
            transport.close()
            raise LoopError(f"UNAVAILABLE: {address} does not speak HTTP/2")
        await asyncio.sleep(_POLL_S)
    return transport
