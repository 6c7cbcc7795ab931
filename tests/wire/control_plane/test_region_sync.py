"""Regions of shared memory and backends that were out of reach, or schedulers that were."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.shared_regions import (
    RegisterRequest,
    UnregisterRequest,
    regions,
    told,
)
from tests.wire.control_plane.words import TIMEOUT_S, Cold, failure

pytestmark = pytest.mark.e2e

Pair = tuple[EmbeddedTriton, EmbeddedTriton]


@pytest.fixture
def cold(pair_control: ControlPlane) -> Cold:
    return Cold(pair_control.cold_channel)


def both_serve(apply: pb.Apply) -> bool:
    return serving(apply) == {0, 1}


def only_one_serves(apply: pb.Apply) -> bool:
    return serving(apply) == {0}


def none_serves(apply: pb.Apply) -> bool:
    return not serving(apply)


def serving(apply: pb.Apply) -> set[int]:
    return {b.index for b in apply.backends if b.state == pb.BACKEND_STATE_SERVING}


@contextlib.contextmanager
def out_of_reach(triton: EmbeddedTriton, data_plane: FakeDataPlane) -> Iterator[None]:
    """It is stopped and taken for down; afterwards it goes on with all that it had."""
    assert triton.pid is not None
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        data_plane.wait_apply(only_one_serves, "it is down")
        yield
    finally:
        os.kill(triton.pid, signal.SIGCONT)


def register(stub: Cold, name: str, key: str) -> None:
    request = RegisterRequest(name=name, key=key, byte_size=64)
    stub.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S, wait_for_ready=True)


def unregister(stub: Cold, name: str) -> None:
    request = UnregisterRequest(name=name)
    stub.SystemSharedMemoryUnregister(request, timeout=TIMEOUT_S, wait_for_ready=True)


def test_a_region_that_changed_meanwhile_is_changed_on_a_backend_that_comes_back(
    cold: Cold,
    memory: str,
    other: str,
    pair: list[Cold],
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
) -> None:
    register(cold, "r", memory)
    with out_of_reach(explicit_pair[1], data_plane):
        unregister(cold, "r")
        register(cold, "r", other)
        data_plane.applies.clear()
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0, 1]}, "both have it")
    assert [regions(stub) for stub in pair] == [{"r": (other, 0, 64)}] * 2
    assert regions(cold) == {"r": (other, 0, 64)}


def test_a_region_of_the_same_key_is_mapped_anew(
    cold: Cold, memory: str, pair: list[Cold], explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    """The memory behind a key may be another one; its size tells here which is mapped."""
    register(cold, "r", memory)
    with out_of_reach(explicit_pair[1], data_plane):
        unregister(cold, "r")
        Path(f"/dev/shm{memory}").unlink()
        Path(f"/dev/shm{memory}").write_bytes(bytes(64))
        register(cold, "r", memory)
    data_plane.wait_apply(lambda apply: told(apply) == {"r": [0, 1]}, "both have it")
    for triton in explicit_pair:
        assert inodes_mapped(triton, memory) == {Path(f"/dev/shm{memory}").stat().st_ino}


def inodes_mapped(triton: EmbeddedTriton, key: str) -> set[int]:
    lines = Path(f"/proc/{triton.pid}/maps").read_text().splitlines()
    return {int(line.split()[4]) for line in lines if f"/dev/shm{key}" in line}


def test_a_region_that_was_removed_meanwhile_is_removed_from_a_backend_that_comes_back(
    cold: Cold,
    memory: str,
    other: str,
    pair: list[Cold],
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
) -> None:
    """What others have put there straight stays."""
    register(cold, "r", memory)
    register(pair[1], "straight", other)
    with out_of_reach(explicit_pair[1], data_plane):
        unregister(cold, "r")
    wait_until(lambda: regions(pair[1]) == {"straight": (other, 0, 64)}, "it is removed")
    wait_until(lambda: regions(cold) == {"straight": (other, 0, 64)}, "nobody is shown it")


def test_a_new_control_plane_still_removes_a_region(
    pair_control: ControlPlane,
    cold: Cold,
    memory: str,
    pair: list[Cold],
    explicit_pair: Pair,
    data_plane: FakeDataPlane,
) -> None:
    register(cold, "r", memory)
    with out_of_reach(explicit_pair[1], data_plane):
        unregister(cold, "r")
        pair_control.kill()
        data_plane.applies.clear()
        pair_control.start()
        data_plane.wait_apply(only_one_serves, "it serves")
    wait_until(lambda: regions(pair[1]) == {}, "it is removed")
    wait_until(lambda: both_serve(data_plane.applies[-1]), "both serve")
    assert [told(apply) for apply in data_plane.applies if told(apply)] == []


def test_a_region_whose_memory_had_gone_can_be_registered_again(
    cold: Cold, memory: str, explicit_pair: Pair, data_plane: FakeDataPlane
) -> None:
    register(cold, "r", memory)
    for triton in explicit_pair:
        triton.kill()
    path = Path(f"/dev/shm{memory}")
    path.rename(path.with_suffix(".away"))
    data_plane.wait_apply(none_serves, "both are down")
    for triton in explicit_pair:
        triton.start_ready()
    data_plane.wait_apply(lambda a: both_serve(a) and not told(a), "none of them can have it")
    path.with_suffix(".away").rename(path)
    register(cold, "r", memory)
    assert told(data_plane.applies[-1]) == {"r": [0, 1]}
    request = RegisterRequest(name="r", key=memory, byte_size=64)
    code, _ = failure(lambda: cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.ALREADY_EXISTS


def test_a_region_that_its_backends_have_no_more_can_be_registered_again(
    cold: Cold, memory: str, pair: list[Cold], data_plane: FakeDataPlane
) -> None:
    """Somebody took it away there."""
    register(cold, "r", memory)
    for stub in pair:
        unregister(stub, "r")
    register(cold, "r", memory)
    assert [regions(stub) for stub in pair] == [{"r": (memory, 0, 64)}] * 2


@contextlib.contextmanager
def scheduler(
    explicit_pair: Pair, state_directory: Path | None = None
) -> Iterator[tuple[FakeDataPlane, Cold]]:
    """A new one; the first state that its data plane is told knows the regions."""
    settings = {"server.state_directory": str(state_directory)} if state_directory else {}
    addresses = [triton.grpc_address for triton in explicit_pair]
    with (
        FakeDataPlane() as data_plane,
        ControlPlane(data_plane, addresses, settings=settings) as control,
    ):
        data_plane.wait_apply(both_serve, "both serve")
        yield data_plane, Cold(control.cold_channel)


@pytest.mark.parametrize("kept", [False, True])
def test_a_new_scheduler_uses_the_regions_that_the_backends_have(
    kept: bool, tmp_path: Path, memory: str, other: str, pair: list[Cold], explicit_pair: Pair
) -> None:
    directory = tmp_path if kept else None
    with scheduler(explicit_pair, directory) as (_, cold):
        register(cold, "r", memory)
        register(pair[1], "straight", other)
    with scheduler(explicit_pair, directory) as (data_plane, cold):
        assert told(data_plane.applies[0]) == {"r": [0, 1], "straight": [1]}
        request = RegisterRequest(name="r", key=memory, byte_size=64)
        code, _ = failure(lambda: cold.SystemSharedMemoryRegister(request, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        unregister(cold, "r")
        assert told(data_plane.applies[-1]) == {"straight": [1]}
        assert [set(regions(stub)) for stub in pair] == [set(), {"straight"}]


def test_a_kept_region_is_told_to_backends_that_have_it_no_more(
    tmp_path: Path, memory: str, other: str, pair: list[Cold], explicit_pair: Pair
) -> None:
    with scheduler(explicit_pair, tmp_path) as (_, cold):
        register(cold, "r", memory)
    unregister(pair[0], "r")
    unregister(pair[1], "r")
    register(pair[1], "r", other)
    with scheduler(explicit_pair, tmp_path) as (data_plane, _):
        assert told(data_plane.applies[0]) == {"r": [0, 1]}
        assert [regions(stub) for stub in pair] == [{"r": (memory, 0, 64)}] * 2


def test_a_region_of_others_is_not_registered_elsewhere(
    memory: str, other: str, pair: list[Cold], explicit_pair: Pair
) -> None:
    """Where backends have different memory by one name, it is used where it was found first."""
    register(pair[0], "r", memory)
    register(pair[1], "r", other)
    with scheduler(explicit_pair) as (data_plane, _):
        assert told(data_plane.applies[0]) in ({"r": [0]}, {"r": [1]})
        assert [regions(stub)["r"][0] for stub in pair] == [memory, other]
