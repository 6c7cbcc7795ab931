"""When a data plane that starts lets clients in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.dataplane.dialer import Dialer
from scheduler.dataplane.process import able_to_serve


class ColdProtocol(asyncio.Protocol):
    def retire(self) -> None:
        """Nothing is on its way."""


class AppliedGateway:
    """What was applied to it names no backend."""

    generation = 1

    def backends(self) -> list[tuple[object, ...]]:
        return []

    def cold_protocol(self, on_lost: Callable[[], None]) -> ColdProtocol:
        return ColdProtocol()


def test_clients_come_in_when_the_control_plane_is_connected(tmp_path: Path) -> None:
    async def starts() -> None:
        cold_socket = str(tmp_path / "cold")
        gateway, stopped = AppliedGateway(), asyncio.Event()
        dialer = Dialer(gateway, cold_socket)  # type: ignore[arg-type]
        able = asyncio.ensure_future(able_to_serve(gateway, dialer, stopped))  # type: ignore[arg-type]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(able), 0.1)
        server = await asyncio.start_unix_server(lambda reader, writer: None, cold_socket)
        await asyncio.wait_for(able, 10)
        assert dialer.cold_connected
        dialer.close()
        server.close()

    asyncio.run(starts())
