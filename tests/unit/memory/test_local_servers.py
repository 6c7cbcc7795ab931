"""Which processes of this host belong to servers that listen on given ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.backends import local
from scheduler.backends.local import LocalServers

# Listens, starts a child, and says its port and the child's number.
SERVER = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen(["sleep", "600"])
print(server.getsockname()[1], child.pid, flush=True)
sys.stdin.read()
child.kill()
"""


@pytest.fixture
def server() -> Iterator[tuple[int, int, int]]:
    """(port, number of the server, number of its child)."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port, child = map(int, process.stdout.readline().split())
        yield port, process.pid, child


def test_a_server_and_its_children_are_its_own(server: tuple[int, int, int]) -> None:
    port, pid, child = server
    servers = LocalServers()
    servers.ports = frozenset({port})
    assert servers.owns(pid)
    assert servers.owns(child)
    assert not servers.owns(os.getpid())  # the server's parent
    assert not servers.owns(1)
    servers.ports = frozenset()
    assert not servers.owns(pid)


def test_a_server_that_listens_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = LocalServers()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        servers.ports = frozenset({found.getsockname()[1]})
        assert not servers.owns(os.getpid())
        found.listen()
        monkeypatch.setattr(local, "LOOK_AGAIN_S", 0.0)
        assert servers.owns(os.getpid())


def test_what_cannot_be_seen_is_nobodys(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path)
    servers.ports = frozenset({80})
    assert not servers.owns(5)
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "stat").write_text("5 (a (b) S 1")
    assert not servers.owns(5)
