"""`python -m benchmarks.stream_load`: ModelStreamInfer to a decoupled model, as fast as it answers.

Reads its plan as JSON from stdin. Every stream has one request outstanding; the last response to
it sends the next. All replies of the run are checked after it: the id, and INDEX from 0 up, once
each. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import uvloop
from tritonclient.grpc import service_pb2

from benchmarks.openloop.load import own_cpu_s
from scheduler._native import http2

STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
ANSWER_TIMEOUT_S = 30.0
PULL_BYTES = 1 << 18


@dataclass
class StreamPlan:
    """`replies` responses are asked for by each request; times in seconds."""

    target: str
    model: str
    replies: int
    connections: int
    streams: int  # of each connection
    seconds: float
    warmup_s: float = 0.3


@dataclass
class Stream:
    """One client stream: what was asked, and the replies as they came."""

    number: int
    requests: int = 0
    due: int = 0  # replies to the request outstanding
    replies: list[bytes] = field(default_factory=list)


class StreamConnection(asyncio.Protocol):
    """One connection with all its streams."""

    def __init__(self, plan: StreamPlan, first_number: int) -> None:
        self.plan = plan
        self.session = http2.ClientSession(authority=plan.target)
        self.streams: dict[int, Stream] = {}
        self.first_number = first_number
        self.opened = False
        self.stopped = False
        self.replies = 0
        self.problem = ""
        self._template = service_pb2.ModelInferRequest(model_name=plan.model)
        self._template.inputs.add(name="COUNT", datatype="INT32", shape=[1, 1])
        self._template.raw_input_contents.append(np.int32(plan.replies).tobytes())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.session.feed(data, time.monotonic_ns())
        if not self.opened and self.session.ready():
            self.opened = True
            for number in range(self.plan.streams):
                stream = Stream(self.first_number + number)
                identifier = self.session.open_stream(STREAM_PATH)
                self.streams[identifier] = stream
                self.send(identifier, stream)
        for event in self.session.events():
            if event.kind == "message":
                self.take(event)
            elif event.kind == "reply":
                self.problem = self.problem or f"a stream ended with {event.code}: {event.text}"
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.problem = self.problem or "a connection was lost"

    def send(self, identifier: int, stream: Stream) -> None:
        self._template.id = f"{stream.number}-{stream.requests}"
        stream.requests += 1
        stream.due = self.plan.replies
        self.session.send(identifier, self._template.SerializeToString())

    def take(self, event: http2.Event) -> None:
        stream = self.streams[event.stream]
        stream.replies.append(event.message)
        self.session.consumed(event.stream, event.bytes)
        self.replies += 1
        stream.due -= 1
        if stream.due == 0 and not self.stopped:
            self.send(event.stream, stream)

    def flush(self) -> None:
        while data := self.session.pull(PULL_BYTES):
            self.transport.write(data)

    def check(self) -> str:
        """What is wrong with the replies, or empty."""
        for stream in self.streams.values():
            if len(stream.replies) != stream.requests * self.plan.replies:
                return f"{len(stream.replies)} replies to {stream.requests} requests"
            for index, message in enumerate(stream.replies):
                request, position = divmod(index, self.plan.replies)
                reply = service_pb2.ModelStreamInferResponse.FromString(message)
                answer = reply.infer_response
                expected = (f"{stream.number}-{request}", [np.int32(position).tobytes()])
                if reply.error_message or (answer.id, [*answer.raw_output_contents]) != expected:
                    return f"the reply {index} of stream {stream.number} is wrong:\n{reply}"
        return "" if self.streams else "no stream was opened"


async def run_load(plan: StreamPlan) -> dict[str, Any]:
    """Replies/s over the window, CPU of this process, and what was wrong."""
    loop = asyncio.get_running_loop()
    host, _, port = plan.target.rpartition(":")
    connections = [
        StreamConnection(plan, number * plan.streams) for number in range(plan.connections)
    ]
    for connection in connections:
        await loop.create_connection(lambda it=connection: it, host, int(port))  # type: ignore[misc]
    await asyncio.sleep(plan.warmup_s)
    began_s, before = time.monotonic(), sum(each.replies for each in connections)
    cpu_s = own_cpu_s()
    await asyncio.sleep(plan.seconds)
    seconds = time.monotonic() - began_s
    replies = sum(each.replies for each in connections) - before
    cpu_s = own_cpu_s() - cpu_s
    for connection in connections:
        connection.stopped = True
    end_s = time.monotonic() + ANSWER_TIMEOUT_S
    streams = [stream for each in connections for stream in each.streams.values()]
    while any(stream.due for stream in streams) and time.monotonic() < end_s:
        await asyncio.sleep(0.005)
    problem = next((found for each in connections if (found := each.problem or each.check())), "")
    requests = sum(stream.requests for stream in streams)
    return {
        "replies_per_s": replies / seconds,
        "load_cpu_us": cpu_s / max(replies, 1) * 1e6,
        "replies": replies,
        "requests": requests,
        "problem": problem,
    }


def main() -> None:
    plan = StreamPlan(**json.loads(sys.stdin.read()))
    gc.disable()
    print(json.dumps(uvloop.run(run_load(plan))))


if __name__ == "__main__":
    main()
