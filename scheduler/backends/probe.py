"""Calls to one Triton through tritonclient, with the failures a pool must tell apart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from scheduler.backends.cpu_wait import CpuWait
from scheduler.security.tls import ClientTls, LastGood, TlsError
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

INT32_MAX = 2**31 - 1
CATALOG_TIMEOUT_S = 2.0
# A probe that came back this much after its own timeout says more about our loop than about Triton.
LATE_LOOP_S = 0.1
# Nor does one during which a thread of ours waited this part of the time-out for a processor.
STARVED_PART = 0.2

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", INT32_MAX),
    ("grpc.max_receive_message_length", INT32_MAX),
    ("grpc.use_local_subchannel_pool", 1),
    # A backend that comes back is to be noticed within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.enable_http_proxy", 0),
]
_LOST = grpc.StatusCode.UNAVAILABLE
# What a Triton says of statistics of a model that it does not serve, or where it has none at all.
_NOT_SERVED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
)


class Answer(Enum):
    """What a ServerReady probe showed."""

    READY = "ready"
    NOT_READY = "not ready"  # alive; a model may have failed to load
    LEAVING = "leaving"  # finishes what runs and takes nothing new
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    LATE = "late"  # our own lateness; says nothing


_ANSWERED = (Answer.READY, Answer.NOT_READY, Answer.LEAVING)


@dataclass(frozen=True)
class ProbeResult:
    answer: Answer
    reason: str = ""


class CallError(Exception):
    """A catalog call to the backend failed."""


class RpcError(Exception):
    """A backend answered a call of `TritonCalls.rpc` with this status."""

    def __init__(self, address: str, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{address}: {code.name}: {text}")
        self.address = address
        self.code = code
        self.text = text


def _make_client(address: str, tls: ClientTls | None) -> triton_aio.InferenceServerClient:
    """Raises TlsError."""
    options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
    if tls is None:
        return triton_aio.InferenceServerClient(address, channel_args=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(*tls.pem())
    return triton_aio.InferenceServerClient(address, creds=credentials, channel_args=options)


class TritonCalls:
    """A tritonclient of one backend. All calls have time-outs in seconds."""

    def __init__(self, address: str, tls: ClientTls | None = None) -> None:
        self.address = address
        self._clients = LastGood(
            () if tls is None else tls.files,
            lambda: _make_client(address, tls),
            f"backend {address}",
        )
        self._used: triton_aio.InferenceServerClient | None = None
        self._earlier: triton_aio.InferenceServerClient | None = None
        self._unproved: triton_aio.InferenceServerClient | None = None

    @property
    def _client(self) -> triton_aio.InferenceServerClient:
        """That of the files as they are, once it answered a probe; until then the one before, while
        that is connected, as calls with tensors go on by open connections. Raises CallError.
        """
        try:
            client = self._clients.get()
        except TlsError as error:
            raise CallError(str(error)) from error
        if self._used is None or not _connected(self._used):
            self._use(client)
        return self._used

    def _use(self, client: triton_aio.InferenceServerClient) -> None:
        if client is not self._used:
            # Calls that are out go on by the earlier one.
            self._earlier, self._used = self._used, client
        self._unproved = None

    async def close(self) -> None:
        for client in (self._earlier, self._used, self._unproved):
            if client is not None:
                await client.close()

    async def rpc(self, method: str, request: Any, timeout_s: float) -> Any:
        """A call of GRPCInferenceService whose messages pass unchanged. Raises RpcError."""
        # Its stub passes parameters and fields on that the client's methods do not know.
        try:
            stub = self._client._client_stub
        except CallError as error:
            raise RpcError(self.address, _LOST, str(error)) from error
        try:
            return await getattr(stub, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            # grpc wraps the cause in the list of addresses it tried.
            reason = text.rpartition("last error: ")[2] if error.code() is _LOST else text
            raise RpcError(self.address, error.code(), reason) from error

    async def ready(self, timeout_s: float) -> ProbeResult:
        """Never raises for a failed call."""
        try:
            used, newest = self._client, self._clients.get()
        except CallError as error:
            return ProbeResult(Answer.UNREACHABLE, str(error))
        if newest is used:
            return await _probe(used, timeout_s)
        result = await _probe(newest, timeout_s)
        if result.answer in _ANSWERED:
            self._use(newest)
            return result
        if newest is not self._unproved:
            log(logger, logging.WARNING, "renewed certificates open no connection; those that are "
                "open go on", backend=self.address, reason=result.reason)  # fmt: skip
            self._unproved = newest
        return await _probe(used, timeout_s)

    async def server_metadata(self) -> service_pb2.ServerMetadataResponse:
        return await self._call(self._client.get_server_metadata(client_timeout=CATALOG_TIMEOUT_S))

    async def index(self) -> service_pb2.RepositoryIndexResponse:
        return await self._call(
            self._client.get_model_repository_index(client_timeout=CATALOG_TIMEOUT_S)
        )

    async def served(self, name: str) -> list[tuple[str, str]] | None:
        """The versions that are served of this model, or of all where the name is empty; None where
        the Triton does not tell: it is slow, or its statistics are restricted.

        The index lacks models whose files came with the call that loaded them, or were removed.
        """
        request = service_pb2.ModelStatisticsRequest(name=name)
        try:
            answer = await self.rpc("ModelStatistics", request, CATALOG_TIMEOUT_S)
        except RpcError as error:
            return [] if error.code in _NOT_SERVED else None
        return [(model.name, model.version) for model in answer.model_stats]

    async def model(
        self, name: str, version: str
    ) -> tuple[service_pb2.ModelMetadataResponse, model_config_pb2.ModelConfig]:
        metadata = self._client.get_model_metadata(name, version, client_timeout=CATALOG_TIMEOUT_S)
        config = self._client.get_model_config(name, version, client_timeout=CATALOG_TIMEOUT_S)
        answers = await asyncio.gather(self._call(metadata), self._call(config))
        return answers[0], answers[1].config

    async def _call(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except InferenceServerException as error:
            raise CallError(f"{error.status()}: {error.message()}") from error


def _connected(client: triton_aio.InferenceServerClient) -> bool:
    return bool(client._channel.get_state() is grpc.ChannelConnectivity.READY)


async def _probe(client: triton_aio.InferenceServerClient, timeout_s: float) -> ProbeResult:
    started_at = time.monotonic()
    waiting = CpuWait()
    try:
        ready = await client.is_server_ready(client_timeout=timeout_s)
    except InferenceServerException as error:
        late = time.monotonic() - started_at > timeout_s + LATE_LOOP_S
        starved = waiting.longest_s() > timeout_s * STARVED_PART
        return _failed_probe(error, late or starved)
    return ProbeResult(Answer.READY if ready else Answer.NOT_READY)


def _failed_probe(error: InferenceServerException, late: bool) -> ProbeResult:
    code, text = str(error.status()), str(error.message() or "")
    if code == str(grpc.StatusCode.DEADLINE_EXCEEDED):
        return ProbeResult(Answer.LATE if late else Answer.TIMEOUT, "no answer to ServerReady")
    if code == str(grpc.StatusCode.UNAVAILABLE) and "exiting" in text.lower():
        return ProbeResult(Answer.LEAVING, text)
    # grpc wraps the cause in the list of addresses it tried.
    return ProbeResult(Answer.UNREACHABLE, text.rpartition("last error: ")[2] or code)
