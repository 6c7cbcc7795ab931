"""Which hosts are this one, where a name server is slow to tell."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from scheduler.backends import local
from scheduler.control.device_memory import local_hosts
from scheduler.control.device_memory.local_hosts import AGAIN_S, LocalHosts
from tests.unit.control.residency.virtual_time import run_virtually

SLOW = [f"slow-{number}" for number in range(20)]


def test_names_that_are_slow_to_be_told_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    real = socket.getaddrinfo

    def answer(host: str, *rest: Any, **more: Any) -> Any:
        if not host.startswith("slow"):
            return real(host, *rest, **more)
        if more["flags"] == 0:
            told.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(local.socket, "getaddrinfo", answer)

    async def scenario() -> None:
        answers = asyncio.Event()
        hosts = LocalHosts(answers.set)
        hosts.look([*SLOW, "192.0.2.1", "localhost", "127.0.0.1"])
        try:
            while len(hosts.known) < 3:
                answers.clear()
                await asyncio.wait_for(answers.wait(), 30)
            assert hosts.known == {"192.0.2.1": False, "localhost": True, "127.0.0.1": True}
            hosts.look([*SLOW[1:], "localhost"])
            assert hosts.known == {"localhost": True}
        finally:
            told.set()
        while len(hosts.known) < len(SLOW):
            answers.clear()
            await asyncio.wait_for(answers.wait(), 30)
        assert hosts.known == {"localhost": True, **dict.fromkeys(SLOW[1:], False)}
        hosts.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", [None, RuntimeError("no thread is left")])
def test_a_name_that_is_not_known_yet_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    asked: list[str] = []

    async def told(host: str) -> bool | None:
        asked.append(host)
        if len(asked) > 2:
            return True
        if fault is not None:
            raise fault
        return None

    monkeypatch.setattr(local_hosts, "told_local", told)
    found: list[dict[str, bool]] = []

    async def scenario() -> None:
        hosts = LocalHosts(lambda: found.append(dict(hosts.known)))
        for _ in range(4):
            hosts.look(["late"])
            await asyncio.sleep(AGAIN_S)
        assert found == [{"late": False}, {"late": True}]
        assert asked == ["late"] * 3, "it is known"
        hosts.stop()

    run_virtually(scenario(), monkeypatch)
