"""A real Triton beside another tenant of its device: the model of tests/models that takes memory as
an allocator does, shown by the NVML of tests/nvml to the real pynvml.

* A load of a minute, while the tenant takes and frees memory: errors that reached clients, the
  predicted need of the largest batch against the model's own, and calls of NVML.
* The same tenant for a shorter time, with the ledger and with fixed batch caps that know nothing.
* From the moment in which the tenant takes memory to a smaller limit in the data plane: at rest,
  and while batches run and memory moves.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.gpu_tenant import FiguresTenant
from benchmarks.loading import LoadResult
from benchmarks.openloop.load import LoadSpec
from benchmarks.options import Options, say
from benchmarks.results import Figure
from benchmarks.slo_servers import TunableTriton, tunable_triton
from scheduler.dataplane.frames import FrameReader, pack_frame
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.load import load as closed_loop
from tests.nvml.figures import FILE_VARIABLE, Figures, gpu
from tests.nvml.loaded import library_folder
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, output

MIB, GIB = 1 << 20, 1 << 30
TOTAL = 6 * GIB
WEIGHTS, BASE, PER_ROW = 512 * MIB, 256 * MIB, 64 * MIB
MODEL, ROWS_MAX = "arena", 64
PER_EXECUTION_S, PER_ROW_S = 0.01, 0.0001
# What the tenant wants. The most, which it begins with, leaves room for 16 rows.
MOST = 4300 * MIB
WANTS = (MOST, MOST, 4000 * MIB, 3500 * MIB, 2 * GIB, 0)
FIRST_S = 0.5
CAPS = (8, 12, 16, 24, 32)
IN_FLIGHT = 256
# Up to as many rows a lone request, to learn the need; the engine then goes to twice as many.
LEARNED_ROWS = 16
# What the poller takes for rest begins so long after memory moved last.
REST_S = 2.2
IDLE_PERIOD_S = 0.2
WAIT_S = 60.0
LOOK_PERIOD_S = 0.002
# A limit that has shrunk: between what the model has room for already and twice as much.
SMALL = LEARNED_ROWS * 3 // 2
REPLIES = "infersched_out_of_memory_replies_total{"


@dataclass(frozen=True)
class Extent:
    """How long and how often."""

    load_s: float = 60.0
    compared_s: float = 15.0
    caps: tuple[int, ...] = CAPS
    takings: int = 20  # of each kind


SHORT = Extent(load_s=2.0, compared_s=1.0, caps=(8,), takings=2)


class DataPlaneView:
    """A second steering connection, which only looks."""

    def __init__(self, scheduler: ServedScheduler) -> None:
        plane = scheduler.child("scheduler.dataplane")
        paths = {c.laddr for c in plane.net_connections(kind="unix")}
        path = next(p for p in paths if p.endswith("/steering"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(path)
        self._reader = FrameReader()

    def need(self) -> pb.MemorySnapshot | None:
        """What is known of the model on its device, as of now."""
        return next((need for model in self.snapshot().models for need in model.memory), None)

    def snapshot(self) -> pb.Snapshot:
        """With what is known of the model."""
        request = pb.ToDataPlane(snapshot=pb.SnapshotRequest(model_indices=[0]))
        self._socket.sendall(pack_frame(request.SerializeToString()))
        while True:
            for frame in self._reader.feed(self._socket.recv(1 << 16)):
                message = pb.FromDataPlane.FromString(frame)
                if message.WhichOneof("message") == "snapshot":
                    return message.snapshot

    def close(self) -> None:
        self._socket.close()


@dataclass
class Bench:
    """One Triton, its device, and what is run before it."""

    triton: TunableTriton
    figures: Figures
    options: Options
    extent: Extent

    @contextlib.contextmanager
    def scheduler(self, rows_max: int = 0) -> Iterator[ServedScheduler]:
        """Before a model that has just been loaded; with `rows_max` no device is known."""
        self.tenant_holds(0)
        self.unload()  # a load alone would have both arenas for a while
        self.triton.load(MODEL, None)
        config: dict[str, object] = {
            "backends": [{"address": self.triton.address, "metrics": "off"}],
            "models": {MODEL: {"max_batch_rows": rows_max} if rows_max else {"gpus": [0]}},
        }
        if rows_max:
            config["device_memory"] = {"nvml": "off"}
        path = self.triton.repository.parent / "infersched.yaml"
        path.write_text(json.dumps(config))
        nvml = {"LD_LIBRARY_PATH": str(library_folder()), FILE_VARIABLE: str(self.figures.path)}
        with ServedScheduler(["--config", str(path)], environment=nvml) as served:
            yield served

    def unload(self) -> None:
        """Returns when the device is empty."""
        with connected(self.triton.address) as stub:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=MODEL)
            stub.RepositoryModelUnload(request, timeout=WAIT_S)
        wait(lambda: self.taken_by_models() == 0, "the unloaded model's memory")

    def taken_by_models(self) -> int:
        with self.figures.locked():
            self.figures.forget_dead(0)
            device = self.figures.devices[0]
            return int(device.used_bytes - device.other_bytes)

    def tenant_holds(self, wanted: int) -> None:
        """The other tenant has so much, or what there is."""
        FiguresTenant(self.figures).hold(wanted)

    @contextlib.contextmanager
    def tenant(self) -> Iterator[None]:
        """Takes and frees, the same in every run; has the most until the model has run a while."""
        turns, stop = random.Random(self.options.seed), threading.Event()

        def take() -> None:
            while self.taken_by_models() <= WEIGHTS:
                if stop.wait(LOOK_PERIOD_S):
                    return
            if stop.wait(FIRST_S):
                return
            while not stop.wait(turns.uniform(0.3, 1.5)):
                self.tenant_holds(turns.choice(WANTS))

        self.tenant_holds(MOST)
        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def spec(self, target: str, seconds: float) -> LoadSpec:
        return LoadSpec(
            target=target,
            model=MODEL,
            pool=64,
            seed=self.options.seed,
            connections=self.options.connections,
            in_flight=IN_FLIGHT,
            warmup_s=0.2,
            seconds=seconds,
        )

    def load(self, scheduler: ServedScheduler, seconds: float) -> LoadResult:
        """Answers are compared with Triton's own, rows with its statistics."""
        spec = self.spec(scheduler.address, seconds)
        with self.tenant():
            return self.triton.asked.verified_load(spec)


