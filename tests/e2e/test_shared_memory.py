"""Inputs and outputs in shared memory, by tritonclient, through the whole of the scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import control_pb2, control_pb2_grpc, dataplane_pb2
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import rows

Tritons = tuple[EmbeddedTriton, EmbeddedTriton]
ROWS = 4
BYTES = ROWS * 16 * 4


@pytest.fixture
def served(tritons: Tritons) -> Iterator[ServedScheduler]:
    arguments = [text for one in tritons for text in ("--backend", one.grpc_address)]
    with ServedScheduler(arguments) as scheduler:
        yield scheduler


class Regions:
    """Memory for the input and the output of one request, registered under `in` and `out`."""

    def __init__(self, client: InferenceServerClient) -> None:
        self.client = client
        self.handles = {}
        for name in ("in", "out"):
            key = f"/infersched-e2e-{name}-{os.getpid()}"
            self.handles[name] = shm.create_shared_memory_region(name, key, BYTES)
            client.register_system_shared_memory(name, key, BYTES)

    def infer(self, client: InferenceServerClient, first: float) -> None:
        """Asks for the identity and checks what the server wrote."""
        values = rows(first, ROWS)
        shm.set_shared_memory_region(self.handles["in"], [values])
        shm.set_shared_memory_region(self.handles["out"], [np.zeros_like(values)])
        request = InferInput("INPUT0", [ROWS, 16], "FP32")
        request.set_shared_memory("in", BYTES)
        wanted = InferRequestedOutput("OUTPUT0")
        wanted.set_shared_memory("out", BYTES)
        answer = client.infer("identity", [request], outputs=[wanted], client_timeout=30)
        assert list(answer.get_response().raw_output_contents) == [b""]
        written = shm.get_contents_as_numpy(self.handles["out"], np.float32, [ROWS, 16])
        np.testing.assert_array_equal(written, values)

    def destroy(self) -> None:
        for handle in self.handles.values():
            shm.destroy_shared_memory_region(handle)


def failure_of(regions: Regions, client: InferenceServerClient) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as raised:
        regions.infer(client, 1)
    return raised.value.status(), raised.value.message()


def test_requests_in_shared_memory(served: ServedScheduler, tritons: Tritons) -> None:
    with InferenceServerClient(served.address) as client:
        regions = Regions(client)
        try:
            for number in range(20):
                regions.infer(client, number)
            # One that comes back has them again, and serves when the other has gone.
            tritons[1].kill()
            wait_until(lambda: not is_in_rotation(served, tritons[1]), "its death is seen")
            regions.infer(client, 30)
            tritons[1].start_ready()
            with InferenceServerClient(tritons[1].grpc_address) as direct:
                wait_until(
                    lambda: set(direct.get_system_shared_memory_status().regions) >= {"in", "out"},
                    "it has the regions again",
                )
            wait_until(lambda: is_in_rotation(served, tritons[1]), "it is back")
            tritons[0].kill()
            wait_until(lambda: not is_in_rotation(served, tritons[0]), "the other has gone")
            regions.infer(client, 40)
            # The scheduler's own region is nobody else's business.
            assert set(client.get_system_shared_memory_status().regions) == {"in", "out"}
            client.unregister_system_shared_memory()
            assert not client.get_system_shared_memory_status().regions
            with InferenceServerClient(tritons[1].grpc_address) as direct:
                assert failure_of(regions, client) == failure_of(regions, direct)
        finally:
            regions.destroy()


def is_in_rotation(served: ServedScheduler, triton: EmbeddedTriton) -> bool:
    with grpc.insecure_channel(served.control_address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        answer = stub.ListBackends(control_pb2.ListBackendsRequest(), timeout=30)
    states = {backend.address: backend.state for backend in answer.backends}
    return bool(states[triton.grpc_address] == dataplane_pb2.BACKEND_STATE_SERVING)
