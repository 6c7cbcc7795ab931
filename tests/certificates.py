"""Certificate files for tests, made fresh by authorities of their own."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import trustme


class Files:
    """A directory with `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.pem"
        self.server_certificate = directory / "server.pem"
        self.server_key = directory / "server.key"
        self.client_certificate = directory / "client.pem"
        self.client_key = directory / "client.key"
        self.renew()

    def renew(self, *names: str) -> None:
        """Everything anew, by a new authority; each file is replaced as a whole."""
        authority = trustme.CA()
        server = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
        client = authority.issue_cert("client@tests.example")
        chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
        _replace(self.ca, authority.cert_pem.bytes())
        _replace(self.server_key, server.private_key_pem.bytes())
        _replace(self.server_certificate, chain)
        _replace(self.client_key, client.private_key_pem.bytes())
        client_chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        _replace(self.client_certificate, client_chain)

    def channel_credentials(self, *, with_client: bool = False) -> grpc.ChannelCredentials:
        """Trusts the authority as it is in the file now."""
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            self.client_key.read_bytes() if with_client else None,
            self.client_certificate.read_bytes() if with_client else None,
        )


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
