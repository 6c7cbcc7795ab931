"""Servers for loads with an objective: a Triton whose batcher is changed between loads, and ours.

The models sleep alpha * rows + beta. Those that Triton batches by itself are loaded anew for each
setting of its batcher, so that one set of instances serves a whole grid of settings.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.loading import LoadResult, Triton, compare_replies, problem_of_answers, run_load
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler

LOAD_TIMEOUT_S = 60.0
# Distinct payloads: each is asked once beforehand, and takes as long as a lone request.
POOL = 64
# After which the engine's averages have forgotten the load before, and know this one.
SETTLED_S = 4.0
# What an overloaded server may say: deadline, exhausted, unavailable.
REFUSALS = {"4", "8", "14"}


@dataclass(frozen=True)
class Sleeper:
    """A model whose batch of b rows takes alpha * b + beta milliseconds, and its objective."""

    name: str
    alpha_ms: float
    beta_ms: float
    objective_ms: float
    instances: int

    def holds_ms(self, rows: float) -> float:
        return self.alpha_ms * rows + self.beta_ms

    def write(self, repository: Path, name: str, lock: Path | None = None) -> None:
        models.slow(
            repository,
            name,
            per_execution_s=self.beta_ms / 1000,
            per_row_s=self.alpha_ms / 1000,
            instances=self.instances,
            lock=lock,
        )


@dataclass(frozen=True)
class Batcher:
    """One setting of Triton's dynamic batcher; times in milliseconds, 0 is none."""

    rows_max: int = 64
    delay_ms: float = 0.0
    preferred: int = 0
    timeout_ms: float = 0.0
    queue_max: int = 0
    priorities: bool = False

    def __str__(self) -> str:
        words = {
            "rows": self.rows_max,
            "delay": self.delay_ms,
            "preferred": self.preferred,
            "timeout": round(self.timeout_ms, 1),
            "queue": self.queue_max,
            "priorities": int(self.priorities),
        }
        return " ".join(f"{key} {value:g}" for key, value in words.items() if value)

    def block(self) -> dict[str, Any]:
        """The dynamic_batching block as JSON."""
        policy: dict[str, Any] = {"maxQueueSize": self.queue_max}
        if self.timeout_ms:
            policy["defaultTimeoutMicroseconds"] = round(self.timeout_ms * 1000)
        block: dict[str, Any] = {"maxQueueDelayMicroseconds": round(self.delay_ms * 1000)}
        if self.preferred:
            block["preferredBatchSize"] = [self.preferred]
        if self.timeout_ms or self.queue_max:
            block["defaultQueuePolicy"] = policy
        if self.priorities:
            block |= {"priorityLevels": 2, "defaultPriorityLevel": 2}
        return block


class TunableTriton:
    """A Triton in explicit mode; loads models with another batcher."""

    def __init__(self, triton: EmbeddedTriton) -> None:
        self.address = triton.grpc_address
        self.asked = Triton(self.address)
        self.repository = triton.model_repository
        # With its python backend's processes; 0 would be our own.
        assert triton.pid is not None
        self.process_group = os.getpgid(triton.pid)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(self.address))

    def load(
        self, model: str, batcher: Batcher | None, rate_limiter: Mapping[str, Any] | None = None
    ) -> None:
        """(Re)loads the model with this batcher, None for none."""
        written = (self.repository / model / "config.pbtxt").read_text()
        config = json_format.MessageToDict(
            text_format.Parse(written, model_config_pb2.ModelConfig())
        )
        if batcher is not None:
            config["dynamicBatching"] = batcher.block()
            config["maxBatchSize"] = batcher.rows_max
        if rate_limiter is not None:
            config["instanceGroup"][0]["rateLimiter"] = dict(rate_limiter)
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = json.dumps(config)
        self._stub.RepositoryModelLoad(request, timeout=LOAD_TIMEOUT_S)


