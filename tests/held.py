"""Requests that are merged for certain: all are queued before the first execution ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2

from tests.models import SLOW_LOCK
from tests.scrapes import scrape, total
from tests.serving import ServedScheduler
from tests.waiting import wait_until
from tests.wire.calls import Stub

TIMEOUT_S = 60.0


@contextmanager
def slow_model_held(repository: Path) -> Iterator[None]:
    """The slow model of `write_all` runs nothing: what it is sent has to wait."""
    with (repository / SLOW_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def infer_together(
    scheduler: ServedScheduler,
    stub: Stub,
    requests: Sequence[service_pb2.ModelInferRequest],
    repository: Path,
) -> list[grpc.Future]:
    """The calls, which have ended well, of requests that go through the slow model of `write_all`.

    It runs nothing before the scheduler has all of them.
    """
    (model,) = {request.model_name for request in requests}

    def inside() -> float:
        samples = scrape(scheduler.metrics_url)
        return total(samples, "infersched_inflight_requests", model=model)

    with slow_model_held(repository):
        calls = [stub.ModelInfer.future(request, timeout=TIMEOUT_S) for request in requests]
        wait_until(lambda: inside() == len(requests), "the scheduler has all", TIMEOUT_S)
    for call in calls:
        call.result()
    return calls
