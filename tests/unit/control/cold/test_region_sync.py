"""A backend that comes (back) is brought to what clients registered; a fake Triton has regions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from scheduler.backends import waiting
from scheduler.control.cold import region_sync
from scheduler.control.cold.fan_out import PASSING
from scheduler.control.cold.region_sync import RegionSync
from scheduler.control.cold.regions import Regions
from tests.unit.control.cold.region_world import ADDRESS, OTHER, World, cuda, system

RESTRICTED_TEXT = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(region_sync, "RETRY_PAUSE_S", 0.0)
    return World(tmp_path)


def test_a_cuda_region_of_a_backend_that_was_away_is_registered_anew(world: World) -> None:
    """Its Status does not tell which memory it is."""
    world.triton.regions["c"] = cuda("c", b"old")
    world.regions.add("Cuda", cuda("c", b"old"), [ADDRESS])
    world.regions.lost(ADDRESS)
    world.regions.remove(["c"])
    world.regions.add("Cuda", cuda("c", b"new"), [OTHER])
    world.come_back()
    assert world.triton.regions["c"].raw_handle == b"new"
    assert world.backends("c") == {OTHER, ADDRESS}


def test_a_cuda_region_in_use_stays_as_it_is_under_a_new_control_plane(world: World) -> None:
    world.triton.regions["c"] = cuda("c", b"same")
    world.regions.add("Cuda", cuda("c", b"same"), [ADDRESS])
    world.come_back()
    assert {method[-6:] for method in world.triton.called} == {"Status"}
    assert world.backends("c") == {ADDRESS}


def test_a_region_of_the_other_kind_makes_room(world: World) -> None:
    world.triton.regions["r"] = cuda("r", b"old")
    world.regions.add("System", system("r", "/new"), [OTHER])
    world.come_back()
    assert world.triton.regions == {"r": system("r", "/new")}
    assert world.backends("r") == {OTHER, ADDRESS}


@pytest.mark.parametrize("key", ["/old", "/new"], ids=["the key stays", "another key"])
def test_a_region_that_a_request_uses_is_replaced_when_it_is_let_go(world: World, key: str) -> None:
    world.regions.add("System", system("r", "/old"), [ADDRESS])
    world.triton.regions["r"] = system("r", "/old")
    world.triton.in_use["r"] = 3
    world.regions.lost(ADDRESS)
    world.regions.remove(["r"])
    world.regions.add("System", system("r", key), [OTHER])
    world.come_back()
    assert world.triton.in_use["r"] == 0
    assert world.triton.regions["r"] == system("r", key)
    assert "SystemSharedMemoryRegister" in world.triton.called
    assert world.backends("r") == {OTHER, ADDRESS}
    assert not world.regions.leftovers


def test_the_data_plane_leaves_a_region_before_it_is_replaced(world: World) -> None:
    """A backend that was said to have it has another by its name."""
    world.regions.add("System", system("r", "/mine"), [ADDRESS])
    world.triton.regions["r"] = system("r", "/other")
    world.come_back()
    assert world.told == [set()]
    assert world.triton.regions["r"] == system("r", "/mine")


def test_a_backend_that_does_not_answer_is_asked_again(world: World) -> None:
    world.regions.add("System", system("r", "/new"), [OTHER])
    world.triton.silent = {"SystemSharedMemoryStatus": 2}
    world.come_back()
    assert world.backends("r") == {OTHER, ADDRESS}


def test_one_that_is_set_up_not_to_tell_is_left_alone_where_nothing_is_due(world: World) -> None:
    world.triton.silent = {"SystemSharedMemoryStatus": 1}
    world.triton.silence = (grpc.StatusCode.UNAVAILABLE, RESTRICTED_TEXT)
    world.come_back()
    assert world.triton.called == ["SystemSharedMemoryStatus"]


@pytest.mark.parametrize("code", PASSING)
def test_one_that_was_slow_is_asked_for_what_others_put_there(
    world: World, code: grpc.StatusCode
) -> None:
    world.triton.regions["r"] = system("r", "/theirs")
    world.triton.silent = {"SystemSharedMemoryStatus": 1}
    world.triton.silence = (code, "no answer")
    world.come_back()
    assert world.backends("r") == {ADDRESS}


def test_one_whose_name_cannot_be_resolved_just_now_is_looked_at_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, None]

    async def told_local(_host: str) -> bool | None:
        return answers.pop()

    monkeypatch.setattr(region_sync, "told_local", told_local)
    world.regions.add("System", system("r", "/new"), [OTHER])
    world.come_back()
    assert not answers
    assert world.backends("r") == {OTHER, ADDRESS}


def test_a_backend_that_comes_back_is_not_kept_waiting_by_its_last_try(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another process, which has nothing."""
    pauses_s: list[float] = []
    monkeypatch.setattr(region_sync, "RETRY_PAUSE_S", 600.0)
    monkeypatch.setattr(region_sync, "RETRY_PAUSE_MAX_S", 3600.0)

    async def set_within(event: asyncio.Event, timeout_s: float) -> bool:
        pauses_s.append(timeout_s)
        if len(pauses_s) == 1:
            return False
        if len(pauses_s) == 2:
            sync.look_at(ADDRESS)
            return await waiting.set_within(event, timeout_s)
        world.triton.regions.clear()
        sync.look_at(ADDRESS)
        return await waiting.set_within(event, timeout_s)

    monkeypatch.setattr(region_sync, "set_within", set_within)
    world.regions.add("System", system("left", "/left"), [ADDRESS])
    world.regions.remove(["left"])
    world.triton.regions["left"] = system("left", "/left")
    world.triton.in_use["left"] = 1000
    world.regions.add("System", system("r", "/key"), [OTHER])
    sync = RegionSync(world.pool, world.regions, lambda: None, world.tell)

    async def look() -> None:
        sync.look_at(ADDRESS)
        await asyncio.gather(*sync._tasks.values())

    asyncio.run(asyncio.wait_for(look(), 60))
    assert pauses_s == [600.0, 1200.0, 600.0]
    assert world.backends("r") == {OTHER, ADDRESS}
    assert not world.regions.leftovers


