"""Which placements exclude each other: the executor groups of the data plane.

Instances run side by side unless the configuration says that they share a device: `executor` of a
backend gives all instances of the backends of one name one executor, `exclusive: gpu` one for each
GPU that Triton's configuration of the models names.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from scheduler.backends.catalog import ModelSpec
from scheduler.backends.pool import BackendPool
from scheduler.backends.remembered import ModelKey
from scheduler.config import Backend, Settings
from scheduler.control.indices import IndexBook
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

EXECUTORS_MAX = 65_536
NO_GPU = "it has no instances on a GPU"


def gpus_of(config: model_config_pb2.ModelConfig) -> frozenset[int] | None:
    """The GPUs that the instances run on, by Triton's number; None where that is not said.

    Instances on a processor count as those of no GPU.
    """
    gpus: set[int] = set()
    for group in config.instance_group:
        if group.passive or group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU:
            continue
        if not group.gpus:
            return None
        gpus.update(group.gpus)
    return frozenset(gpus)


def executor_of(backend: Backend, spec: ModelSpec, settings: Settings) -> tuple[str, str]:
    """The executor that a model's instances share on this backend, empty for their own, and why
    they have no GPU in common where the configuration asks for one."""
    if spec.sequence or spec.decoupled:
        return "", ""  # Triton schedules them
    device = backend.executor or str(backend.address)
    if backend.exclusive == "none":
        return (device if backend.executor else ""), ""
    # As told, before as Triton says: device memory is looked for there, too.
    gpus = frozenset(settings.batching_for(spec.name).gpus) or gpus_of(spec.config)
    if gpus is None:
        return "", "its instance_group names no GPUs"
    if len(gpus) > 1:
        return "", f"it has instances on GPUs {', '.join(map(str, sorted(gpus)))}"
    return (f"{device}\ngpu {min(gpus)}", "") if gpus else ("", NO_GPU)


class ExecutorGroups:
    """Numbers of the executors, from 1 on; a number stays with its executor across restarts."""

    def __init__(self, runtime_directory: Path) -> None:
        self._book = IndexBook(runtime_directory / "executors.json", EXECUTORS_MAX)
        # What keeps `exclusive: gpu` of a backend from acting, by model.
        self.inert: dict[ModelKey, list[str]] = {}
        self._reported: set[tuple[ModelKey | None, str, str]] = set()

    def assign(self, pool: BackendPool, settings: Settings) -> dict[tuple[ModelKey, str], int]:
        """The group of each (model, backend address) whose instances share their executor."""
        shared: dict[tuple[ModelKey, str], str] = {}
        self.inert = {}
        for address, watch in pool.watches.items():
            problems: dict[ModelKey, str] = {}
            on_gpus = False
            for key, spec in watch.models.items():
                executor, problem = executor_of(pool.backends[address], spec, settings)
                if executor:
                    shared[key, address] = executor
                    on_gpus = True
                if problem:
                    problems[key] = problem
            self._note(address, problems, on_gpus)
        numbers = self._book.assign(sorted(set(shared.values())))
        return {
            placement: numbers[executor] + 1
            for placement, executor in shared.items()
            if executor in numbers
        }

    def _note(self, address: str, problems: dict[ModelKey, str], on_gpus: bool) -> None:
        """Tells of what does not act. Where others are on GPUs, models of a processor are meant."""
        bare = all(problem == NO_GPU for problem in problems.values()) and not on_gpus
        for key, problem in problems.items():
            if bare or problem != NO_GPU:
                self.inert.setdefault(key, []).append(
                    f"exclusive: gpu of backend {address} does not act on it: {problem}"
                )
            if problem != NO_GPU:
                self._report(key, address, problem)
        if problems and bare and (None, address, NO_GPU) not in self._reported:
            self._reported.add((None, address, NO_GPU))
            log(
                logger,
                logging.WARNING,
                f"exclusive: gpu does not act on backend {address}: none of its models has "
                "instances on a GPU; they count as executors of their own. Leave it out, and name "
                "the device by executor where they share one",
            )

    def _report(self, key: ModelKey, address: str, problem: str) -> None:
        if (key, address, problem) in self._reported:
            return
        self._reported.add((key, address, problem))
        log(
            logger,
            logging.WARNING,
            f"model {key[0]}: exclusive: gpu does not act on it: {problem}; its instances count as "
            "executors of their own. Give it one GPU in its config.pbtxt, or name the device by "
            "executor",
            version=key[1],
            backend=address,
        )