@contextlib.contextmanager
def tunable_triton(repository: Path, *arguments: str) -> Iterator[TunableTriton]:
    triton = EmbeddedTriton(
        repository, model_control_mode="explicit", extra_arguments=arguments, metrics_port=None
    )
    with triton:
        yield TunableTriton(triton)


@contextlib.contextmanager
def scheduler_before(triton: TunableTriton, config: Mapping[str, Any]) -> Iterator[str]:
    """The address of a scheduler with this configuration before the Triton."""
    backend = {"address": triton.address, **config.get("backend", {})}
    settings = {"backends": [backend], "models": config["models"]}
    path = triton.repository.parent / "infersched.yaml"
    path.write_text(json.dumps(settings))
    with ServedScheduler(["--config", str(path)]) as served:
        yield served.address


@dataclass(frozen=True)
class Offered:
    """One class of requests in a load."""

    model: str
    rate_per_s: float
    objective_ms: float
    workload: str = "simple"
    warm_up_s: float = 1.5

    def spec(self, target: str, options: Options, seed: int = 1) -> LoadSpec:
        """`seed` is that of the arrivals."""
        return LoadSpec(
            target=target,
            model=self.model,
            workload=self.workload,
            pool=POOL,
            seed=seed,
            pool_seed=options.seed,
            connections=options.connections,
            rate_per_s=self.rate_per_s,
            # Latencies and rates are learned and queues filled by then.
            warmup_s=min(options.seconds, self.warm_up_s),
            seconds=options.seconds,
            objective_s=self.objective_ms / 1000,
        )


@dataclass(frozen=True)
class Measured:
    """One class in one load: shares of the requests that were due, latencies in ms."""

    attainment: float
    in_time_per_s: float
    p50_ms: float
    p99_ms: float
    refused: int
    problem: str = ""
    mean_batch: float = 0.0  # rows a batch of the model in the window, whoever's


def offer(
    triton: TunableTriton, target: str, classes: Sequence[Offered], options: Options, turn: int = 0
) -> list[Measured]:
    """All classes at once, each from a process of its own; every load is verified.

    Each class of each turn has arrivals of its own.
    """
    first = (options.seed * 1000 + turn) * 10
    specs = [offered.spec(target, options, first + at) for at, offered in enumerate(classes)]
    direct = [triton.asked.direct_replies(spec) for spec in specs]
    with ThreadPoolExecutor(len(specs)) as pool:
        return list(pool.map(lambda spec, replies: _load(triton, spec, replies), specs, direct))


def _load(triton: TunableTriton, spec: LoadSpec, direct: dict[int, bytes]) -> Measured:
    edges: list[tuple[int, int]] = []
    result = run_load(spec, lambda: edges.append(triton.asked.executed(spec.model)))
    (rows_before, runs_before), (rows, runs) = edges
    mean_batch = (rows - rows_before) / max(runs - runs_before, 1)
    return replace(measured(result, direct), mean_batch=mean_batch)


def measured(result: LoadResult, direct: dict[int, bytes]) -> Measured:
    window = result.window
    seconds = window["duration_ns"] / 1e9
    return Measured(
        attainment=window["good"] / max(window["due"], 1),
        in_time_per_s=window["good"] / seconds,
        p50_ms=result.latency_ns["p50"] / 1e6,
        p99_ms=result.latency_ns["p99"] / 1e6,
        refused=sum(n for code, n in result.totals["statuses"].items() if code != "0"),
        problem=problem_of(result, direct),
    )


def problem_of(result: LoadResult, direct: dict[int, bytes]) -> str:
    """Why a load with refusals was not faultless; empty when it was.

    Every request has one answer, kept replies equal the direct ones, and what is not OK is a
    refusal or an expired deadline.
    """
    totals = result.totals
    if problem := problem_of_answers(totals):
        return problem
    other = totals["statuses"].keys() - REFUSALS - {"0"}
    if other:
        return f"answers of status {min(other)}: {totals['first_error']}"
    return compare_replies(result.samples, direct)
