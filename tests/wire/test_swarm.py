"""Everything at once, from a seed: random models, requests, cancels, deadlines and dying backends.

What must hold whatever happens: an answer that comes is the right one, a refusal has a status that
the situation explains, and at the end nothing is left and the ledger balances.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton, Request, Response, identity, values_of
from tests.wire.proxy import Proxy
from tests.wire.raw_client import RawClient, grpc_message

SWARM_S = float(os.environ.get("INFERSCHED_SWARM_S", "4"))
POISON = -1000.0
CLIENTS = 6
ANSWERS_MIN, SLOW_S = 10, 60.0
EXPLAINED = {
    grpc.StatusCode.DEADLINE_EXCEEDED,  # short deadlines are given
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # queues are short
    grpc.StatusCode.CANCELLED,  # by us
    grpc.StatusCode.UNAVAILABLE,  # lost work of a model that is not idempotent, all backends away
}


def wants_more(answered: int, until: float) -> bool:
    """On a slow machine each client goes on until it has had some good answers."""
    return answered < ANSWERS_MIN and time.monotonic() < until + SLOW_S


def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
    """An identity that takes a moment and fails whole batches with a poisoned row."""
    threading.Event().wait(0.001 + 0.00005 * len(values_of(request)))
    if (values_of(request)[:, 0] == POISON).any():
        context.abort(grpc.StatusCode.INTERNAL, "poisoned")
    return identity(request)


def random_model(rng: random.Random, index: int) -> pb.Model:
    """A random subset of the features of batching."""
    batching: dict[str, object] = {
        "staged_batches_max": rng.choice((0, 1, 4)),
        "queue_requests_max": rng.choice((20, 1000)),
        "idempotent": rng.random() < 0.7,
        "cancellable": rng.random() < 0.3,
        "priority_levels": rng.choice((1, 3)),
        "default_priority": 1,
    }
    if rng.random() < 0.3:
        batching["queue_delay_max_ns"] = 2_000_000
    if rng.random() < 0.3:
        batching["mandatory_rows"] = [4, 16]
    elif rng.random() < 0.3:
        batching["preferred_rows"] = [8]
    if rng.random() < 0.2:
        batching["slo_ns"] = 300_000_000
    if rng.random() < 0.2:
        batching["queue_age_max_ns"] = 100_000_000
    name = f"model{index}"
    return identity_model(index, name, dims=(-1,), max_batch_size=16, backends=(0, 1), **batching)


class Client:
    """One connection that sends random requests and judges every answer."""

    def __init__(self, address: str, models: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._address = address
        self._models = models
        self.answered = 0
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        try:
            with connected(self._address) as stub:
                while time.monotonic() < until or wants_more(self.answered, until):
                    calls = [self._send(stub) for _ in range(self._rng.randint(1, 20))]
                    for poisoned, value, call in calls:
                        self._judge(poisoned, value, call)
        except Exception as error:
            self.wrong.append(repr(error))
            raise

    def _send(self, stub: Stub) -> tuple[bool, np.ndarray, grpc.Future]:  # type: ignore[type-arg]
        rng = self._rng
        value = rows(rng.randrange(10_000), rng.choice((1, 1, 1, 2, 5, 40)), rng.choice((3, 16)))
        poisoned = rng.random() < 0.02
        if poisoned:
            value[-1, 0] = POISON
        parameters = {"priority": rng.randrange(4)} if rng.random() < 0.3 else {}
        request = infer_request(
            value, model=f"model{rng.randrange(self._models)}", parameters=parameters
        )
        timeout_s = rng.choice((0.005, 0.05, 20, 20, 20, 20))
        call = stub.ModelInfer.future(request, timeout=timeout_s)
        if rng.random() < 0.1:
            call.cancel()
        return poisoned, value, call

    def _judge(self, poisoned: bool, value: np.ndarray, call: grpc.Future) -> None:  # type: ignore[type-arg]
        try:
            error = call.exception(timeout=30)
        except grpc.FutureCancelledError:
            return
        if error is None:
            if poisoned or not np.array_equal(output(call.result()), value):
                self.wrong.append(f"another answer than {value[0, 0]}")
            self.answered += 1
        elif error.code() == grpc.StatusCode.INTERNAL and "poisoned" in error.details():
            pass  # its own fault, a neighbour's where nothing may run twice or bisecting was dear
        elif error.code() not in EXPLAINED:
            self.wrong.append(f"{error.code()}: {error.details()}")


def disturb(
    rng: random.Random,
    plane: DataPlane,
    wires: list[Proxy],
    until: float,
    models: Sequence[pb.Model],
) -> None:
    """Backends that die or fall silent, clients that vanish, models[0] that is evicted and loaded.

    At the end all models are loaded.
    """
    pause = threading.Event()
    while time.monotonic() < until:
        pause.wait(rng.random() * 0.2)
        what = rng.randrange(5)
        if what == 4:
            evict_or_load(rng, plane, wires, models)
        elif what == 0:
            wire = rng.choice(wires)
            wire.cut()
            pause.wait(rng.random() * 0.3)
            wire.restore()
        elif what == 1:
            wire = rng.choice(wires)
            wire.stall()
            pause.wait(rng.random() * 0.3)
            wire.restore()
        else:
            request = infer_request(rows(1), model=models[0].name)
            message = grpc_message(request.SerializeToString())
            with RawClient(plane.address) as client:
                stream = client.request_headers()
                client.send_data(stream, message[: rng.randrange(len(message))])
                if what == 3:
                    client.vanish()
    lazy = [pb.LoadableModel(name=models[0].name)]
    addresses = [wire.address for wire in wires]
    assert plane.apply(models, addresses, loadable=lazy, connected=False) == ""


def evict_or_load(
    rng: random.Random, plane: DataPlane, wires: list[Proxy], models: Sequence[pb.Model]
) -> None:
    """models[0] is loaded, on its way out or gone, and then to be loaded or not loadable now."""
    first = pb.Model()
    first.CopyFrom(models[0])
    first.batching.refusing = rng.random() < 0.3
    known = [first] if rng.random() < 0.7 else []
    lazy = pb.LoadableModel(name=first.name, error=rng.choice(("", "", "no such file")))
    lazy.load_ns = rng.choice((0, 100_000_000))
    addresses = [wire.address for wire in wires]
    applied = plane.apply([*known, *models[1:]], addresses, loadable=[lazy], connected=False)
    assert applied == ""


@pytest.mark.timeout(180)
def test_a_swarm_of_clients_and_faults(plane: DataPlane, rng: random.Random) -> None:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeTriton(behaviour)) for _ in range(2)]
        wires = [stack.enter_context(Proxy(fake.address)) for fake in fakes]
        models = [random_model(rng, index) for index in range(3)]
        assert plane.apply(models, [wire.address for wire in wires]) == ""
        until = time.monotonic() + SWARM_S
        clients = [Client(plane.address, len(models), rng.randrange(2**31)) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=client.run, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        disturb(rng, plane, wires, until, models)
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.restore()
        wait_until(lambda: plane.snapshot().client_connections == 0, "all clients are gone")
        plane.assert_balanced()
    wrong = [text for client in clients for text in client.wrong]
    assert wrong == [], str(models)
    assert min(client.answered for client in clients) >= ANSWERS_MIN
