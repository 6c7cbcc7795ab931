"""Streams of every kind at once, from a seed: cancels, deadlines, pauses, dying backends.

What must hold whatever happens: replies are complete, in order and the right ones, no request of a
sequence ran twice, no response of a decoupled one came twice; at the end nothing is left.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.streams import OpenStream, is_final
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Message, Request, identity
from tests.wire.proxy import Proxy
from tests.wire.test_swarm import ANSWERS_MIN, EXPLAINED, SWARM_S, disturb, wants_more

CLIENTS = 5
RESPONSES_MAX = 6


class SequenceKeeper:
    """The stream side of one backend: counts the requests of each sequence."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def __call__(self, request: Request, context: grpc.ServicerContext) -> Iterator[Message]:
        reply = identity(request)
        if request.model_name == "sequence":
            key = request.parameters["sequence_id"].int64_param
            started = request.parameters["sequence_start"].bool_param
            self._counts[key] = 1 if started else self._counts.get(key, 0) + 1
            reply.parameters["number"].int64_param = self._counts[key]
            reply.parameters["triton_final_response"].bool_param = True
            yield Message(infer_response=reply)
            return
        count = request.parameters["count"].int64_param
        for number in range(count):
            if context.is_active():
                reply.parameters["number"].int64_param = number
                reply.parameters["triton_final_response"].bool_param = number == count - 1
                yield Message(infer_response=reply)


def swarm_models() -> list[pb.Model]:
    settings: dict[str, object] = {"merge": False, "backends": (0, 1), "direct_max": 16}
    decoupled = identity_model(1, "decoupled", **settings)  # type: ignore[arg-type]
    decoupled.decoupled = True
    settings["sequence_idle_ns"] = 60 * 10**9
    sequence = identity_model(2, "sequence", **settings)  # type: ignore[arg-type]
    sequence.sequence = True
    return [identity_model(0, backends=(0, 1)), decoupled, sequence]


class Talker:
    """One connection that holds random conversations and judges every message."""

    def __init__(self, address: str, number: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._address = address
        self._sequence_id = number + 1
        self._next_number = 0  # of the sequence's next request; 0: it must be started
        self.answered = 0
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        try:
            with connected(self._address) as stub:
                while time.monotonic() < until or wants_more(self.answered, until):
                    self._converse(stub)
        except Exception as error:
            self.wrong.append(repr(error))
            raise

    def _request(self, number: int) -> Request:
        kind = self._rng.choice(("plain", "plain", "decoupled", "sequence"))
        parameters: dict[str, object] = {}
        if kind == "decoupled":
            parameters["count"] = self._rng.randint(1, RESPONSES_MAX)
        elif kind == "sequence":
            start = self._next_number == 0
            self._next_number = 1 if start else self._next_number + 1
            end = self._rng.random() < 0.1
            parameters = {"sequence_id": self._sequence_id, "sequence_start": start}
            parameters |= {"sequence_end": end, "expected": self._next_number}
            if end:
                self._next_number = 0
        model = "identity" if kind == "plain" else kind
        return infer_request(
            rows(number), model=model, request_id=str(number), parameters=parameters
        )

    def _converse(self, stub: Stub) -> None:
        rng = self._rng
        requests = [self._request(number) for number in range(rng.randint(1, 30))]
        given_up = rng.random() < 0.15
        got: list[Message] = []
        status = grpc.StatusCode.OK
        stream = OpenStream(stub, timeout=rng.choice((0.03, 0.3, 20.0, 20.0, 20.0)))
        stream.send(*requests)
        stream.half_close()
        try:
            for message in stream.call:
                got.append(message)
                if given_up and len(got) >= len(requests) // 2:
                    stream.call.cancel()
                if rng.random() < 0.02:
                    threading.Event().wait(0.02)
        except grpc.RpcError as error:
            status = error.code()
            if status not in EXPLAINED:
                self.wrong.append(f"{status}: {error.details()}")
        self._judge(requests, got, ended=status == grpc.StatusCode.OK)

    def _judge(self, requests: list[Request], got: list[Message], *, ended: bool) -> None:
        in_order = [r.id for r in requests if r.model_name != "decoupled"]
        replied = [m.infer_response.id for m in got if m.infer_response.id in set(in_order)]
        if replied != (in_order if ended else in_order[: len(replied)]):
            self.wrong.append(f"order {replied} of {in_order}")
        of_request: dict[str, list[Message]] = {request.id: [] for request in requests}
        for message in got:
            of_request[message.infer_response.id].append(message)
        for request in requests:
            self._judge_replies(request, of_request[request.id], ended=ended)
        sequence = [of_request[r.id] for r in requests if r.model_name == "sequence"]
        if sequence and (not sequence[-1] or any(m.error_message for ms in sequence for m in ms)):
            self._next_number = 0

    def _judge_replies(self, request: Request, got: list[Message], *, ended: bool) -> None:
        if ended and not (got and (is_final(got[-1]) or got[-1].error_message)):
            self.wrong.append(f"{request.model_name} ends with {got[-1:]}")
        for place, message in enumerate(got):
            if message.error_message:
                if place != len(got) - 1:
                    self.wrong.append(f"replies after {message.error_message}")
                continue
            self.answered += 1
            if not np.array_equal(output(message.infer_response), rows(int(request.id))):
                self.wrong.append("another answer")
            self._judge_number(request, place, message.infer_response)

    def _judge_number(
        self, request: Request, place: int, reply: service_pb2.ModelInferResponse
    ) -> None:
        number = reply.parameters["number"].int64_param
        if request.model_name == "decoupled" and number != place:
            self.wrong.append(f"response {number} in place of {place}")
        expected = request.parameters["expected"].int64_param
        if request.model_name == "sequence" and number != expected:
            self.wrong.append(f"request {expected} of its sequence ran as number {number}")


@pytest.mark.timeout(180)
def test_a_swarm_of_streams_and_faults(plane: DataPlane, rng: random.Random) -> None:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeTriton()) for _ in range(2)]
        for fake in fakes:
            fake.stream_behaviour = SequenceKeeper()
        wires = [stack.enter_context(Proxy(fake.address)) for fake in fakes]
        assert plane.apply(swarm_models(), [wire.address for wire in wires]) == ""
        until = time.monotonic() + SWARM_S
        talkers = [Talker(plane.address, n, rng.randrange(2**31)) for n in range(CLIENTS)]
        threads = [threading.Thread(target=talker.run, args=(until,)) for talker in talkers]
        for thread in threads:
            thread.start()
        disturb(rng, plane, wires, until, swarm_models())
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.restore()
        wait_until(lambda: plane.snapshot().client_connections == 0, "all clients are gone")
        plane.assert_balanced()
    assert [text for talker in talkers for text in talker.wrong] == []
    assert min(talker.answered for talker in talkers) >= ANSWERS_MIN