def test_what_no_backend_has_and_none_can_get_is_forgotten(world: World) -> None:
    world.regions.add("System", system("r", "/gone"), [ADDRESS])
    world.regions.lost(ADDRESS)
    world.triton.gone.add("/gone")
    world.come_back()
    assert not world.regions.by_name


def test_a_found_region_follows_its_backend(world: World, tmp_path: Path) -> None:
    """It is others': neither enforced nor kept when it has gone there."""
    world.triton.regions["r"] = system("r", "/one")
    world.come_back()
    assert world.backends("r") == {ADDRESS}
    world.triton.regions["r"] = system("r", "/two")
    world.regions.lost(ADDRESS)
    world.come_back()
    assert world.triton.regions["r"] == system("r", "/two")
    assert world.regions.by_name["r"].request == system("r", "/two")
    assert Regions(tmp_path).by_name["r"].adopted
    world.triton.regions.clear()
    world.regions.lost(ADDRESS)
    world.come_back()
    assert not world.regions.by_name
    assert "SystemSharedMemoryRegister" not in world.triton.called


def test_regions_of_data_planes_are_not_found(world: World) -> None:
    world.triton.regions["infersched-payload-1"] = system("infersched-payload-1", "/any")
    world.triton.regions["theirs"] = system("theirs", "/infersched-payload-2")
    world.come_back()
    assert not world.regions.by_name


def test_a_region_that_one_refuses_to_let_go_stays_there_alone(world: World) -> None:
    world.regions.add("System", system("r", "/key"), [ADDRESS, OTHER])
    region = world.regions.by_name["r"]
    world.regions.remove(["r"])
    assert world.regions.leftovers == {ADDRESS: {"r"}, OTHER: {"r"}}
    world.regions.cleared("r", OTHER)
    world.regions.restore(region, {ADDRESS})
    assert (region.backends, region.unsure) == ({ADDRESS}, set())
    assert not world.regions.leftovers
    assert world.backends("r") == {ADDRESS}
