"""Memory of the data plane over a million requests and a thousand connections; CPU while idle.

Real Triton behind. An idle connection has done its HTTP/2 handshake and one ModelInfer, whose reply
is compared with Triton's own; after the idle time each does another one, so all were still open.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from benchmarks.loading import LoadResult, Triton, compare_replies, first_problem
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.processes import allow_open_files, resident_bytes
from benchmarks.results import Figure
from benchmarks.serving import (
    SCHEDULED,
    model_name,
    running_scheduler,
    running_triton,
    scheduler_pids,
)
from benchmarks.workloads import Payload, simple
from tests.wire.raw_client import RawClient

MODEL = model_name("simple", SCHEDULED[0])
REQUESTS_A_LOAD = 100_000
LOADS = 10
IN_FLIGHT = 64
WARMUP_REQUESTS = 20_000
IDLE_CONNECTIONS = 1_000
# For the servers to finish what the load left to do: closed connections, learned models.
SETTLE_S = 2.0
IDLE_S = 15.0


@dataclass(frozen=True)
class Idle:
    """What the servers hold and use with idle connections open."""

    bytes_a_connection: float
    cpu_percent: dict[str, float]  # of one core, by role
    problem: str


def run(options: Options) -> list[Figure]:
    allow_open_files()
    with running_triton({"simple": SCHEDULED[:1]}) as (server, triton):
        with running_scheduler(server.grpc_address) as scheduler:
            (data_plane,) = scheduler_pids(scheduler)["data_plane"]
            growth, loads = rss_growth(triton, scheduler.address, data_plane, options)
        # Another one: memory that the loads have freed would hide what connections take.
        with running_scheduler(server.grpc_address) as scheduler:
            pids = scheduler_pids(scheduler)
            loads_before_idle = [load(triton, scheduler.address, WARMUP_REQUESTS, options)]
            idle = measure_idle(triton, scheduler.address, pids, options)
    problem = first_problem(loads_before_idle) or idle.problem
    return [
        Figure.of("rss_growth_1m_requests", growth, first_problem(loads)),
        Figure.of("rss_per_idle_connection", idle.bytes_a_connection / 1000, problem),
        Figure.of("idle_cpu", sum(idle.cpu_percent.values()), problem),
    ]


def rss_growth(
    triton: Triton, address: str, data_plane: int, options: Options
) -> tuple[float, list[LoadResult]]:
    """RSS of the data plane after all loads against that after the first one."""
    resident, loads = [], []
    for number in range(1, LOADS + 1):
        loads.append(load(triton, address, REQUESTS_A_LOAD, options))
        time.sleep(SETTLE_S)
        resident.append(resident_bytes(data_plane))
        say(
            f"  after {number * REQUESTS_A_LOAD} requests: {resident[-1] / 1024:.0f} KiB, "
            f"{loads[-1].requests_per_s:.0f} requests/s {loads[-1].problem}"
        )
    return resident[-1] / resident[0], loads


def load(triton: Triton, address: str, requests: int, options: Options) -> LoadResult:
    """A closed loop of exactly that many requests, verified."""
    return triton.verified_load(
        LoadSpec(
            target=address,
            model=MODEL,
            pool=options.pool,
            seed=options.seed,
            connections=options.connections,
            in_flight=IN_FLIGHT,
            requests_max=requests,
            warmup_s=0.0,
            seconds=None,
        )
    )


def measure_idle(
    triton: Triton, address: str, pids: dict[str, list[int]], options: Options
) -> Idle:
    """Opens the connections, lets them be, uses them once more."""
    payloads = simple(MODEL, IDLE_CONNECTIONS, options.seed)
    direct = triton.direct_replies(
        LoadSpec(target=address, model=MODEL, pool=IDLE_CONNECTIONS, seed=options.seed)
    )
    (data_plane,) = pids["data_plane"]
    time.sleep(SETTLE_S)
    rows_before, _ = triton.executed(MODEL)
    resident_before = resident_bytes(data_plane)
    with connections(address, IDLE_CONNECTIONS) as clients:
        replies = [
            infer(client, payload) for client, payload in zip(clients, payloads, strict=True)
        ]
        time.sleep(SETTLE_S)
        resident = resident_bytes(data_plane)
        cpu_percent = idle_cpu(pids)
        again = [infer(client, payload) for client, payload in zip(clients, payloads, strict=True)]
    time.sleep(SETTLE_S)
    closed = resident_bytes(data_plane)
    rows = triton.executed(MODEL)[0] - rows_before
    problem = compare_replies([*enumerate(replies), *enumerate(again)], direct)
    if rows != 2 * IDLE_CONNECTIONS:
        problem = problem or f"Triton executed {rows} rows of {2 * IDLE_CONNECTIONS} sent"
    a_connection = (resident - resident_before) / IDLE_CONNECTIONS
    say(
        f"  {IDLE_CONNECTIONS} connections: {resident_before / 1024:.0f} KiB before, "
        f"{resident / 1024:.0f} open, {closed / 1024:.0f} closed; "
        f"{a_connection / 1000:.1f} KB each {problem}"
    )
    shown = ", ".join(f"{role} {percent:.3f} %" for role, percent in cpu_percent.items())
    say(f"  idle for {IDLE_S:.0f} s: {shown} of one core")
    return Idle(a_connection, cpu_percent, problem)


def idle_cpu(pids: dict[str, list[int]]) -> dict[str, float]:
    """CPU time of each role over the idle time, in percent of one core."""
    began_s = time.monotonic()
    before = {role: _cpu_seconds(group) for role, group in pids.items()}
    time.sleep(IDLE_S)
    elapsed_s = time.monotonic() - began_s
    return {
        role: (_cpu_seconds(group) - before[role]) / elapsed_s * 100 for role, group in pids.items()
    }


@contextlib.contextmanager
def connections(address: str, count: int) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(address)) for _ in range(count)]


def infer(client: RawClient, payload: Payload) -> bytes:
    """One ModelInfer. Returns the reply message, empty when the status is not OK."""
    stream = client.infer(service_pb2.ModelInferRequest.FromString(payload.message))
    if client.trailers(stream).get("grpc-status") != "0":
        return b""
    return client.data(stream)[5:]


def _cpu_seconds(pids: list[int]) -> float:
    """As `processes.cpu_seconds`, but in nanoseconds: what idles is far below a clock tick.

    The clock of another process is named as in clock_getcpuclockid(3).
    """
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids) / 1e9