def run(options: Options) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="infersched-devices-") as directory:
        repository = Path(directory) / "models"
        figures = Figures.create(Path(directory) / "figures", [gpu("GPU-aaaa", TOTAL)])
        needs = models.Arena(figures.path, 0, BASE, PER_ROW, weights_bytes=WEIGHTS)
        models.arena(
            repository,
            needs,
            MODEL,
            max_batch_size=ROWS_MAX,
            per_execution_s=PER_EXECUTION_S,
            per_row_s=PER_ROW_S,
        )
        with tunable_triton(repository) as triton:
            triton.load(MODEL, None)
            bench = Bench(triton, figures, options, SHORT if options.short else Extent())
            # Asked once, while there is room.
            triton.asked.direct_replies(bench.spec(triton.address, 1.0))
            return [*minute(bench), *compared(bench), *shrinking(bench)]


def minute(bench: Bench) -> list[Figure]:
    seconds = bench.extent.load_s
    say(f"a load of {seconds:.0f} s beside another tenant")
    with bench.scheduler() as scheduler, watching(scheduler) as view:
        before, began = bench.figures.devices[0].calls, time.monotonic()
        load = bench.load(scheduler, seconds)
        calls = (bench.figures.devices[0].calls - before) / (time.monotonic() - began)
        replies, need = out_of_memory(scheduler), view.need()
    errors = load.totals["sent"] - load.totals["ok"]
    say(
        f"  {load.requests_per_s:.0f}/s, {errors} errors, {replies:.0f} batches ran out of memory "
        f"and were run again, {calls:.1f} NVML calls/s {load.problem}"
    )
    problem = "" if errors else load.problem
    return [
        Figure.of("device_memory_real_client_errors", errors, problem),
        prediction(need, load.problem),
        Figure.of("device_memory_nvml_calls", calls),
    ]


def prediction(need: pb.MemorySnapshot | None, problem: str) -> Figure:
    """Of a batch of the most rows."""
    name = "device_memory_real_prediction_error"
    if need is None or not need.known:
        return Figure.of(name, 0, "nothing was learned")
    predicted, actual = need.base_bytes + need.bytes_per_row * ROWS_MAX, BASE + PER_ROW * ROWS_MAX
    say(
        f"  learned: {need.base_bytes / MIB:.0f} MiB and {need.bytes_per_row / MIB:.2f} MiB a row; "
        f"largest batch {need.rows_high}"
    )
    return Figure.of(name, abs(predicted / actual - 1) * 100, problem)


