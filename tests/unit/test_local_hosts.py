"""Which hosts are this one, where a name server is slow to tell."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from scheduler.backends import local
from scheduler.control.device_memory.local_hosts import LocalHosts

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
