"""Measures l(b): closed loops of batches of each size, one at a time for each instance.

The sizes take turns in rounds, so that a machine that slows down meanwhile slows all of them. The
server is asked afterwards which batches it ran: one that joined some of them did not run the sizes
that were meant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from scheduler.backends.catalog import CatalogError, ModelSpec, model_spec, profiled_model
from scheduler.config.profile import Fit, Profile, SizeProfile
from scheduler.profiling.closed_loop import LoopError, LoopOutOfMemoryError, closed_loop
from scheduler.profiling.inputs import RequestMaker

CALL_TIMEOUT_S = 10.0
# Of a model that is loaded or unloaded.
LOAD_TIMEOUT_S = 600.0
COUNTED_WITHIN_S = 2.0
_POLL_S = 0.05
ROUNDS = 3
_UNBOUNDED = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class MeasureError(Exception):
    """The model cannot be measured, or not as it was wanted; says why."""


class OutOfMemoryError(MeasureError):
    """A batch ran out of device memory."""


@dataclass(frozen=True)
class Plan:
    """What is measured: `repeats` batches of each size, after `warm_up` ones that do not count."""

    sizes: tuple[int, ...]
    repeats: int = 30
    warm_up: int = 3
    in_flight: int = 1


@dataclass
class Samples:
    """Times of the batches of one size, in nanoseconds."""

    times_ns: list[int] = field(default_factory=list)


def default_sizes(rows_max: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to and with the largest."""
    sizes = {1, rows_max}
    power = 2
    while power <= rows_max:
        sizes |= {power, min(power * 3 // 2, rows_max)}
        power *= 2
    return tuple(sorted(sizes))


class Server:
    """One Triton. Calls raise MeasureError."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_UNBOUNDED)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def describe(self) -> str:
        server = self._call("ServerMetadata", service_pb2.ServerMetadataRequest())
        return f"{server.name} {server.version}"

    def model(self, name: str, version: str) -> ModelSpec:
        """The model as it is served, its highest version where none is named."""
        spec = self._spec(name, version)
        if spec.sequence or spec.decoupled:
            kind = "sequence" if spec.sequence else "decoupled"
            raise MeasureError(f"{name} is a {kind} model, which is never batched here")
        return spec

    def in_flight_max(self, spec: ModelSpec) -> int:
        """How many batches run at once without waiting for each other.

        Those of an ensemble may meet at the step that has the fewest instances.
        """
        if not spec.config.HasField("ensemble_scheduling"):
            return spec.instances
        steps = sorted(_steps(spec.config))
        return min((self.in_flight_max(self._spec(*step)) for step in steps), default=1)

    def _spec(self, name: str, version: str) -> ModelSpec:
        asked = {"name": name, "version": version}
        metadata = self._call("ModelMetadata", service_pb2.ModelMetadataRequest(**asked))
        config = self._call("ModelConfig", service_pb2.ModelConfigRequest(**asked)).config
        chosen = version or max(metadata.versions, key=int, default="1")
        steps = {name: self._spec(name, its) for name, its in _steps(config)}
        try:
            return model_spec(chosen, metadata, config, steps)
        except CatalogError as error:
            raise MeasureError(str(error)) from error

    def batches_run(self, spec: ModelSpec) -> dict[int, int]:
        """Executions by batch size since the server started."""
        request = service_pb2.ModelStatisticsRequest(name=spec.name, version=spec.version)
        (model,) = self._call("ModelStatistics", request).model_stats
        return {entry.batch_size: entry.compute_infer.count for entry in model.batch_stats}

    def infer(
        self, message: bytes, count: int, in_flight: int, on_batch: Callable[[], None]
    ) -> list[int]:
        """Runs `count` batches, `in_flight` of them at any time; their times in nanoseconds."""
        try:
            return closed_loop(self.address, message, count, in_flight, on_batch)
        except LoopOutOfMemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except LoopError as error:
            raise MeasureError(str(error)) from error

    def reload(self, spec: ModelSpec) -> None:
        """Unloads the model and loads it again: what its allocators kept is free."""
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=spec.name)
        self._call("RepositoryModelUnload", unload)
        self._until_unloaded(spec)
        load = service_pb2.RepositoryModelLoadRequest(model_name=spec.name)
        self._call("RepositoryModelLoad", load, LOAD_TIMEOUT_S)

    def _until_unloaded(self, spec: ModelSpec) -> None:
        """An unload is answered before what ran there has ended."""
        end_s = time.monotonic() + LOAD_TIMEOUT_S
        while time.monotonic() < end_s:
            index = self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest()).models
            if {model.state for model in index if model.name == spec.name} <= {"UNAVAILABLE", ""}:
                return
            time.sleep(_POLL_S)
        raise MeasureError(f"{spec.name} is not unloaded after {LOAD_TIMEOUT_S:.0f} s")

    def _call(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise MeasureError(f"{self.address}: {error.code().name}: {error.details()}") from error


def measure(
    server: Server,
    spec: ModelSpec,
    maker: RequestMaker,
    plan: Plan,
    on_batch: Callable[[], None] = lambda: None,
) -> Profile:
    """Runs the plan; `on_batch` is called after each of its batches. Raises MeasureError."""
    messages = {rows: maker.message(rows) for rows in plan.sizes}
    samples = {rows: Samples() for rows in plan.sizes}
    before = server.batches_run(spec)
    for turn in range(ROUNDS):
        for rows in plan.sizes:
            wanted = plan.repeats * (turn + 1) // ROUNDS - plan.repeats * turn // ROUNDS
            if turn == 0:
                server.infer(messages[rows], plan.warm_up, plan.in_flight, on_batch)
            times = server.infer(messages[rows], wanted, plan.in_flight, on_batch)
            samples[rows].times_ns += times
    _check_sizes(before, lambda: server.batches_run(spec), plan)
    sizes = tuple(_size(rows, samples[rows].times_ns) for rows in plan.sizes)
    return Profile(
        model=profiled_model(spec),
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        server=server.describe(),
        in_flight=plan.in_flight,
        fit=fit_line([size.rows for size in sizes], [size.median_ns for size in sizes]),
        sizes=sizes,
    )


def _steps(config: model_config_pb2.ModelConfig) -> set[tuple[str, str]]:
    """Name and version of what an ensemble goes through; "" is the highest version."""
    return {
        (step.model_name, str(step.model_version) if step.model_version > 0 else "")
        for step in config.ensemble_scheduling.step
    }


def total_batches(plan: Plan) -> int:
    return len(plan.sizes) * (plan.repeats + plan.warm_up)


def fit_line(rows: Sequence[int], times_ns: Sequence[float]) -> Fit:
    """Least squares; one point is a constant."""
    times = np.asarray(times_ns, dtype=float)
    if len(rows) == 1:
        return Fit(alpha_ns=0.0, beta_ns=float(times[0]), r_squared=1.0)
    alpha, beta = np.polyfit(np.asarray(rows, dtype=float), times, 1)
    residual = float(np.sum((times - (alpha * np.asarray(rows) + beta)) ** 2))
    spread = float(np.sum((times - times.mean()) ** 2))
    return Fit(
        alpha_ns=float(alpha),
        beta_ns=float(beta),
        r_squared=1.0 - residual / spread if spread else 1.0,
    )


def line_text(profile: Profile) -> str:
    """The line for people; one size tells none. In ASCII: pictures have no other letters."""
    if len(profile.sizes) == 1:
        rows = profile.sizes[0].rows
        return f"no line: only batches of {rows} {'row' if rows == 1 else 'rows'} were measured"
    fit = profile.fit
    return (
        f"l(b) = {fit.alpha_ns / 1e6:.4g} ms * b + {fit.beta_ns / 1e6:.4g} ms, "
        f"R2 {fit.r_squared:.4f}"
    )


def _size(rows: int, times_ns: Sequence[int]) -> SizeProfile:
    times = np.asarray(times_ns, dtype=float)
    return SizeProfile(
        rows=rows,
        batches=len(times_ns),
        mean_ns=max(int(times.mean()), 1),
        median_ns=max(int(np.quantile(times, 0.5)), 1),
        p99_ns=max(int(np.quantile(times, 0.99)), 1),
    )


def _check_sizes(
    before: Mapping[int, int], batches_run: Callable[[], dict[int, int]], plan: Plan
) -> None:
    # Triton counts a batch after it has answered.
    end_s = time.monotonic() + COUNTED_WITHIN_S
    while True:
        ran = {rows: count - before.get(rows, 0) for rows, count in batches_run().items()}
        short = [rows for rows in plan.sizes if ran.get(rows, 0) < plan.repeats + plan.warm_up]
        if not short:
            return
        if time.monotonic() > end_s:
            break
        time.sleep(_POLL_S)
    other = sorted(rows for rows, count in ran.items() if count > 0 and rows not in plan.sizes)
    seen = f"; it ran batches of {other[0]} rows" if other else ""
    raise MeasureError(
        f"the server ran {max(ran.get(short[0], 0), 0)} batches of {short[0]} rows, not the "
        f"{plan.repeats + plan.warm_up} that were sent{seen}: a batcher joined them. Measure a "
        "Triton directly, without a dynamic_batching block, or with --in-flight 1"
    )
