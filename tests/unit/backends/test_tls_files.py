"""Certificate files that change while they are used: the last good ones stay."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from scheduler.security.tls import ClientTls, LastGood, TlsError
from tests.certificates import Files

HALF = b"-----BEGIN CERTIFICATE-----\nMIIB"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "certificates")


@pytest.fixture
def tls(files: Files) -> ClientTls:
    return ClientTls(files.ca, files.client_certificate, files.client_key, "localhost")


def watched(tls: ClientTls) -> LastGood[tuple[bytes | None, ...]]:
    return LastGood(tls.files, tls.pem, "backend b:1")


@pytest.mark.parametrize("damage", ["vanished", "half-written", "empty", "another's key"])
def test_the_last_good_stay_until_there_are_others(
    files: Files, tls: ClientTls, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    credentials = watched(tls)
    good = credentials.get()
    if damage == "vanished":
        os.unlink(files.ca)
    elif damage == "another's key":
        files.client_key.write_bytes(files.server_key.read_bytes())
    else:
        files.ca.write_bytes(HALF if damage == "half-written" else b"")
    assert [credentials.get() for _ in range(3)] == [good] * 3
    (told,) = caplog.messages
    assert "the earlier ones stay: backend b:1" in told
    files.renew()
    renewed = credentials.get()
    assert renewed[0] == files.ca.read_bytes() != good[0]
    assert caplog.messages[1:] == ["certificates reloaded: backend b:1"]


def test_files_that_never_could_be_used_are_tried_each_time(files: Files, tls: ClientTls) -> None:
    files.ca.write_bytes(HALF)
    credentials = watched(tls)
    for _ in range(2):
        with pytest.raises(TlsError, match=str(files.ca)):
            credentials.get()
    files.renew()
    assert credentials.get()[0] == files.ca.read_bytes()


def test_what_is_read_while_it_is_written_is_not_used(
    files: Files, tls: ClientTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check sees the whole file, the reading a half of the next one."""
    check = ClientTls.context

    def overtaken(self: ClientTls) -> object:
        context = check(self)
        files.ca.write_bytes(HALF)
        return context

    monkeypatch.setattr(ClientTls, "context", overtaken)
    with pytest.raises(TlsError, match="being written"):
        tls.pem()
