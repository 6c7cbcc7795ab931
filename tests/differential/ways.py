"""Sends requests both ways and tells what came back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.codec_messages import Response
from tests.differential.worlds import World
from tests.wire.calls import CHANNEL_OPTIONS
from tests.wire.raw_client import INFER_PATH

ANSWER_TIMEOUT_S = 20.0
STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
StreamResponse = service_pb2.ModelStreamInferResponse
CONNECTIONS = 4
# Without a dynamic_batching block Triton executes each request by itself, however many wait.
STRAIGHT_IN_FLIGHT = 16


# How a chunk of requests is carried; most are plain calls.
PLAIN, STREAM, GZIP, DEFLATE = "plain", "stream", "gzip", "deflate"
CARRIERS = (PLAIN, PLAIN, STREAM, PLAIN, GZIP, PLAIN, STREAM, DEFLATE)
COMPRESSION = {GZIP: grpc.Compression.Gzip, DEFLATE: grpc.Compression.Deflate}
# The code of an error that a message of a stream tells: it has only a text.
TOLD = "TOLD"


@dataclass(frozen=True)
class Answer:
    """A status, and the reply's bytes when it is OK."""

    code: str
    text: str = ""
    reply: bytes = b""

    @property
    def response(self) -> Response:
        return Response.FromString(self.reply)

    def equals(self, other: Answer) -> bool:
        """The same to a client: status, and all that protobuf knows of the reply."""
        if (self.code, self.text) != (other.code, other.text):
            return False
        if self.reply == other.reply:
            return True
        return len(self.reply) == len(other.reply) and self.response == other.response

    def __str__(self) -> str:
        shown = str(self.response).replace("\n", " ")
        return f"{self.code}: {self.text} {shown[:1500]}"


class Way:
    """ModelInfer over a few connections, `in_flight` requests at once."""

    def __init__(self, address: str, in_flight: int, stack: ExitStack) -> None:
        self._room = threading.Semaphore(in_flight)
        channels = [
            stack.enter_context(grpc.insecure_channel(address, options=CHANNEL_OPTIONS))
            for _ in range(CONNECTIONS)
        ]
        self._infer: list[Any] = [channel.unary_unary(INFER_PATH) for channel in channels]
        self._stream: Any = channels[0].stream_stream(STREAM_PATH)

    def answers(self, messages: Sequence[bytes], carrier: str = PLAIN) -> list[Answer]:
        """What came back for each message, in their order."""
        if carrier == STREAM:
            return self._stream_answers(messages)
        calls = []
        compression = COMPRESSION.get(carrier)
        for number, message in enumerate(messages):
            self._room.acquire()
            infer = self._infer[number % len(self._infer)]
            call = infer.future(message, timeout=ANSWER_TIMEOUT_S, compression=compression)
            call.add_done_callback(lambda _: self._room.release())
            calls.append(call)
        return [answer_of(call) for call in calls]

    def _stream_answers(self, messages: Sequence[bytes]) -> list[Answer]:
        """All on one stream; what it did not answer before it ended has its status."""
        answers: list[Answer] = []
        end = Answer("ENDED")
        try:
            for data in self._stream(iter(messages), timeout=ANSWER_TIMEOUT_S):
                reply = StreamResponse.FromString(data)
                response = reply.infer_response.SerializeToString()
                if reply.error_message:
                    answers.append(Answer(TOLD, reply.error_message, response))
                else:
                    answers.append(Answer("OK", "", response))
        except grpc.RpcError as error:
            end = Answer(error.code().name, error.details() or "")
        return answers + [end] * (len(messages) - len(answers))


def answer_of(call: Any) -> Answer:
    error = call.exception()
    if error is None:
        return Answer("OK", "", call.result())
    return Answer(error.code().name, error.details() or "")


@dataclass(frozen=True)
class Ways:
    straight: Way
    through: Way
    # Of each backend of the scheduler.
    stubs: tuple[Any, ...] = ()

    def executions(self) -> list[int]:
        """Executions of all models so far, as each Triton counted them."""
        asked = service_pb2.ModelStatisticsRequest()
        answers = [stub.ModelStatistics(asked, timeout=ANSWER_TIMEOUT_S) for stub in self.stubs]
        return [sum(int(s.execution_count) for s in each.model_stats) for each in answers]


@contextmanager
def ways_of(world: World, in_flight: int) -> Iterator[Ways]:
    with ExitStack() as stack:
        straight = Way(world.straight, STRAIGHT_IN_FLIGHT, stack)
        channels = [stack.enter_context(grpc.insecure_channel(each)) for each in world.backends]
        stubs = tuple(map(service_pb2_grpc.GRPCInferenceServiceStub, channels))
        yield Ways(straight, Way(world.through, in_flight, stack), stubs)
