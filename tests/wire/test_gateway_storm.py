"""Everything at once: backends that die, stall and move, changing catalogs, clients that vanish."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import grpc
import numpy as np

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.proxy import Proxy
from tests.wire.raw_client import RawClient

STORM_S = 6.0
ALLOWED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,  # the model is removed just then
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # foreseen to be late
    grpc.StatusCode.INVALID_ARGUMENT,  # it had other rows just then
}


class Storm:
    """One step of chaos after the other; the calls it made."""

    def __init__(self, plane: DataPlane, wires: list[Proxy], seed: int) -> None:
        self.plane = plane
        self.wires = wires
        self.random = random.Random(seed)
        self.calls: list[tuple[np.ndarray, grpc.Future]] = []

    def apply(self) -> None:
        """Any backends in any state, with or without the second model, of any batching.

        Models that are not there may be loadable.
        """
        choose = self.random
        backends = [
            pb.Backend(
                index=index,
                address=wire.address,
                connections=choose.randint(1, 3),
                state=choose.choice([1, 1, 1, 2, 3]),
            )
            for index, wire in enumerate(self.wires)
            if choose.random() < 0.8
        ]
        placed = [backend.index for backend in backends]
        models = [self.model(0, choose.choice(["identity", "other"]), placed)]
        if choose.random() < 0.6:
            models.append(self.model(1, "second", placed))
        loadable = [
            pb.LoadableModel(name=name, error=choose.choice(["", "", "broken"]))
            for name in ("identity", "other", "second")
            if choose.random() < 0.6
        ]
        assert self.plane.apply(models, backends, loadable=loadable, connected=False) == ""

    def model(self, index: int, name: str, placed: list[int]) -> pb.Model:
        choose = self.random
        return identity_model(
            index,
            name,
            dims=(-1,),
            backends=placed,
            max_batch_size=choose.choice([4, 16, 64]),
            merge=choose.random() < 0.8,
            cancellable=choose.random() < 0.5,
            idempotent=choose.random() < 0.8,
            staged_batches_max=choose.randint(0, 2),
            refusing=choose.random() < 0.2,
        )

    def disturb(self) -> None:
        wire = self.random.choice(self.wires)
        self.random.choice([wire.cut, wire.stall, wire.restore, wire.restore])()

    def submit(self, stub: object) -> None:
        choose = self.random
        values = rows(len(self.calls), choose.randint(1, 12), choose.choice([1, 16, 5000]))
        name = choose.choice(["identity", "other", "second"])
        timeout_s = choose.choice([0.02, 0.3, 20])
        call = stub.ModelInfer.future(  # type: ignore[attr-defined]
            infer_request(values, model=name), timeout=timeout_s
        )
        self.calls.append((values, call))

    def cancel(self) -> None:
        for _, call in self.calls[-5:]:
            if self.random.random() < 0.5:
                call.cancel()

    def vanish(self) -> None:
        """A client that leaves in the middle of its calls."""
        with suppress(OSError):
            client = RawClient(self.plane.address)
            for _ in range(self.random.randint(1, 20)):
                client.infer(infer_request(rows(1, 3, 5000)))
            client.vanish()


def test_every_call_is_answered_in_a_storm(plane: DataPlane, seed: int) -> None:
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeTriton()) for _ in range(3)]
        wires = [stack.enter_context(Proxy(fake.address)) for fake in fakes]
        stub = stack.enter_context(connected(plane.address))
        storm = Storm(plane, wires, seed)
        steps: list[Callable[[], None]] = [storm.apply, storm.disturb, storm.cancel, storm.vanish]
        ends = time.monotonic() + STORM_S
        storm.apply()
        while time.monotonic() < ends:
            for _ in range(storm.random.randint(1, 30)):
                storm.submit(stub)
            storm.random.choice(steps)()
        for wire in wires:
            wire.restore()
        model = identity_model(dims=(-1,), backends=(0, 1, 2))
        assert plane.apply([model], [wire.address for wire in wires]) == ""
        answered = 0
        for values, call in storm.calls:
            with suppress(grpc.FutureCancelledError):
                error = call.exception(timeout=30)
                if error is None:
                    np.testing.assert_array_equal(output(call.result()), values)
                    answered += 1
                else:
                    assert error.code() in ALLOWED, (seed, error)
        assert answered > 0, seed
        response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(1))
        wait_until(lambda: plane.snapshot().client_connections == 1, f"the others left: {seed}")
