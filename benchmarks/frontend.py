"""The front end alone: the data plane before a stub backend against a grpc.aio echo, a core each.

Servers run on one core, the load and the stub backend on another. The load is h2load, or where it
is missing our own generator, which in any case runs beside it and checks the replies.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from tritonclient.grpc import service_pb2

from benchmarks import h2load
from benchmarks.loading import LoadResult, compare_replies, run_load
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.processes import cpu_seconds
from benchmarks.results import Figure
from benchmarks.stub_process import Counts, StubProcess, started_on
from benchmarks.workloads import simple
from tests.dataplane import DataPlane, identity_model

MODEL = "identity"
CONNECTIONS = h2load.CONNECTIONS
IN_FLIGHT = CONNECTIONS * h2load.STREAMS_A_CONNECTION
PROBE_REQUESTS = 4_000
# As `infersched serve` has it without configuration.
STAGED_BATCHES = 2
# Below this share of its core the server under test was waiting, not working.
SATURATED = 0.9


@dataclass
class Side:
    """One server under test. `stub` counts what was executed: the backend, or the server itself."""

    word: str
    address: str
    pid: int
    stub: StubProcess
    expected: dict[int, bytes]
    h2load_rates: list[float] = field(default_factory=list)
    own_rates: list[float] = field(default_factory=list)
    utilisations: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    problem: str = ""

    def found(self, problem: str) -> None:
        self.problem = self.problem or (f"{self.word}: {problem}" if problem else "")


def run(options: Options) -> list[Figure]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("the front end is measured on two cores, there is one")
        return [Figure.of("frontend_ratio", 0.0, "one core")]
    with_h2load = h2load.available()
    if not with_h2load:
        say("no h2load (Debian: nghttp2-client): both sides are loaded by our own generator")
    with servers(options, cores[0], cores[1]) as (plane, aio):
        for side in (aio, plane):
            measure_own(side, options, cores[1], seconds=min(0.5, options.seconds))
            side.own_rates.clear()
        for _ in range(options.rounds):
            for side in (aio, plane):
                if with_h2load:
                    measure_h2load(side, options, cores[1])
                measure_own(side, options, cores[1], options.seconds)
    return [figure(plane, aio, with_h2load)]


@contextlib.contextmanager
def servers(options: Options, server_core: int, load_core: int) -> Iterator[tuple[Side, Side]]:
    """The data plane with its stub backend, and the grpc.aio echo."""
    payloads = simple(MODEL, options.pool, options.seed)
    same = {index: payload.message for index, payload in enumerate(payloads)}
    echoed = {index: echo_of(message) for index, message in same.items()}
    with contextlib.ExitStack() as stack:
        with started_on(load_core):
            backend = stack.enter_context(StubProcess("benchmarks.echo_backend"))
        with started_on(server_core):
            aio = stack.enter_context(StubProcess("benchmarks.grpc_aio_echo"))
            plane = stack.enter_context(DataPlane())
        model = identity_model(name=MODEL, staged_batches_max=STAGED_BATCHES)
        model.outputs[0].name = model.inputs[0].name
        error = plane.apply([model], [backend.address])
        if error:
            raise RuntimeError(f"the data plane refuses its model: {error}")
        yield (
            Side("data plane", plane.address, plane.process.pid, backend, echoed),
            Side("grpc.aio", aio.address, aio.pid, aio, same),
        )


def echo_of(message: bytes) -> bytes:
    """The reply to a request of the simple workload by the backend that returns its inputs."""
    request = service_pb2.ModelInferRequest.FromString(message)
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return bytes(response.SerializeToString())


def measure_h2load(side: Side, options: Options, load_core: int) -> None:
    """One run of h2load that takes about the wanted time."""
    message = simple(MODEL, 1, options.seed)[0].message
    rate = side.h2load_rates[-1] if side.h2load_rates else None
    if rate is None:
        rate = h2load.run_h2load(side.address, message, PROBE_REQUESTS, load_core).requests_per_s
    requests = math.ceil(rate * options.seconds / CONNECTIONS) * CONNECTIONS
    before, cpu_before_s = side.stub.counts(), cpu_seconds([side.pid])
    stub_cpu_before_s = cpu_seconds([side.stub.pid])
    result = h2load.run_h2load(side.address, message, requests, load_core)
    executed = side.stub.counts() - before
    busy = (cpu_seconds([side.pid]) - cpu_before_s) / result.elapsed_s
    stub_busy = (cpu_seconds([side.stub.pid]) - stub_cpu_before_s) / result.elapsed_s
    side.found(result.problem or problem_of_counts(executed, requests))
    side.h2load_rates.append(result.requests_per_s)
    side.utilisations.append(busy)
    side.cpu_us.append(busy * result.elapsed_s / requests * 1e6)
    beside = "" if side.pid == side.stub.pid else f", stub {stub_busy:.0%}"
    say(
        f"  h2load, {side.word}: {result.requests_per_s:.0f} requests/s, {requests} requests in "
        f"{executed.executions} executions; server {busy:.0%} of its core, on the other one h2load "
        f"{result.cpu_s / result.elapsed_s:.0%}{beside} {side.problem}"
    )


def measure_own(side: Side, options: Options, load_core: int, seconds: float) -> None:
    """One run of our own generator with distinct payloads; a share of the replies is compared."""
    before = side.stub.counts()
    watched = {"server": [side.pid]}
    if side.stub.pid != side.pid:
        watched["stub"] = [side.stub.pid]
    result = run_load(
        LoadSpec(
            target=side.address,
            model=MODEL,
            pool=options.pool,
            seed=options.seed,
            connections=CONNECTIONS,
            in_flight=IN_FLIGHT,
            seconds=seconds,
            watch=watched,
            cpus=[load_core],
        )
    )
    executed = side.stub.counts() - before
    side.found(result.problem or problem_of_counts(executed, result.totals["sent_rows"]))
    side.found(problem_of_replies(side, result))
    side.own_rates.append(result.requests_per_s)
    cpu = "  ".join(f"{name} {result.cpu_us(name):.1f}" for name in watched)
    say(
        f"  own generator, {side.word}: {result.requests_per_s:.0f} requests/s, p50 "
        f"{result.latency_ns['p50'] / 1e3:.0f} us; CPU us/request: {cpu}; "
        f"{len(result.samples)} replies compared {side.problem}"
    )


def problem_of_counts(executed: Counts, sent: int) -> str:
    """All requests of these loads have one row."""
    return "" if executed.rows == sent else f"{executed.rows} rows executed of {sent} sent"


def problem_of_replies(side: Side, result: LoadResult) -> str:
    """Why the kept replies are not the expected ones; empty when they are."""
    if side.stub.pid != side.pid:
        return compare_replies(result.samples, side.expected)
    wrong = sum(reply != side.expected[payload] for payload, reply in result.samples)
    return f"{wrong} replies are not the request" if wrong else ""


def figure(plane: Side, aio: Side, with_h2load: bool) -> Figure:
    """The median over rounds of the data plane's rate against grpc.aio's."""
    own = median(a / b for a, b in zip(plane.own_rates, aio.own_rates, strict=True))
    say(
        f"own generator: {median(plane.own_rates):.0f} against {median(aio.own_rates):.0f} "
        f"requests/s, {own:.1f}x"
    )
    if not with_h2load:
        return Figure.of("frontend_ratio", own, plane.problem or aio.problem)
    pairs = zip(plane.h2load_rates, aio.h2load_rates, strict=True)
    ratio = median(a / b for a, b in pairs)
    busy = median(plane.utilisations)
    say(
        f"h2load: {median(plane.h2load_rates):.0f} against {median(aio.h2load_rates):.0f} "
        f"requests/s, {ratio:.1f}x {plane.problem or aio.problem}"
    )
    cpu = [median(side.cpu_us) for side in (plane, aio)]
    say(f"server CPU a request: {cpu[0]:.2f} against {cpu[1]:.1f} us, {cpu[1] / cpu[0]:.1f}x")
    if busy < SATURATED:
        say(
            f"the data plane used {busy:.0%} of its core: load and stub backend on the other one "
            "(or other work on the machine) were the bottleneck, the ratio is a lower bound"
        )
    return Figure.of("frontend_ratio", ratio, plane.problem or aio.problem)
