"""TLS contexts from PEM files, read again when the files change.

Nothing watches the files: whoever needs a context asks for it, and the files' stamps are compared
then, so an idle process stays idle.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

MIN_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# What gRPC speaks over TLS.
_PROTOCOLS = ["h2"]

Stamp = tuple[tuple[int, int, int] | None, ...]


class TlsError(Exception):
    """Certificate files cannot be used; the text names the file and what is wrong."""


@dataclass(frozen=True)
class ServerTls:
    """What clients see. With `client_ca` only clients with a certificate of it are let in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    min_version: str = "1.2"

    @property
    def files(self) -> tuple[Path, ...]:
        optional = (self.client_ca,) if self.client_ca is not None else ()
        return (self.certificate, self.key, *optional)

    def context(self) -> ssl.SSLContext:
        """A fresh context. Raises TlsError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = MIN_VERSIONS[self.min_version]
        context.set_alpn_protocols(_PROTOCOLS)
        _load_pair(context, self.certificate, self.key)
        if self.client_ca is not None:
            _load_ca(context, self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True)
class ClientTls:
    """How a server is trusted. `ca` None trusts the system's authorities."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)

    def context(self) -> ssl.SSLContext:
        """A fresh context. Raises TlsError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = MIN_VERSIONS["1.2"]
        context.set_alpn_protocols(_PROTOCOLS)
        if self.ca is not None:
            _load_ca(context, self.ca)
        else:
            context.load_default_certs()
        if self.certificate is not None and self.key is not None:
            _load_pair(context, self.certificate, self.key)
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """What is in the files: authorities, key and certificate. Raises TlsError.

        It is good as a whole, and of one moment.
        """
        before = stamp(self.files)
        self.context()
        ca, key, certificate = (_content(path) for path in (self.ca, self.key, self.certificate))
        if stamp(self.files) != before:
            raise TlsError("the files are being written")
        return ca, key, certificate


class LastGood(Generic[T]):
    """What `make` makes of the files as they are now; of the last good ones while it cannot."""

    def __init__(self, files: tuple[Path, ...], make: Callable[[], T], whose: str) -> None:
        """`make` raises TlsError; `whose` certificates they are is told."""
        self._files = files
        self._make = make
        self._whose = whose
        self._stamp: Stamp | None = None
        self._good: T | None = None

    def get(self) -> T:
        """Raises TlsError only while the files could never be used.

        Files that are being replaced may be missing, cut short, or not fit together for a moment.
        """
        now = stamp(self._files)
        if self._good is not None and now == self._stamp:
            return self._good
        try:
            made = self._make()
        except TlsError as error:
            if self._good is None:
                raise
            logger.error(
                "certificates not reloaded, the earlier ones stay: %s: %s", self._whose, error
            )
            made = self._good
        else:
            if self._good is not None:
                logger.info("certificates reloaded: %s", self._whose)
        self._stamp, self._good = now, made
        return made


def reloading_server_context(tls: ServerTls) -> ssl.SSLContext:
    """A context for a listener: every handshake is made with the files as they are then.

    Raises TlsError.
    """
    fresh = LastGood(tls.files, tls.context, "the listener")
    listener = fresh.get()

    def choose(connection: ssl.SSLObject, name: str | None, given: ssl.SSLContext) -> None:
        current = fresh.get()
        if current is not given:
            connection.context = current

    # Called for every ClientHello, whether it names a server or not.
    listener.sni_callback = choose
    return listener


def stamp(files: tuple[Path, ...]) -> Stamp:
    """Changes when a file is written or replaced, or a link to it is turned."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(stamps)


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for path in (certificate, key):
        _check_readable(path)
    try:
        # An encrypted key must not make a server ask on its terminal.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise TlsError(f"certificate {certificate} with key {key}: {_reason(error)}") from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    _check_readable(ca)
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise TlsError(f"authority {ca}: {_reason(error)}") from error


def _check_readable(path: Path) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from error


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).replace("_", " ").lower() if reason else str(error)
