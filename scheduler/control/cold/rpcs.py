"""The RPCs of inference.GRPCInferenceService that carry no tensors, answered in Triton's words.

They arrive as streams that the data plane forwards to a unix socket. ModelInfer and
ModelStreamInfer end in the data plane and never come here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, NoReturn, TypeVar

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from scheduler.backends.pool import CatalogEntry
from scheduler.config import Batching, batching_problems
from scheduler.control.cold.errors import ColdError
from scheduler.control.cold.repository import Repository
from scheduler.control.cold.shared_memory import SharedMemory
from scheduler.control.cold.statistics import VIEW_HEADER, Statistics
from scheduler.control.cold.trace_and_log import TraceAndLog
from scheduler.control.plane import ControlPlane
from scheduler.control.triton_batching import triton_block
from scheduler.control.versions import parse_version, until_nul

Answer = TypeVar("Answer")

# Offered where a backend runs on this host.
SHARED_MEMORY_EXTENSIONS = frozenset({"system_shared_memory", "cuda_shared_memory"})
OWN_EXTENSION = "infersched"


class ColdServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Reads the pool's catalog, and passes on what is for the Tritons themselves."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._pool = plane.pool
        self._readiness = plane.readiness
        self._statistics = Statistics(plane)
        self._shared_memory = SharedMemory(plane)
        # A backend that comes back is told in this order: models have settings.
        self._repository = Repository(plane)
        self._trace_and_log = TraceAndLog(plane)

    async def ServerLive(self, request: Any, context: Any) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=self._readiness.ready)

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelReadyResponse:
        version = await _version(request.version, context)
        entry = self._pool.find(until_nul(request.name), version)
        ready = entry is not None and self._readiness.serves(entry)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: Any, context: grpc.aio.ServicerContext
    ) -> service_pb2.ServerMetadataResponse:
        servers = [w.server for w in self._pool.watches.values() if w.server is not None]
        if not servers:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "no backend has been reached yet; try again"
            )
        local = await self._shared_memory.has_local_backend()
        return pool_metadata(servers, frozenset() if local else SHARED_MEMORY_EXTENSIONS)

    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelMetadataResponse:
        entry = await self._entry(until_nul(request.name), request.version, context)
        answer = service_pb2.ModelMetadataResponse()
        answer.CopyFrom(entry.spec.metadata)
        if not request.version:
            versions = [e.spec.version for e in self._pool.versions(entry.spec.name)]
            answer.versions[:] = sorted(versions, key=int)
        return answer

    async def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelConfigResponse:
        entry = await self._entry(until_nul(request.name), request.version, context)
        config = model_config_pb2.ModelConfig()
        config.CopyFrom(entry.spec.config)
        self._show_batching(config, entry)
        return service_pb2.ModelConfigResponse(config=config)

    def _show_batching(self, config: model_config_pb2.ModelConfig, entry: CatalogEntry) -> None:
        """Puts the batcher that acts on requests in the place of Triton's."""
        if config.WhichOneof("scheduling_choice") in ("ensemble_scheduling", "sequence_batching"):
            return  # it is one or the other, and clients ask these for what the model is
        batching = self._plane.batching_for(entry.spec.name)
        if batching.batching == "triton":
            block = triton_block(batching, entry.spec)
            if block is not None:
                config.dynamic_batching.CopyFrom(block)
        elif batching.merge and not self._plane.merging_off(entry):
            show_effective_batching(config, batching)

    async def ModelStatistics(
        self, request: service_pb2.ModelStatisticsRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelStatisticsResponse:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        view = metadata.get(VIEW_HEADER, "scheduler")
        return await _answer(context, self._statistics.model_statistics(request, view))

    async def RepositoryIndex(
        self, request: service_pb2.RepositoryIndexRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.RepositoryIndexResponse:
        return await _answer(context, self._repository.index(request))

    async def RepositoryModelLoad(
        self, request: service_pb2.RepositoryModelLoadRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.RepositoryModelLoadResponse:
        return await _answer(context, self._repository.load(request))

    async def RepositoryModelUnload(
        self, request: service_pb2.RepositoryModelUnloadRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.RepositoryModelUnloadResponse:
        return await _answer(context, self._repository.unload(request))

    async def SystemSharedMemoryRegister(
        self,
        request: service_pb2.SystemSharedMemoryRegisterRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.SystemSharedMemoryRegisterResponse:
        return await _answer(context, self._shared_memory.register("System", request))

    async def SystemSharedMemoryUnregister(
        self,
        request: service_pb2.SystemSharedMemoryUnregisterRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.SystemSharedMemoryUnregisterResponse:
        return await _answer(context, self._shared_memory.unregister("System", request))

    async def SystemSharedMemoryStatus(
        self,
        request: service_pb2.SystemSharedMemoryStatusRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.SystemSharedMemoryStatusResponse:
        return await _answer(context, self._shared_memory.status("System", request))

    async def CudaSharedMemoryRegister(
        self,
        request: service_pb2.CudaSharedMemoryRegisterRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.CudaSharedMemoryRegisterResponse:
        return await _answer(context, self._shared_memory.register("Cuda", request))

    async def CudaSharedMemoryUnregister(
        self,
        request: service_pb2.CudaSharedMemoryUnregisterRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.CudaSharedMemoryUnregisterResponse:
        return await _answer(context, self._shared_memory.unregister("Cuda", request))

    async def CudaSharedMemoryStatus(
        self, request: service_pb2.CudaSharedMemoryStatusRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.CudaSharedMemoryStatusResponse:
        return await _answer(context, self._shared_memory.status("Cuda", request))

    async def TraceSetting(
        self, request: service_pb2.TraceSettingRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.TraceSettingResponse:
        return await _answer(context, self._trace_and_log.trace(request))

    async def LogSettings(
        self, request: service_pb2.LogSettingsRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.LogSettingsResponse:
        return await _answer(context, self._trace_and_log.log(request))

    async def _entry(
        self, name: str, version_text: str, context: grpc.aio.ServicerContext
    ) -> CatalogEntry:
        version = await _version(version_text, context)
        entry = self._pool.find(name, version)
        if entry is None and await _answer(
            context, self._plane.residency.wait_loaded(name, context.time_remaining())
        ):
            entry = self._pool.find(name, version)
        if entry is not None:
            return entry
        code, text = self._unknown(name, version)
        return await _abort(context, code, text)

    def _unknown(self, name: str, version: str) -> tuple[grpc.StatusCode, str]:
        """Triton tells apart what it never had and what is not loaded now."""
        text = f"Request for unknown model: '{name}' "
        known = {v for w in self._pool.watches.values() for n, v in w.unavailable if n == name}
        if version and version in known:
            return grpc.StatusCode.UNAVAILABLE, f"{text}version {version} is not at ready state"
        if version and (known or self._pool.versions(name)):
            return grpc.StatusCode.NOT_FOUND, f"{text}version {version} is not found"
        missing = "has no available versions" if known else "is not found"
        return grpc.StatusCode.NOT_FOUND, text + missing


def pool_metadata(
    servers: list[service_pb2.ServerMetadataResponse], not_carried: frozenset[str]
) -> service_pb2.ServerMetadataResponse:
    """One server out of many: the lowest version, the extensions that all have and we carry."""
    common = set(servers[0].extensions).intersection(*(set(s.extensions) for s in servers))
    carried = [e for e in servers[0].extensions if e in common - not_carried]
    lowest = min((server.version for server in servers), key=_version_numbers)
    return service_pb2.ServerMetadataResponse(
        name=servers[0].name, version=lowest, extensions=[*carried, OWN_EXTENSION]
    )


def _version_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)]


def show_effective_batching(config: model_config_pb2.ModelConfig, batching: Batching) -> None:
    """Replaces the batcher of the configuration by the one that acts on requests: ours."""
    usable = not batching_problems(batching, config.max_batch_size)
    sizes = batching.preferred_batch_rows if usable else ()
    block = model_config_pb2.ModelDynamicBatching(
        preferred_batch_size=sizes,
        max_queue_delay_microseconds=batching.max_queue_delay // 1000,
        priority_levels=batching.priority_levels if batching.priority_levels > 1 else 0,
    )
    if block.priority_levels:
        block.default_priority_level = (
            batching.default_priority or (batching.priority_levels + 1) // 2
        )
    block.default_queue_policy.max_queue_size = batching.max_queue_requests
    config.dynamic_batching.CopyFrom(block)


async def _answer(context: grpc.aio.ServicerContext, answer: Awaitable[Answer]) -> Answer:
    try:
        return await answer
    except ColdError as error:
        return await _abort(context, error.code, error.text)


async def _version(text: str, context: grpc.aio.ServicerContext) -> str:
    try:
        return parse_version(text)
    except ColdError as error:
        return await _abort(context, error.code, error.text)


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort returned")
