"""Conversations over ModelStreamInfer: requests of the stream models, and what came back."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from tests.wire.calls import ANSWER_TIMEOUT_S, Stub, set_parameter

Request = service_pb2.ModelInferRequest
Message = service_pb2.ModelStreamInferResponse
FINAL = "triton_final_response"
WANTS_EMPTY_FINAL = {"triton_enable_empty_final_response": True}


def int_request(model: str, request_id: str = "", **inputs: int) -> Request:
    """One row of INT32[1] for each input."""
    request = Request(model_name=model, id=request_id)
    for name, value in inputs.items():
        request.inputs.add(name=name, datatype="INT32", shape=[1, 1])
        request.raw_input_contents.append(np.array([[value]], np.int32).tobytes())
    return request


def repeat_request(
    count: int,
    request_id: str = "",
    *,
    delay_ms: int = 0,
    fail_at: int | None = None,
    size: int = 1,
    wants_empty_final: bool = False,
) -> Request:
    """For tests.models.repeat: `count` responses."""
    inputs = {"COUNT": count}
    inputs |= {"DELAY_MS": delay_ms} if delay_ms else {}
    inputs |= {"FAIL_AT": fail_at} if fail_at is not None else {}
    inputs |= {"SIZE": size} if size != 1 else {}
    request = int_request("repeat", request_id, **inputs)
    if wants_empty_final:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def sequence_request(
    value: int,
    sequence_id: int | str | None,
    *,
    start: bool = False,
    end: bool = False,
    request_id: str = "",
    model: str = "sequence",
) -> Request:
    """For tests.models.sequence: adds `value` to the running sum."""
    request = int_request(model, request_id, VALUE=value)
    if sequence_id is not None:
        set_parameter(request.parameters["sequence_id"], sequence_id)
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


def sum_of(response: service_pb2.ModelInferResponse) -> int:
    return int(np.frombuffer(response.raw_output_contents[0], np.int32)[0])


def index_of(message: Message) -> int:
    """INDEX of a response of tests.models.repeat."""
    return sum_of(message.infer_response)


def is_final(message: Message) -> bool:
    return bool(message.infer_response.parameters[FINAL].bool_param)


@dataclass
class Conversation:
    """What a stream answered, and how it ended."""

    messages: list[Message] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    text: str = ""

    def ids(self) -> list[str]:
        return [message.infer_response.id for message in self.messages]

    def of(self, request_id: str) -> list[Message]:
        return [m for m in self.messages if m.infer_response.id == request_id]

    def errors(self) -> list[str]:
        return [message.error_message for message in self.messages]


def converse(
    stub: Stub, requests: Iterable[Request], *, timeout: float = ANSWER_TIMEOUT_S, **call: Any
) -> Conversation:
    """Sends all requests, half-closes and reads to the end."""
    stream = stub.ModelStreamInfer(iter(list(requests)), timeout=timeout, **call)
    conversation = Conversation()
    try:
        conversation.messages.extend(stream)
        conversation.code = stream.code()
    except grpc.RpcError as error:
        conversation.code, conversation.text = error.code(), error.details() or ""
    return conversation


class OpenStream:
    """A stream that is written and read by hand.

    with OpenStream(stub) as stream:
        stream.send(request)
        message = stream.read()
    """

    def __init__(self, stub: Stub, *, timeout: float = ANSWER_TIMEOUT_S, **call: Any) -> None:
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._timeout = timeout
        self.call = stub.ModelStreamInfer(self._written(), timeout=timeout, **call)

    def _written(self) -> Iterator[Request]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, *requests: Request) -> None:
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        self._requests.put(None)

    def read(self) -> Message:
        """The next message. Raises StopIteration at the end, RpcError where it has a status."""
        return next(self.call)

    def read_many(self, count: int) -> Sequence[Message]:
        return [self.read() for _ in range(count)]

    def __enter__(self) -> OpenStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.half_close()
        self.call.cancel()
