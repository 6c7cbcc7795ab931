"""Loads and unloads at one Triton, and what their answers say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2

from scheduler.backends.catalog import LOADING, READY, UNLOADING
from scheduler.backends.probe import RpcError
from scheduler.backends.waiting import result_within
from scheduler.backends.watch import BackendWatch
from scheduler.control.cold.fan_out import READ_TIMEOUT_S, UPDATE_TIMEOUT_S
from scheduler.control.unloading import until_unloaded

POLL_PERIOD_S = 0.05
# What a Triton says that loads all of its repository (--model-control-mode=none or poll).
_NOT_EXPLICIT = "explicit model load / unload is not allowed"
# Of CUDA and its libraries, PyTorch, ONNX Runtime, TensorRT, TensorFlow and Triton's own pools.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|out_of_memory|cudaerrormemoryallocation|status_alloc_failed"
    r"|failed to allocate memory for requested buffer|is smaller than requested bytes of"
    r"|requested amount of gpu memory|failed to allocate cuda memory|oom when allocating",
    re.IGNORECASE,
)


@dataclass
class Loading:
    """A load under way, from the first unload for it on."""

    backend: str
    ready_at_ns: int  # expected; 0 = not known
    places: frozenset[str] = frozenset()  # that nobody else loads on meanwhile
    # It is that of somebody else, or of a control plane before this one, and is only waited for.
    foreign: bool = False
    free: Mapping[str, int] = field(default_factory=dict)  # by place, just before
    weighing: bool = False  # nothing is sent to it yet: batches would be weighed with it


class NotLoadedError(Exception):
    """What was under way there has ended without the model, or is an unload: who has room for it
    is to be looked at again."""


def says_out_of_memory(text: str) -> bool:
    """Whether a load failed because the device has no room."""
    return _OUT_OF_MEMORY.search(text) is not None


async def loads_explicitly(watch: BackendWatch) -> bool:
    """Whether this Triton loads what it is told to. Raises RpcError where it does not tell.

    Asks for the unload of no model, which changes nothing.
    """
    request = service_pb2.RepositoryModelUnloadRequest(model_name="")
    try:
        await watch.calls.rpc("RepositoryModelUnload", request, READ_TIMEOUT_S)
    except RpcError as error:
        if _NOT_EXPLICIT in error.text:
            return False
        if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
    return True


async def load_model(
    watch: BackendWatch,
    request: service_pb2.RepositoryModelLoadRequest,
    timeout_s: float,
    loading: Loading,
) -> None:
    """Returns once it is loaded; one that is under way already is waited for, and is `foreign`.
    Raises RpcError and NotLoadedError.
    """

    async def load() -> None:
        while LOADING in (states := await _states(watch, request.model_name)):
            loading.foreign = True
            await asyncio.sleep(POLL_PERIOD_S)
        if READY in states and not request.parameters:
            loading.foreign = True
            return
        if READY not in states and (loading.foreign or UNLOADING in states):
            raise NotLoadedError
        await watch.calls.rpc("RepositoryModelLoad", request, timeout_s)

    try:
        await result_within(load(), timeout_s)
    except (asyncio.TimeoutError, RpcError) as error:
        if isinstance(error, RpcError) and error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        text = f"the load has not ended after {timeout_s:g} s (residency.load_timeout)"
        raise RpcError(watch.address, grpc.StatusCode.DEADLINE_EXCEEDED, text) from error


async def unload_model(
    watch: BackendWatch, name: str, steps: Collection[str], timeout_s: float
) -> None:
    """Returns once it and those steps that Triton ends with it are gone. Raises RpcError."""
    request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
    if steps:
        request.parameters["unload_dependents"].bool_param = True
    await watch.calls.rpc("RepositoryModelUnload", request, UPDATE_TIMEOUT_S)
    failure = await until_unloaded(watch, [name], timeout_s, dependents=steps)
    if failure is not None:
        raise failure


async def _states(watch: BackendWatch, name: str) -> set[str]:
    request = service_pb2.RepositoryIndexRequest()
    index = await watch.calls.rpc("RepositoryIndex", request, UPDATE_TIMEOUT_S)
    return {model.state for model in index.models if model.name == name}
