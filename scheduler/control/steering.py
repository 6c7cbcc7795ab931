"""The control plane's end of the steering socket (protos/scheduler/v1/dataplane.proto).

Says the whole wanted state on every connection and on every change; an unchanged state is not said
again. Several changes in a row become one Apply.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from scheduler.backends.waiting import result_within
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

INTERFACE_VERSION = 1
FRAME_BYTES_MAX = 64 * 2**20
RECONNECT_PERIOD_S = 0.1
ANSWER_TIMEOUT_S = 2.0
_LENGTH = struct.Struct("<I")


class SteeringError(Exception):
    """The other side speaks another version or sends nonsense."""


async def read_frame(reader: asyncio.StreamReader) -> pb.FromDataPlane:
    """The next frame. Raises EOFError at the end and SteeringError on nonsense."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise SteeringError(f"a frame of {length} bytes")
        return pb.FromDataPlane.FromString(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise EOFError("the data plane closed the steering socket") from error
    except DecodeError as error:
        raise SteeringError("a frame that is no FromDataPlane") from error


def write_frame(writer: asyncio.StreamWriter, message: pb.ToDataPlane) -> None:
    payload = message.SerializeToString()
    writer.write(_LENGTH.pack(len(payload)) + payload)


async def open_steering(
    path: Path,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, pb.Hello]:
    """Connects and reads the Hello. Raises OSError, EOFError or SteeringError."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        hello = (await result_within(read_frame(reader), ANSWER_TIMEOUT_S)).hello
        if hello.interface_version != INTERFACE_VERSION:
            raise SteeringError(
                f"the data plane speaks steering version {hello.interface_version}, "
                f"this control plane {INTERFACE_VERSION}"
            )
    except BaseException:
        writer.close()
        raise
    return reader, writer, hello


async def drain_once(path: Path, deadline_ms: int) -> int:
    """Drains over a connection of its own; returns the number of unanswered requests."""
    reader, writer, _ = await open_steering(path)
    try:
        write_frame(writer, pb.ToDataPlane(drain=pb.Drain(deadline_ms=deadline_ms)))
        while True:
            frame = await read_frame(reader)
            if frame.WhichOneof("message") == "drained":
                return int(frame.drained.unanswered_requests)
    finally:
        writer.close()


class SteeringClient:
    """Keeps one connection to the data plane and brings it to the wanted state."""

    def __init__(
        self,
        path: Path,
        on_event: Callable[[pb.Event], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the connection or `applied` has changed."""
        self._path = path
        self._on_event = on_event
        self._on_change = on_change
        self._writer: asyncio.StreamWriter | None = None
        self._wanted: pb.Apply | None = None
        self._said: pb.Apply | None = None
        # By generation, until the data plane says that it took effect.
        self._unconfirmed: dict[int, pb.Apply] = {}
        self._generation = 0
        # Questions that wait, by the kind of their answer. Answers come in order; what timed out
        # still takes its answer.
        self._asked: dict[str, list[asyncio.Future[Any]]] = {"snapshot": [], "statistics": []}
        self._settling: list[tuple[int, asyncio.Future[None]]] = []
        self._drained: asyncio.Future[int] | None = None
        # What the data plane serves by; None before it has confirmed anything.
        self.applied: pb.Apply | None = None
        self.applied_generation = 0
        self.apply_error = ""
        self.data_plane_pid = 0
        # The name and size of the data plane's segment; no name: it has none.
        self.shared_memory = ("", 0)

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def want(self, state: pb.Apply) -> None:
        """Sets the wanted state (its `generation` is filled in here) and says it if it is news."""
        self._wanted = state
        self._say()

    async def run(self) -> None:
        """Connects, serves the connection, connects again; until cancelled."""
        reported = ""
        while True:
            try:
                reader, writer, hello = await open_steering(self._path)
            except (OSError, EOFError, SteeringError, asyncio.TimeoutError) as error:
                if repr(error) != reported:
                    reported = repr(error)
                    log(logger, logging.WARNING, "no data plane yet", reason=reported)
                await asyncio.sleep(RECONNECT_PERIOD_S)
                continue
            reported = ""
            try:
                await self._serve(reader, writer, hello)
            except (OSError, EOFError, SteeringError) as error:
                log(logger, logging.WARNING, "lost the data plane", reason=str(error))
            finally:
                self._disconnected(writer)
            await asyncio.sleep(RECONNECT_PERIOD_S)

    def tell_memory(self, readings: pb.MemoryReadings) -> bool:
        """Figures of device memory, which have no answer. False while there is no data plane, or
        one that has not read the last ones: they are told again, as they are then."""
        if self._writer is None or self._writer.transport.get_write_buffer_size() > 0:
            return False
        write_frame(self._writer, pb.ToDataPlane(memory=readings))
        return True

    async def snapshot(
        self, model_indices: Collection[int] = (), timeout_s: float = ANSWER_TIMEOUT_S
    ) -> pb.Snapshot:
        """The data plane's state now, or these models with what was learned of their latencies.

        Raises ConnectionError or TimeoutError.
        """
        request = pb.SnapshotRequest(model_indices=model_indices)
        message = pb.ToDataPlane(snapshot=request)
        answer: pb.Snapshot = await self._ask("snapshot", message, timeout_s)
        return answer

    async def statistics(
        self, model_indices: Collection[int], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> pb.Statistics:
        """What happened to the requests of these models (none: of all). Raises as `snapshot`."""
        request = pb.StatisticsRequest(model_indices=model_indices)
        message = pb.ToDataPlane(statistics=request)
        answer: pb.Statistics = await self._ask("statistics", message, timeout_s)
        return answer

    async def settled(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Returns once the data plane has answered the state that is wanted now.

        Raises ConnectionError or TimeoutError.
        """
        if self._writer is None:
            raise ConnectionError("the data plane is not connected")
        if self._generation not in self._unconfirmed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling.append((self._generation, future))
        await result_within(future, timeout_s)

    async def _ask(self, kind: str, message: pb.ToDataPlane, timeout_s: float) -> Any:
        if self._writer is None:
            raise ConnectionError("the data plane is not connected")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[kind].append(future)
        write_frame(self._writer, message)
        return await result_within(future, timeout_s)

    async def drain(self, deadline_ms: int) -> int:
        """Drains; returns the number of requests left unanswered. Raises ConnectionError."""
        if self._writer is None:
            raise ConnectionError("the data plane is not connected")
        if self._drained is None or self._drained.done():
            self._drained = asyncio.get_running_loop().create_future()
        write_frame(self._writer, pb.ToDataPlane(drain=pb.Drain(deadline_ms=deadline_ms)))
        return await result_within(asyncio.shield(self._drained), deadline_ms / 1000 + 2.0)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: pb.Hello
    ) -> None:
        log(logger, logging.INFO, "steering the data plane", pid=hello.pid)
        self._writer = writer
        self._said = None
        self.data_plane_pid = hello.pid
        self._generation = max(self._generation, hello.generation)
        self._on_change()
        self._say()
        while True:
            self._received(await read_frame(reader))

    def _say(self) -> None:
        if self._writer is None or self._wanted is None or self._wanted == self._said:
            return
        self._said = pb.Apply()
        self._said.CopyFrom(self._wanted)
        self._generation += 1
        message = pb.ToDataPlane(apply=self._wanted)
        message.apply.generation = self._generation
        self._unconfirmed[self._generation] = self._said
        write_frame(self._writer, message)

    def _received(self, frame: pb.FromDataPlane) -> None:
        kind = frame.WhichOneof("message")
        if kind == "applied":
            self.applied_generation = frame.applied.generation
            if frame.applied.error and frame.applied.error != self.apply_error:
                log(logger, logging.ERROR, "the data plane refused the state",
                    error=frame.applied.error)  # fmt: skip
            self.apply_error = frame.applied.error
            state = self._unconfirmed.pop(frame.applied.generation, None)
            self.shared_memory = (
                frame.applied.shared_memory_key,
                frame.applied.shared_memory_bytes,
            )
            if state is not None and not frame.applied.error:
                self.applied = state
                self._on_change()
            self._tell_settled(frame.applied.generation)
        elif kind in self._asked:
            if self._asked[kind]:
                future = self._asked[kind].pop(0)
                if not future.done():
                    future.set_result(getattr(frame, kind))
        elif kind == "drained":
            if self._drained is not None and not self._drained.done():
                self._drained.set_result(int(frame.drained.unanswered_requests))
        elif kind == "event":
            self._on_event(frame.event)

    def _tell_settled(self, generation: int) -> None:
        for wanted, future in self._settling:
            if wanted <= generation and not future.done():
                future.set_result(None)
        self._settling = [entry for entry in self._settling if entry[0] > generation]

    def _disconnected(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        self._writer = None
        self.data_plane_pid = 0
        self.shared_memory = ("", 0)
        self.applied = None
        self._unconfirmed.clear()
        lost = ConnectionError("the data plane went away")
        waiting = [future for asked in self._asked.values() for future in asked]
        for future in [*waiting, *(future for _, future in self._settling)]:
            if not future.done():
                future.set_exception(lost)
        for asked in self._asked.values():
            asked.clear()
        self._settling.clear()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(lost)
        self._on_change()
