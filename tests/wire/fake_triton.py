"""A Triton that answers as the test says.

with FakeTriton() as fake:               # an identity model of any name
    fake.hold()                          # calls are taken and recorded, not answered
    ...
    fake.release()
    assert fake.batch_rows() == [1, 7]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.dataplane import wait_until
from tests.wire.calls import Stub, infer_request, rows

HOLD_TIMEOUT_S = 60.0
CHANNEL_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

Request = service_pb2.ModelInferRequest
Response = service_pb2.ModelInferResponse
Message = service_pb2.ModelStreamInferResponse
# Raise with `context.abort(code, text)`; returns the reply.
Behaviour = Callable[[Request, grpc.ServicerContext], Response]
# The same for the replies to one request of a stream; large ones serialized before, because
# serializing keeps all Python threads from running, the one that answers ServerLive among them.
StreamBehaviour = Callable[[Request, grpc.ServicerContext], Iterable[Message | bytes]]


def identity(request: Request, context: grpc.ServicerContext | None = None) -> Response:
    """Every input comes back as the output of the same number."""
    reply = Response(model_name=request.model_name, model_version="1", id=request.id)
    for tensor in request.inputs:
        reply.outputs.add(
            name=tensor.name.replace("INPUT", "OUTPUT"),
            datatype=tensor.datatype,
            shape=tensor.shape,
        )
    reply.raw_output_contents.extend(request.raw_input_contents)
    return reply


def one_reply(request: Request, context: grpc.ServicerContext | None = None) -> Iterator[Message]:
    """The identity as a stream has it: one reply, which is the last."""
    reply = identity(request)
    reply.parameters["triton_final_response"].bool_param = True
    yield Message(infer_response=reply)


def rows_of(request: Request) -> int:
    return int(request.inputs[0].shape[0])


def values_of(request: Request, index: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The FP32 input as a matrix of one row for each row of the batch."""
    data = np.frombuffer(request.raw_input_contents[index], np.float32)
    return data.reshape(rows_of(request), -1)


class SerializedReplies(grpc.ServerInterceptor):  # type: ignore[misc]
    """Sends what a stream behaviour yields as bytes as it is."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = continuation(details)
        if handler is None or handler.stream_stream is None:
            return handler
        return grpc.stream_stream_rpc_method_handler(
            handler.stream_stream,
            handler.request_deserializer,
            lambda reply: reply if isinstance(reply, bytes) else reply.SerializeToString(),
        )


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A grpcio server on a port of its own that records what it is asked.

    Each call and each stream that is held keeps one of its workers; where none is left to answer
    ServerLive, it is taken for dead.
    """

    def __init__(self, behaviour: Behaviour = identity, *, workers: int = 64) -> None:
        self.behaviour = behaviour
        self.stream_behaviour: StreamBehaviour = one_reply
        self._workers = workers
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None
        self._occupying: list[grpc.Future] = []
        self.port = 0
        self.requests: list[Request] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining_s: list[float | None] = []
        # Of each stream: its metadata and the requests that came on it.
        self.streams: list[tuple[dict[str, str], list[Request]]] = []
        self.streams_ended = 0
        self.probes = 0
        self.cancelled = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeTriton:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        self.kill()

    def start(self) -> None:
        """Listens; after `kill` on the port it had before."""
        pool = futures.ThreadPoolExecutor(self._workers)
        self._server = grpc.server(
            pool, interceptors=[SerializedReplies()], options=CHANNEL_OPTIONS
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def kill(self) -> None:
        """Ends all connections and calls at once, like a process that was killed."""
        if self._server is not None:
            self._server.stop(grace=0).wait()
            self._server = None

    def hold(self) -> None:
        """From now on calls are recorded but wait for `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def release_held(self) -> None:
        """Lets go what is held, and holds all that comes after it."""
        held, self._open = self._open, threading.Event()
        held.set()

    def occupy(self, stub: Stub) -> grpc.Future:
        """Holds, and sends one request that keeps the only slot until `release`."""
        self.hold()
        before = len(self.requests)
        call = stub.ModelInfer.future(infer_request(rows(7777.0)), timeout=HOLD_TIMEOUT_S)
        wait_until(lambda: len(self.requests) == before + 1, "the fake has the first batch")
        self._occupying.append(call)  # a call that nothing refers to is cancelled
        return call

    def batch_rows(self) -> list[int]:
        """Rows of each call so far, in the order they came."""
        return [rows_of(request) for request in self.requests]

    # -- the service -----------------------------------------------------------------------------

    def ModelInfer(self, request: Request, context: grpc.ServicerContext) -> Response:
        with self._lock:
            self.requests.append(request)
            self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata()})
            self.remaining_s.append(context.time_remaining())
        context.add_callback(lambda: self._ended(context))
        self._open.wait(HOLD_TIMEOUT_S)
        return self.behaviour(request, context)

    def ModelStreamInfer(
        self, requests: Iterator[Request], context: grpc.ServicerContext
    ) -> Iterator[Message | bytes]:
        came: list[Request] = []
        with self._lock:
            metadata = {str(k): str(v) for k, v in context.invocation_metadata()}
            self.streams.append((metadata, came))
            self.remaining_s.append(context.time_remaining())
        context.add_callback(self._stream_ended)
        for request in requests:
            came.append(request)
            self._open.wait(HOLD_TIMEOUT_S)
            yield from self.stream_behaviour(request, context)

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.probes += 1
        return service_pb2.ServerLiveResponse(live=True)

    def _stream_ended(self) -> None:
        with self._lock:
            self.streams_ended += 1

    def _ended(self, context: grpc.ServicerContext) -> None:
        if context.code() is None and not self._open.is_set():
            with self._lock:
                self.cancelled += 1