def compared(bench: Bench) -> list[Figure]:
    """Against the largest fixed cap of which no batch failed."""
    seconds, safe, problem = bench.extent.compared_s, 0.0, ""
    with bench.scheduler() as scheduler:
        ours = bench.load(scheduler, seconds)
    say(f"  {seconds:.0f} s: {ours.requests_per_s:.0f}/s {ours.problem}")
    for cap in bench.extent.caps:
        with bench.scheduler(cap) as scheduler:
            load = bench.load(scheduler, seconds)
            failed = out_of_memory(scheduler)
        say(f"  cap {cap}: {load.requests_per_s:.0f}/s, {failed:.0f} failed {load.problem}")
        if failed:
            break
        safe, problem = load.requests_per_s, problem or load.problem
    problem = ours.problem or problem or ("" if safe else "no cap held")
    ratio = ours.requests_per_s / safe if safe else 0.0
    return [Figure.of("device_memory_real_ratio_to_safe_cap", ratio, problem)]


# -- time to shrink --------------------------------------------------------------------------------


def shrinking(bench: Bench) -> list[Figure]:
    turns = random.Random(bench.options.seed)
    with bench.scheduler() as scheduler, watching(scheduler) as view:
        rows = 0
        while rows < LEARNED_ROWS:
            rows = learn_next(scheduler.address, view, rows)
        say(f"time to shrink from twice {rows} rows to {rows}")
        rest = shrinks(bench, view, lambda: REST_S + turns.uniform(0, IDLE_PERIOD_S), "at rest")
        # Batches of 8 rows at most, which the model has room for.
        with closed_loop(scheduler.address, clients=2, model=MODEL) as seen:
            moving = shrinks(bench, view, lambda: turns.uniform(0.2, 0.5), "while batches run")
    problem = str(seen.errors[0]) if seen.errors else ""
    return [
        Figure.of("device_memory_shrink_at_rest", max(rest) * 1000),
        Figure.of("device_memory_shrink_moving", max(moving) * 1000, problem),
    ]


def learn_next(address: str, view: DataPlaneView, largest: int) -> int:
    """Asks for more rows than the largest request had, as many as there is room for."""
    wait(lambda: limit(view) > largest, f"room for more than {largest} rows")
    rows = min(limit(view), LEARNED_ROWS)
    ask(address, rows)
    wait(lambda: shown(view).rows_high >= rows, f"{rows} rows to be counted")
    return rows


def shrinks(
    bench: Bench, view: DataPlaneView, pause_s: Callable[[], float], what: str
) -> list[float]:
    """Seconds from each taking to a smaller limit."""
    found = []
    for _ in range(bench.extent.takings):
        bench.tenant_holds(0)
        wait(lambda: limit(view) > SMALL, "all of the device")
        time.sleep(pause_s())
        began = time.monotonic()
        bench.tenant_holds(MOST)
        wait(lambda: limit(view) <= SMALL, "a smaller limit")
        found.append(time.monotonic() - began)
    say(
        f"  {what}: to a smaller limit {median(found) * 1e3:.0f} ms, at most {max(found) * 1e3:.0f}"
    )
    return found


def shown(view: DataPlaneView) -> pb.MemorySnapshot:
    return view.need() or pb.MemorySnapshot()


def limit(view: DataPlaneView) -> int:
    """Rows of the largest batch now."""
    return shown(view).rows_limit or ROWS_MAX


@contextlib.contextmanager
def watching(scheduler: ServedScheduler) -> Iterator[DataPlaneView]:
    """Once the device is known to the data plane."""
    view = DataPlaneView(scheduler)
    try:
        wait(lambda: shown(view).rows_limit > 0, "a limit by the memory of the device")
        yield view
    finally:
        view.close()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Raises TimeoutError when it does not come."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:.0f} s in vain for {what}")
        time.sleep(LOOK_PERIOD_S)


def ask(address: str, rows: int) -> None:
    """One request of so many rows, which must be answered with its own values."""
    values = np.random.default_rng(rows).random((rows, 16), dtype=np.float32)
    with connected(address) as stub:
        answer = stub.ModelInfer(infer_request(values, model=MODEL), timeout=WAIT_S)
    np.testing.assert_array_equal(output(answer), values)


def out_of_memory(scheduler: ServedScheduler) -> float:
    """Batches that failed for it, by the scheduler's metrics."""
    with urllib.request.urlopen(scheduler.metrics_url, timeout=WAIT_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(REPLIES))
