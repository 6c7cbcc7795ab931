"""The end of a model at a backend: its requests end, then Triton is asked until it is gone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterable

import grpc
from tritonclient.grpc import service_pb2

from scheduler._native.counters import CountersPage
from scheduler.backends.catalog import READY
from scheduler.backends.probe import RpcError
from scheduler.backends.waiting import result_within
from scheduler.backends.watch import BackendStatus, BackendWatch
from scheduler.control.cold.fan_out import UPDATE_TIMEOUT_S
from scheduler.control.steering import SteeringClient
from scheduler.v1 import dataplane_pb2 as pb

# How long a backend may take to end the model after it has taken the unload.
UNLOAD_TIMEOUT_S = 300.0
# How long it may be silent meanwhile: what it has taken it goes on with.
SILENT_MAX_S = 5.0
POLL_PERIOD_S = 0.02
# The data plane is asked for all that it has only now and then while its counters show requests.
SNAPSHOT_PERIOD_S = 0.2
_GONE = ("UNAVAILABLE", "")


async def drained(
    steering: SteeringClient,
    counters: CountersPage,
    models: Iterable[int],
    timeout_s: float,
    backend: int | None = None,
) -> None:
    """Returns once nothing of these models is queued or out; with a backend, nothing is out there.

    The state by which they take nothing new is told before. Raises ConnectionError or TimeoutError.
    """
    wanted = set(models)

    async def until_idle() -> None:
        await steering.settled(timeout_s)
        asked_s = -math.inf
        while True:
            # A batch may be out though all of its requests have been answered.
            if not _in_flight(counters, wanted) or time.monotonic() - asked_s >= SNAPSHOT_PERIOD_S:
                asked_s = time.monotonic()
                if not _busy(await steering.snapshot(), wanted, backend):
                    return
            await asyncio.sleep(POLL_PERIOD_S)

    await result_within(until_idle(), timeout_s)


def _in_flight(counters: CountersPage, models: Iterable[int]) -> bool:
    """Whether requests of these models are not answered; costs the data plane nothing."""
    if not counters.valid:
        return False
    return any(found["in_flight"] for index in models if (found := counters.model(index)))


def _busy(snapshot: pb.Snapshot, models: Collection[int], backend: int | None) -> bool:
    if backend is not None:
        return any(
            batch.model_index in models and batch.backend_index == backend
            for batch in snapshot.batches
        )
    return any(
        model.queued_requests or model.inflight_batches
        for model in snapshot.models
        if model.index in models
    )


async def until_unloaded(
    watch: BackendWatch,
    names: Collection[str],
    timeout_s: float = UNLOAD_TIMEOUT_S,
    *,
    dependents: Collection[str] = (),
) -> RpcError | None:
    """None once no version of the models is loaded there; a failure when that takes too long.

    Of `dependents` Triton may leave some as they are. It answers an unload before it is done. A
    question that is lost is asked again.
    """
    request = service_pb2.RepositoryIndexRequest()
    ends = {**dict.fromkeys(dependents, (*_GONE, READY)), **dict.fromkeys(names, _GONE)}

    async def until_gone() -> None:
        heard_s = time.monotonic()
        while True:
            try:
                index = await watch.calls.rpc("RepositoryIndex", request, UPDATE_TIMEOUT_S)
                if all(m.state in ends[m.name] for m in index.models if m.name in ends):
                    return
                heard_s = time.monotonic()
            except RpcError:
                down = watch.status is BackendStatus.DOWN
                if down or time.monotonic() - heard_s > SILENT_MAX_S:
                    raise
            await asyncio.sleep(POLL_PERIOD_S)

    try:
        await result_within(until_gone(), timeout_s)
    except RpcError as error:
        return error
    except asyncio.TimeoutError:
        text = f"unloading has not ended after {timeout_s:g} s"
        return RpcError(watch.address, grpc.StatusCode.DEADLINE_EXCEEDED, text)
    return None
