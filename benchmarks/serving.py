"""The servers under measurement: Triton with the benchmark's models, the scheduler before it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.loading import Triton
from benchmarks.processes import process_tree
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.models import DynamicBatching
from tests.serving import ServedScheduler


@dataclass(frozen=True)
class Variant:
    """One way to configure the same model in Triton."""

    name: str
    instances: int = 1
    batching: DynamicBatching | None = None
    rows_max: int | None = None  # of a batch; None: as the workload's model has it


# Triton's own batcher is given its best: the default block and a small grid of delays, preferred
# sizes and instances are tried at every load, the fastest one is compared with.
TRITON_BATCHING = (
    Variant("default", 1, DynamicBatching()),
    Variant("default_2", 2, DynamicBatching()),
    Variant("delay500us", 1, DynamicBatching((), 500)),
    Variant("delay500us_2", 2, DynamicBatching((), 500)),
    Variant("prefer32_1ms", 1, DynamicBatching((32,), 1000)),
    Variant("prefer64_1ms_2", 2, DynamicBatching((64,), 1000)),
)
# The scheduler's models have no batcher in Triton; it may choose the instances as well.
SCHEDULED = (Variant("scheduled"), Variant("scheduled_2", 2))

# A batch of the first two has room for 64 requests: those of "mixed" have 4.5 rows in the mean.
_KINDS: dict[str, Callable[..., str]] = {
    "simple": partial(models.identity, max_batch_size=64),
    "mixed": partial(models.mixed, max_batch_size=288),
    "image": partial(models.identity, dims=(3, 224, 224), max_batch_size=8),
    "large": partial(models.checksum, max_batch_size=4),
    "stream": models.decoupled,
}


def model_name(workload: str, variant: Variant) -> str:
    return f"{workload}_{variant.name}"


@contextlib.contextmanager
def running_triton(
    workloads: Mapping[str, Sequence[Variant]],
) -> Iterator[tuple[EmbeddedTriton, Triton]]:
    """A Triton that serves each workload's model in each of its variants."""
    with tempfile.TemporaryDirectory(prefix="infersched-bench-") as directory:
        for workload, variants in workloads.items():
            for variant in variants:
                bound = {} if variant.rows_max is None else {"max_batch_size": variant.rows_max}
                _KINDS[workload](
                    Path(directory),
                    model_name(workload, variant),
                    instances=variant.instances,
                    dynamic_batching=variant.batching,
                    **bound,
                )
        with EmbeddedTriton(directory) as triton:
            yield triton, Triton(triton.grpc_address)


def scheduler_pids(scheduler: ServedScheduler) -> dict[str, list[int]]:
    """Process ids by role, for reading CPU and memory."""
    data_plane = scheduler.child("scheduler.dataplane").pid
    family = process_tree(scheduler.process.pid)
    return {
        "data_plane": [data_plane],
        "control": [pid for pid in family if pid != data_plane],
    }


@contextlib.contextmanager
def running_scheduler(
    backend: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServedScheduler]:
    with ServedScheduler(["--backend", backend], environment=environment) as scheduler:
        yield scheduler
