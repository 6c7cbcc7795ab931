"""Names of request headers, as a configuration lists them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def listed(value: object) -> object:
    """A comma list (as flags and the environment write it) or one item, as a list."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


_NAME = re.compile(r"[0-9a-z_.-]+")


def _possible(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can be no name of a request header; those have a-z, 0-9, '-', '_' and '.'"
        )
    return name


def _of_the_transport(name: str) -> bool:
    return name.startswith(("grpc-", ":")) or name in ("te", "content-type", "user-agent")


def _header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    lowered = tuple(_possible(name.lower()) for name in names)
    for name in lowered:
        if _of_the_transport(name):
            raise ValueError(f"{name} belongs to the transport and is not forwarded")
    return lowered


def _forwarded(entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_beginning(entry) if "*" in entry else _forwardable(entry) for entry in entries)


def _beginning(entry: str) -> str:
    beginning = entry.lower()[:-1]
    if not entry.endswith("*") or "*" in beginning or beginning.endswith("."):
        raise ValueError(
            f"{entry!r}: write the beginning of the names and one '*' behind it (x-*), no other "
            "pattern"
        )
    if beginning:
        _header_names((beginning,))
    return entry.lower()


def _forwardable(name: str) -> str:
    (lowered,) = _header_names((name,))
    if lowered == "triton_grpc_error":
        raise ValueError(
            "triton_grpc_error acts here, on the client's own stream, and is not forwarded: a "
            "Triton may die of it; leave it out"
        )
    return lowered


def _tenant_header(name: str) -> str:
    lowered = name.strip().lower()
    if not lowered:
        raise ValueError("the name of a request header is empty; leave the key out for none")
    _possible(lowered)
    if lowered.endswith("-bin"):
        raise ValueError(f"{lowered} is binary; name a header of text")
    if _of_the_transport(lowered):
        raise ValueError(f"{lowered} belongs to the transport and names no tenant")
    return lowered


TenantHeader = Annotated[str, AfterValidator(_tenant_header)]
HeaderNames = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_header_names)]
ForwardedNames = Annotated[
    tuple[str, ...],
    BeforeValidator(listed),
    AfterValidator(_forwarded),
    Field(
        description="names of request headers that reach Triton, or beginnings of names and a '*': "
        "of x-* all that begin with x-, of * all"
    ),
]
