"""The TLS sections: of the client listeners and of a backend. Files are PEM, given by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from scheduler.config.section import Section
from scheduler.security.tls import ClientTls, ServerTls, TlsError


class ListenerTls(Section):
    """TLS from clients; on when a certificate is given."""

    certificate: Path | None = Field(
        default=None, description="the server's chain; none serves without encryption"
    )
    key: Path | None = Field(default=None, description="its private key, without a password")
    client_ca: Path | None = Field(
        default=None, description="let in only clients with a certificate of these authorities"
    )
    min_version: Literal["1.2", "1.3"] = "1.2"

    @model_validator(mode="after")
    def _usable(self) -> ListenerTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; give both")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key of the server as well")
        files = self.files
        if files is not None:
            _check(files)
        return self

    @property
    def files(self) -> ServerTls | None:
        """None: no encryption."""
        if self.certificate is None or self.key is None:
            return None
        return ServerTls(self.certificate, self.key, self.client_ca, self.min_version)


class BackendTls(Section):
    """TLS to a Triton."""

    ca: Path | None = Field(default=None, description="authorities; none takes the system's")
    certificate: Path | None = Field(default=None, description="ours, where Triton asks for one")
    key: Path | None = Field(default=None, description="its private key")
    server_name: str = Field(
        default="", description="name in Triton's certificate, where it is not the address's host"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: Any) -> Any:
        return {} if value is True else value

    @model_validator(mode="after")
    def _usable(self) -> BackendTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; give both")
        _check(self.files)
        return self

    @property
    def files(self) -> ClientTls:
        return ClientTls(self.ca, self.certificate, self.key, self.server_name)


def _check(tls: ServerTls | ClientTls) -> None:
    """A file that cannot be used is told when the configuration is read, not at a handshake."""
    try:
        tls.context()
    except TlsError as error:
        raise ValueError(str(error)) from error
