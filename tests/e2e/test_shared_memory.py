"""Inputs and outputs in shared memory, by tritonclient, through the whole of the scheduler."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def first_value(address: str, region: str) -> float:
    """Of a request's answer whose input is the region."""
    with InferenceServerClient(address) as client:
        request = InferInput("INPUT0", [ROWS, 16], "FP32")
        request.set_shared_memory(region, BYTES)
        answer = client.infer("identity", [request], client_timeout=30)
        return float(answer.as_numpy("OUTPUT0")[0, 0])


@pytest.fixture
def keys() -> Iterator[tuple[str, str]]:
    """Of two pieces of memory: the values of the first begin with 1, of the second with 2."""
    handles = []
    for number in (1, 2):
        key = f"/infersched-e2e-changing-{number}-{os.getpid()}"
        handles.append(shm.create_shared_memory_region("r", key, BYTES))
        shm.set_shared_memory_region(handles[-1], [rows(number, ROWS)])
    yield (
        f"/infersched-e2e-changing-1-{os.getpid()}",
        f"/infersched-e2e-changing-2-{os.getpid()}",
    )
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


def test_no_answer_comes_from_memory_that_a_client_took_away(
    served: ServedScheduler, tritons: Tritons, keys: tuple[str, str]
) -> None:
    """While a backend was out of reach; it goes on with what it had."""
    with InferenceServerClient(served.address) as client:
        client.register_system_shared_memory("r", keys[0], BYTES)
        assert first_value(served.address, "r") == 1
        assert tritons[1].pid is not None
        os.kill(tritons[1].pid, signal.SIGSTOP)
        try:
            wait_until(lambda: not is_in_rotation(served, tritons[1]), "it is missed")
            client.unregister_system_shared_memory("r")
            client.register_system_shared_memory("r", keys[1], BYTES)
        finally:
            os.kill(tritons[1].pid, signal.SIGCONT)
        wait_until(lambda: is_in_rotation(served, tritons[1]), "it is back")
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(first_value, served.address, "r") for _ in range(100)]
            assert {one.result() for one in asked} == {2}
        # It serves the region alone, too.
        with InferenceServerClient(tritons[1].grpc_address) as direct:
            wait_until(
                lambda: direct.get_system_shared_memory_status().regions["r"].key == keys[1],
                "it has the new memory",
            )
        tritons[0].kill()
        wait_until(lambda: not is_in_rotation(served, tritons[0]), "the other has gone")
        assert first_value(served.address, "r") == 2
        client.unregister_system_shared_memory()


@pytest.mark.parametrize("kept", [False, True])
def test_a_new_scheduler_serves_the_regions_of_the_last(
    tritons: Tritons, keys: tuple[str, str], tmp_path: Path, kept: bool
) -> None:
    config = tmp_path / "config.yaml"
    state = f"server: {{state_directory: {tmp_path / 'state'}}}\n" if kept else ""
    config.write_text(f"backends: [{tritons[1].grpc_address}]\n{state}")
    with (
        ServedScheduler(["--config", str(config)]) as scheduler,
        InferenceServerClient(scheduler.address) as client,
    ):
        client.register_system_shared_memory("r", keys[0], BYTES)
    with (
        ServedScheduler(["--config", str(config)]) as scheduler,
        InferenceServerClient(scheduler.address) as client,
    ):
        assert first_value(scheduler.address, "r") == 1
        client.unregister_system_shared_memory("r")
        with pytest.raises(InferenceServerException):
            first_value(scheduler.address, "r")


def is_in_rotation(served: ServedScheduler, triton: EmbeddedTriton) -> bool:
    with grpc.insecure_channel(served.control_address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        answer = stub.ListBackends(control_pb2.ListBackendsRequest(), timeout=30)
    states = {backend.address: backend.state for backend in answer.backends}
    return bool(states[triton.grpc_address] == dataplane_pb2.BACKEND_STATE_SERVING)
