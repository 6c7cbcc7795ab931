"""Network addresses as users write them: `127.0.0.1:8001`, `[::1]:8001`, `triton-3:8001`."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """A host (empty = every interface) and a TCP port (0 = any free one, for listeners)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Raises ValueError that says what an address looks like."""
    if isinstance(value, Address):
        return value
    text = str(value).strip()
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit():
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"write an IPv6 address in brackets: [{host}]:{port_text}")
    if "/" in host or any(c.isspace() for c in host):
        raise ValueError(f"expected HOST:PORT without a scheme, got {text!r}")
    port = int(port_text)
    if port > 65535:
        raise ValueError(f"port {port} is above 65535")
    return Address(host, port)
