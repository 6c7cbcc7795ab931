"""One load: its description, its run in an event loop, its result."""

from __future__ import annotations

import asyncio
import os
import resource
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import cpu_seconds
from benchmarks.workloads import INFER_PATH, WORKLOADS
from scheduler._native.loadgen import Load
from scheduler._native.timerfd import TimerFd

CONNECT_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 30.0
_POLL_S = 0.005
_RECORD = struct.Struct("<II")


@dataclass
class LoadSpec:
    """What to send where. Closed loop with `in_flight`, else open loop.

    `requests_max` ends the load early; without `seconds` it alone does. `watch` names groups of
    process ids whose CPU time over the measured window is wanted.
    """

    target: str
    model: str = "identity"
    workload: str = "simple"
    pool: int = 1024
    seed: int = 1
    path: str = INFER_PATH
    connections: int = 4
    in_flight: int = 0
    rate_per_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    requests_max: int | None = None
    warmup_s: float = 0.5
    seconds: float | None = 4.0
    timeout_s: float | None = None
    objective_s: float | None = None
    sample_share: float = 0.01
    samples_path: str | None = None
    watch: dict[str, list[int]] = field(default_factory=dict)
    cpus: list[int] = field(default_factory=list)
    pool_seed: int | None = None  # of the payloads; None: `seed`, which arrivals have
    tells_edges: bool = False  # prints the edges of the window as they come

    @property
    def seed_of_pool(self) -> int:
        return self.seed if self.pool_seed is None else self.pool_seed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LoadError(RuntimeError):
    """The load could not be run: no connection, or answers that never came."""


async def run_load(spec: LoadSpec, on_event: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Runs `spec` and returns totals, window and CPU times. Raises LoadError.

    `on_event` is called with "measuring" and "measured" at the edges of the window.
    """
    tell = on_event or (lambda _: None)
    loop = asyncio.get_running_loop()
    timer = TimerFd()
    load = _make_load(spec, loop, timer)
    loop.add_reader(timer.fileno(), load.wake)
    transports = await _connect(spec, load)
    try:
        load.begin()
        await _sleep_until(lambda: load.stopped, spec.warmup_s)
        tell("measuring")
        cpu = {name: cpu_seconds(pids) for name, pids in spec.watch.items()}
        own_cpu = own_cpu_s()
        load.window_begin()
        await _sleep_until(
            lambda: load.stopped and load.in_flight == 0 if spec.requests_max else False,
            spec.seconds if spec.seconds is not None else float("inf"),
        )
        load.window_end()
        own_cpu = own_cpu_s() - own_cpu
        cpu = {name: cpu_seconds(pids) - cpu[name] for name, pids in spec.watch.items()}
        tell("measured")
        load.stop()
        await _sleep_until(lambda: load.in_flight == 0, DRAIN_TIMEOUT_S)
        if load.in_flight:
            raise LoadError(f"{load.in_flight} requests were never answered")
        if spec.samples_path is not None:
            write_samples(Path(spec.samples_path), load.samples())
        return {
            "totals": load.totals(),
            "window": load.window(),
            "cpu_s": cpu,
            "load_cpu_s": own_cpu,
        }
    finally:
        loop.remove_reader(timer.fileno())
        for transport in transports:
            transport.close()


def _make_load(spec: LoadSpec, loop: asyncio.AbstractEventLoop, timer: TimerFd) -> Load:
    load = Load(
        loop,
        timer,
        path=spec.path,
        authority=spec.target,
        in_flight=spec.in_flight,
        rate_per_s=spec.rate_per_s,
        arrivals_ns=[round(at * 1e9) for at in spec.arrivals_s],
        requests_max=spec.requests_max,
        timeout_ns=_nanoseconds(spec.timeout_s),
        objective_ns=_nanoseconds(spec.objective_s),
        sample_share=spec.sample_share,
        seed=spec.seed,
    )
    for payload in WORKLOADS[spec.workload](spec.model, spec.pool, spec.seed_of_pool):
        load.add_payload(payload.message, payload.rows)
    return load


async def _connect(spec: LoadSpec, load: Load) -> list[asyncio.BaseTransport]:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.BaseTransport] = []
    try:
        for _ in range(spec.connections):
            if spec.target.startswith("unix:"):
                opened = loop.create_unix_connection(load.protocol, spec.target[5:])
            else:
                host, _, port = spec.target.rpartition(":")
                opened = loop.create_connection(load.protocol, host, int(port))
            transport, _ = await asyncio.wait_for(opened, CONNECT_TIMEOUT_S)
            transports.append(transport)
    except (OSError, asyncio.TimeoutError) as error:
        raise LoadError(f"cannot connect to {spec.target}: {error}") from error
    await _sleep_until(lambda: load.ready, CONNECT_TIMEOUT_S)
    if not load.ready:
        raise LoadError(f"{spec.target} does not speak HTTP/2 on every connection")
    return transports


async def _sleep_until(done: Callable[[], bool], seconds: float) -> None:
    """Until `done` or, at the latest, after `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not done() and (left := end - loop.time()) > 0:
        await asyncio.sleep(min(_POLL_S, left))


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_samples(path: Path, samples: list[tuple[int, bytes]]) -> None:
    """Records of payload index, size (uint32, little-endian) and the reply."""
    with open(path, "wb") as file:
        for payload, reply in samples:
            file.write(_RECORD.pack(payload, len(reply)))
            file.write(reply)


def read_samples(path: str | os.PathLike[str]) -> list[tuple[int, bytes]]:
    """What `write_samples` wrote."""
    data = Path(path).read_bytes()
    samples, at = [], 0
    while at < len(data):
        payload, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        samples.append((payload, data[at : at + size]))
        at += size
    return samples
