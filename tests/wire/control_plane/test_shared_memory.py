"""Shared memory over two Tritons of this host; the test plays the data plane."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.shared_regions import (
    PAGE_BYTES,
    REGION_BYTES,
    RegisterRequest,
    StatusRequest,
    UnregisterRequest,
    regions,
    shared_memory,
    told,
)
from tests.wire.control_plane.words import TIMEOUT_S, Cold, failure, outcome

pytestmark = pytest.mark.e2e

Pair = tuple[EmbeddedTriton, EmbeddedTriton]


@pytest.fixture
def cold(pair_control: ControlPlane) -> Cold:
    return Cold(pair_control.cold_channel)


def test_a_region_is_registered_everywhere_and_the_data_plane_knows(
    pair_control: ControlPlane,
    memory: str,
    other: str,
    pair: list[Cold],
    data_plane: FakeDataPlane,
) -> None:
    client = InferenceServerClient(f"unix:{pair_control.cold_path}")
    client.register_system_shared_memory("one", memory, 64)
    client.register_system_shared_memory("two", other, 128, offset=PAGE_BYTES)
    assert told(data_plane.applies[-1]) == {"one": [0, 1], "two": [0, 1]}
    wanted = {"one": (memory, 0, 64), "two": (other, PAGE_BYTES, 128)}
    assert [regions(stub) for stub in pair] == [wanted, wanted]
    status = client.get_system_shared_memory_status()
    assert set(status.regions) == {"one", "two"}
    assert set(client.get_system_shared_memory_status("two").regions) == {"two"}
    client.unregister_system_shared_memory("one")
    assert told(data_plane.applies[-1]) == {"two": [0, 1]}
    assert [set(regions(stub)) for stub in pair] == [{"two"}, {"two"}]
    client.unregister_system_shared_memory()
    assert told(data_plane.applies[-1]) == {}
    assert [regions(stub) for stub in pair] == [{}, {}]


def test_errors_are_tritons_and_leave_nothing_behind(
    cold: Cold, memory: str, pair: list[Cold], explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    one, two = (triton.grpc_address for triton in explicit_pair)
    both = f" (backends {one}, {two})"
    for request in (
        RegisterRequest(name="r", key="/no-such-key", byte_size=64),
        RegisterRequest(name="r", key=memory, byte_size=REGION_BYTES * 2),
    ):
        code, text = failure(lambda r=request: cold.SystemSharedMemoryRegister(r, timeout=30))
        theirs = failure(lambda r=request: pair[0].SystemSharedMemoryRegister(r, timeout=30))
        assert (code, text) == (theirs[0], theirs[1] + both)
    missing = StatusRequest(name="r")
    code, text = failure(lambda: cold.SystemSharedMemoryStatus(missing, timeout=30))
    theirs = failure(lambda: pair[0].SystemSharedMemoryStatus(missing, timeout=30))
    assert (code, text) == (theirs[0], theirs[1] + both)
    unknown = UnregisterRequest(name="r")
    assert outcome(cold, "SystemSharedMemoryUnregister", unknown) == outcome(
        pair[0], "SystemSharedMemoryUnregister", unknown
    )
    assert told(data_plane.applies[-1]) == {}


@pytest.mark.parametrize("slashes", ["/", "", "//"])
def test_the_memory_of_a_data_plane_is_no_clients(
    cold: Cold, pair: list[Cold], data_plane: FakeDataPlane, slashes: str
) -> None:
    """Neither by its key, which /dev/shm lists, nor under a name that is taken for its own."""
    with shared_memory("payload-0123") as key, shared_memory("other") as other:
        for request in (
            RegisterRequest(name="mine", key=slashes + key.lstrip("/"), byte_size=64),
            RegisterRequest(name="infersched-payload-mine", key=other, byte_size=64),
        ):
            code, text = failure(lambda r=request: cold.SystemSharedMemoryRegister(r, timeout=30))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "begin with 'infersched-payload-'" in text
    cuda = service_pb2.CudaSharedMemoryRegisterRequest(name="infersched-payload-cuda")
    code, _ = failure(lambda: cold.CudaSharedMemoryRegister(cuda, timeout=30))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [regions(stub) for stub in pair] == [{}, {}]
    assert told(data_plane.applies[-1]) == {}


def test_a_name_is_taken_once(cold: Cold, memory: str, pair: list[Cold]) -> None:
    request = RegisterRequest(name="r", key=memory, byte_size=64)
    cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S)
    ours = failure(lambda: cold.SystemSharedMemoryRegister(request, timeout=30))
    assert ours == failure(lambda: pair[0].SystemSharedMemoryRegister(request, timeout=30))


def test_a_registration_that_fails_on_one_is_taken_back_on_the_other(
    cold: Cold, memory: str, pair: list[Cold], explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    request = RegisterRequest(name="r", key=memory, byte_size=64)
    pair[1].SystemSharedMemoryRegister(request, timeout=TIMEOUT_S)
    code, text = failure(lambda: cold.SystemSharedMemoryRegister(request, timeout=30))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    two = explicit_pair[1].grpc_address
    assert text == f"shared memory region 'r' already in manager (backend {two})"
    assert regions(pair[0]) == {}
    assert told(data_plane.applies[-1]) == {}


def test_a_backend_that_comes_back_is_told_again(
    cold: Cold, memory: str, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    request = RegisterRequest(name="r", key=memory, byte_size=64)
    cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S)
    explicit_pair[1].kill()
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0]}, "requests go to the other")
    explicit_pair[1].start_ready()
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0, 1]}, "both have it again")
    with grpc.insecure_channel(explicit_pair[1].grpc_address) as channel:
        assert regions(Cold(channel)) == {"r": (memory, 0, 64)}


def test_a_new_control_plane_still_knows_the_regions(
    pair_control: ControlPlane,
    cold: Cold,
    memory: str,
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
) -> None:
    request = RegisterRequest(name="r", key=memory, byte_size=64)
    cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S)
    pair_control.kill()
    explicit_pair[1].kill()
    data_plane.applies.clear()
    pair_control.start()
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0]}, "the one that is there")
    explicit_pair[1].start_ready()
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0, 1]}, "both")
    cold.SystemSharedMemoryUnregister(
        UnregisterRequest(name="r"), timeout=TIMEOUT_S, wait_for_ready=True
    )
    assert told(data_plane.applies[-1]) == {}


def test_a_region_whose_memory_is_gone_is_not_waited_for(
    cold: Cold, memory: str, other: str, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    """The region behind it comes back all the same."""
    for name, key in (("gone", other), ("kept", memory)):
        request = RegisterRequest(name=name, key=key, byte_size=64)
        cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S)
    explicit_pair[1].kill()
    Path(f"/dev/shm{other}").unlink()
    data_plane.wait_apply(lambda apply: told(apply)["kept"] == [0], "one is down")
    explicit_pair[1].start_ready()
    data_plane.wait_apply(lambda a: told(a) == {"gone": [0], "kept": [0, 1]}, "what can be had")


def test_cuda_regions_are_asked_for_at_the_backends(cold: Cold, pair: list[Cold]) -> None:
    """Without a GPU Triton refuses them, in its own words."""
    request = service_pb2.CudaSharedMemoryRegisterRequest(
        name="c", raw_handle=bytes(64), device_id=0, byte_size=64
    )
    code, text = failure(lambda: cold.CudaSharedMemoryRegister(request, timeout=30))
    theirs = failure(lambda: pair[0].CudaSharedMemoryRegister(request, timeout=30))
    assert code is theirs[0]
    assert text.startswith(theirs[1])
    empty = service_pb2.CudaSharedMemoryStatusRequest()
    assert not cold.CudaSharedMemoryStatus(empty, timeout=TIMEOUT_S).regions
    everything = service_pb2.CudaSharedMemoryUnregisterRequest()
    cold.CudaSharedMemoryUnregister(everything, timeout=TIMEOUT_S)


def test_without_a_local_backend_a_registration_says_why_it_cannot_be(
    data_plane: FakeDataPlane,
) -> None:
    with ControlPlane(data_plane, ["192.0.2.1:8001"]) as control:
        stub = Cold(control.cold_channel)
        request = RegisterRequest(name="r", key="/key", byte_size=64)
        code, text = failure(
            lambda: stub.SystemSharedMemoryRegister(request, timeout=30, wait_for_ready=True)
        )
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "192.0.2.1:8001" in text
        # What cleans up before it begins finds nothing to clean.
        stub.SystemSharedMemoryUnregister(UnregisterRequest(), timeout=TIMEOUT_S)
        assert regions(stub) == {}
        code, _ = failure(lambda: regions(stub, "r"))
        assert code is grpc.StatusCode.NOT_FOUND


def test_a_local_backend_that_is_down_makes_it_unavailable(data_plane: FakeDataPlane) -> None:
    with ControlPlane(data_plane, ["127.0.0.1:1"]) as control:
        stub = Cold(control.cold_channel)
        request = RegisterRequest(name="r", key="/key", byte_size=64)
        wait_until(
            lambda: (
                isinstance(found := outcome(stub, "SystemSharedMemoryRegister", request), tuple)
                and "no backend on the scheduler's own host" in str(found[1])
            ),
            "it says so",
        )
