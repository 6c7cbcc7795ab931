"""One call to many backends, and what it comes to where some of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from scheduler.backends.pool import BackendPool
from scheduler.backends.probe import RpcError
from scheduler.backends.watch import BackendWatch
from scheduler.control.cold.errors import ColdError

READ_TIMEOUT_S = 2.0
UPDATE_TIMEOUT_S = 10.0
# Of a call that may have come too late or not at all: nothing was refused.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class Outcome:
    """What the backends answered, by address in the order of the configuration."""

    answers: dict[str, Any]
    failures: tuple[RpcError, ...]
    # Whether the pool has other backends, so that a text must say whose it is.
    named: bool

    def raise_failures(self) -> None:
        """Raises ColdError when any backend failed."""
        if self.failures:
            raise ColdError(self.failures[0].code, self.text())

    def raise_unless_answered(self) -> None:
        """Raises ColdError when every backend failed."""
        if not self.answers:
            self.raise_failures()

    def text(self) -> str:
        """Every failure with its backends; it begins with Triton's own words."""
        if not self.named:
            return self.failures[0].text
        by_text: dict[str, list[str]] = {}
        for failure in self.failures:
            by_text.setdefault(failure.text, []).append(failure.address)
        parts = [f"{text} ({_backends(addresses)})" for text, addresses in by_text.items()]
        if self.answers:
            parts.append(f"it succeeded on {_backends(self.answers)}")
        return "; ".join(parts)


def _backends(addresses: Iterable[str]) -> str:
    listed = list(addresses)
    return f"backend{'s' if len(listed) > 1 else ''} {', '.join(listed)}"


def reachable(pool: BackendPool) -> list[BackendWatch]:
    """The backends that take cold calls now. Raises ColdError where there is none."""
    found = [watch for watch in pool.watches.values() if watch.takes_calls]
    if not found:
        reasons = ", ".join(f"{w.address} ({w.reason})" for w in pool.watches.values())
        raise ColdError(grpc.StatusCode.UNAVAILABLE, f"no backend can be reached: {reasons}")
    return found


async def ask_all(
    pool: BackendPool,
    watches: Sequence[BackendWatch],
    method: str,
    request: Any,
    timeout_s: float = UPDATE_TIMEOUT_S,
) -> Outcome:
    """The same request to each of them, at once."""
    calls = (watch.calls.rpc(method, request, timeout_s) for watch in watches)
    results = await asyncio.gather(*calls, return_exceptions=True)
    answers: dict[str, Any] = {}
    failures: list[RpcError] = []
    for watch, result in zip(watches, results, strict=True):
        if isinstance(result, RpcError):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[watch.address] = result
    return Outcome(answers, tuple(failures), named=len(pool.watches) > 1)


async def ask_any(
    watches: Sequence[BackendWatch],
    method: str,
    request: Any,
    timeout_s: float = READ_TIMEOUT_S,
) -> Any:
    """The answer of the first that can be reached. Raises ColdError."""
    for position, watch in enumerate(watches, start=1):
        try:
            return await watch.calls.rpc(method, request, timeout_s)
        except RpcError as error:
            if error.code not in PASSING or position == len(watches):
                raise ColdError(error.code, error.text) from error
    raise ColdError(grpc.StatusCode.UNAVAILABLE, "no backend can be reached")
