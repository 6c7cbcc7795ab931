"""The data plane alone, as a process, steered by the test: no supervisor, no control plane.

with DataPlane() as plane:
    plane.apply(models=[identity_model()], backends=[triton.grpc_address])
    client = tritonclient.grpc.InferenceServerClient(plane.address)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from scheduler._native.counters import CountersPage
from scheduler.dataplane.frames import FrameReader, pack_frame
from scheduler.v1 import dataplane_pb2 as pb
from tests.waiting import wait_until

START_TIMEOUT_S = 60.0
# Longer than the engine keeps work for a backend that is gone, and twenty times that under ASan.
SETTLE_TIMEOUT_S = 60.0


def identity_model(
    index: int = 0,
    name: str = "identity",
    *,
    dims: Sequence[int] = (16,),
    datatype: str = "FP32",
    max_batch_size: int = 64,
    backends: Sequence[int] = (0,),
    **batching: object,
) -> pb.Model:
    """The catalog entry of tests.models.identity; `batching` overrides fields of pb.Batching."""
    settings: dict[str, object] = {
        "merge": max_batch_size > 0,
        "queue_requests_max": 10_000,
        "queue_bytes_max": 1 << 30,
        "staged_batches_max": 1,
        "idempotent": True,
        # As the control plane has it: who sets a delay or sizes wants batches formed by them.
        "fixed_delay": bool(batching.keys() & {"queue_delay_max_ns", "preferred_rows"}),
        **batching,
    }
    return pb.Model(
        index=index,
        name=name,
        version="1",
        is_default_version=True,
        max_batch_size=max_batch_size,
        inputs=[pb.Tensor(name="INPUT0", datatype=datatype, dims=dims)],
        outputs=[pb.Tensor(name="OUTPUT0", datatype=datatype, dims=dims)],
        batching=pb.Batching(**settings),  # type: ignore[arg-type]
        placements=[pb.Placement(backend_index=b, instances=1, ready=True) for b in backends],
    )


class DataPlane:
    """One `python -m scheduler.dataplane`, and this test's steering connection to it.

    Leaving the block checks that nothing is left in the data plane and that its ledger balances.
    """

    def __init__(
        self, *, environment: Mapping[str, str] | None = None, open_files: str | None = None
    ) -> None:
        """`environment` is added to ours; `open_files` is the soft and hard limit that the process
        starts with, as "256:512"."""
        self._directory = tempfile.TemporaryDirectory(prefix="infersched-test-")
        self._environment = {**os.environ, **(environment or {})}
        self._open_files = open_files
        self._reader = FrameReader()
        self._frames: list[pb.FromDataPlane] = []
        self._generation = 0
        self._models: list[pb.Model] = []
        self.events: list[pb.Event] = []
        self.applied = pb.Applied()
        self.stderr_path = Path(self._directory.name) / "stderr"

    @property
    def _steering_path(self) -> str:
        return str(Path(self._directory.name) / "steering.sock")

    @property
    def cold_socket(self) -> str:
        return str(Path(self._directory.name) / "cold.sock")

    def __enter__(self) -> DataPlane:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        steering = socket.socket(socket.AF_UNIX)
        steering.bind(self._steering_path)
        steering.listen()
        self.counters_fd = os.memfd_create("counters")
        fds = (listener.fileno(), steering.fileno(), self.counters_fd)
        command = ["prlimit", f"--nofile={self._open_files}"] if self._open_files else []
        command += [sys.executable, "-m", "scheduler.dataplane", "--listen-fd", str(fds[0])]
        command += ["--steering-fd", str(fds[1]), "--counters-fd", str(fds[2])]
        command += ["--cold-socket", self.cold_socket]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                pass_fds=fds,
                stderr=stderr,
                env=self._environment,
                start_new_session=True,
            )
        listener.close()
        steering.close()
        self._connect()
        return self

    def _connect(self) -> None:
        self._steering = socket.socket(socket.AF_UNIX)
        self._steering.settimeout(START_TIMEOUT_S)
        self._steering.connect(self._steering_path)
        hello = self._receive("hello")
        assert hello.hello.interface_version == 1

    def restart_control_plane(self) -> None:
        """Its connection ends, and another one comes."""
        self._steering.close()
        self._reader = FrameReader()
        self._frames.clear()
        self.events.clear()
        self._connect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.assert_balanced()
        finally:
            self._steering.close()
            self.process.terminate()
            try:
                self.process.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            os.close(self.counters_fd)
            stderr = self.stderr()
            self._directory.cleanup()
        if kind is None:
            assert self.process.returncode == 0, stderr
        elif stderr:
            print(f"--- stderr of the data plane ---\n{stderr}", file=sys.stderr)

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    # -- steering --------------------------------------------------------------------------------

    def apply(
        self,
        models: Sequence[pb.Model],
        backends: Sequence[str | pb.Backend],
        limits: pb.Limits | None = None,
        *,
        regions: Mapping[str, Sequence[int]] | None = None,
        loadable: Sequence[pb.LoadableModel] = (),
        connected: bool = True,
    ) -> str:
        """Applies the whole state and waits for the backends; returns the error text.

        `regions` are the shared-memory regions, with the indices of the backends that have them.
        """
        self._generation += 1
        wanted = [
            backend
            if isinstance(backend, pb.Backend)
            else pb.Backend(
                index=index, address=backend, connections=1, state=pb.BACKEND_STATE_SERVING
            )
            for index, backend in enumerate(backends)
        ]
        message = pb.Apply(
            generation=self._generation,
            models=models,
            backends=wanted,
            limits=limits,
            loadable=loadable,
        )
        for name, indices in (regions or {}).items():
            message.regions.add(name=name, backend_indices=indices)
        known = {model.index for model in self._models}
        self._models += [model for model in models if model.index not in known]
        self._send(pb.ToDataPlane(apply=message))
        self.applied = self._receive("applied").applied
        error: str = self.applied.error
        if connected and not error:
            wait_until(self._all_serving, "backends connected")
        return error

    def apply_at_once(self, *applies: pb.Apply) -> None:
        """Sends these in one write, without a turn of the loop in between."""
        frames = [pb.ToDataPlane(apply=apply).SerializeToString() for apply in applies]
        self._steering.sendall(b"".join(map(pack_frame, frames)))
        for _ in applies:
            assert self._receive("applied").applied.error == ""

    def tell_memory(self, readings: pb.MemoryReadings) -> None:
        """Figures of device memory, which have no answer."""
        self._send(pb.ToDataPlane(memory=readings))

    def snapshot(self, *indices: int) -> pb.Snapshot:
        """The state of everything; with indices of these models, and what they have learned."""
        request = pb.SnapshotRequest(model_indices=indices)
        self._send(pb.ToDataPlane(snapshot=request))
        return self._receive("snapshot").snapshot

    def turns_of_a_snapshot(self) -> int:
        """Turns of the loop until it has answered one: what a loop that sleeps needs is little."""
        before = self.page()["loop_turns"]
        self.snapshot()
        return int(self.page()["loop_turns"]) - before

    def statistics(self, *indices: int) -> dict[int, pb.ModelStatistics]:
        """What ModelStatistics shows, by model index; of all models without an index."""
        request = pb.StatisticsRequest(model_indices=indices)
        self._send(pb.ToDataPlane(statistics=request))
        return {model.index: model for model in self._receive("statistics").statistics.models}

    def model_snapshot(self, index: int = 0) -> pb.ModelSnapshot:
        return next(model for model in self.snapshot().models if model.index == index)

    def wait_queued(self, requests: int, index: int = 0) -> None:
        """Waits until exactly that many requests are queued for the model."""
        wait_until(
            lambda: self.model_snapshot(index).queued_requests == requests,
            f"{requests} requests queued",
        )

    def wait_parked(self, requests: int) -> None:
        """Waits until exactly that many requests wait for models to be loaded."""
        parked = f"{requests} requests wait for models"
        wait_until(lambda: self.page()["loading_waiting"] == requests, parked, SETTLE_TIMEOUT_S)

    def page(self) -> dict[str, int]:
        """The process counters."""
        return CountersPage(self.counters_fd).page()

    def counters(self, index: int = 0) -> dict[str, Any]:
        """The model's counters."""
        found = CountersPage(self.counters_fd).model(index)
        assert found is not None, f"model {index} has no counters"
        return found

    def ledger(self) -> dict[int, dict[str, int]]:
        """Of every model that was ever applied: admitted, how they ended, and what is left."""
        keys = ("admitted", "completed", "expired", "cancelled", "failed", "in_flight")
        page = CountersPage(self.counters_fd)
        counters = {model.index: page.model(model.index) for model in self._models}
        return {
            index: {key: entry[key] for key in keys}
            for index, entry in counters.items()
            if entry is not None  # it is removed from the catalog
        }

    def assert_balanced(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Waits until no request is left, then checks that each had exactly one answer."""
        left: dict[str, Any] = {}

        def empty() -> bool:
            left.clear()
            snapshot = self.snapshot()
            left["host_bytes"] = snapshot.host_bytes
            left["batches"] = len(snapshot.batches)
            left["parked"] = self.page()["loading_waiting"]
            for model in snapshot.models:
                left[f"queued of model {model.index}"] = model.queued_requests
                left[f"queued bytes of model {model.index}"] = model.queued_bytes
            for index, entry in self.ledger().items():
                left[f"in flight of model {index}"] = entry["in_flight"]
            return not any(left.values())

        try:
            wait_until(empty, "the data plane holds nothing", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; left: {left}") from None
        page = self.page()
        ways = ("admitted", "expired", "cancelled", "failed")
        unparked = {way: page[f"loading_{way}_total"] for way in ways}
        assert page["loading_parked_total"] == sum(unparked.values()), unparked
        for index, entry in self.ledger().items():
            ended = sum(entry[key] for key in entry if key != "admitted")
            assert entry["admitted"] == ended, f"the ledger of model {index}: {entry}"

    def drain(self, deadline_ms: int) -> None:
        self._send(pb.ToDataPlane(drain=pb.Drain(deadline_ms=deadline_ms)))

    def wait_drained(self) -> pb.Drained:
        return self._receive("drained").drained

    def wait_event(self, kind: str) -> pb.Event:
        """The next event of that kind, seen already or still to come."""
        while True:
            for position, event in enumerate(self.events):
                if event.WhichOneof("event") == kind:
                    return self.events.pop(position)
            self._read_frame()

    def events_seen(self, kind: str) -> list[pb.Event]:
        """Those of that kind that were told until now and not waited for."""
        self.snapshot()  # is told after them
        return [event for event in self.events if event.WhichOneof("event") == kind]

    def _all_serving(self) -> bool:
        states = [backend.state for backend in self.snapshot().backends]
        return all(state == pb.BACKEND_STATE_SERVING for state in states)

    def _send(self, message: pb.ToDataPlane) -> None:
        self._steering.sendall(pack_frame(message.SerializeToString()))

    def _receive(self, kind: str) -> pb.FromDataPlane:
        while True:
            for position, frame in enumerate(self._frames):
                if frame.WhichOneof("message") == kind:
                    return self._frames.pop(position)
            self._read_frame()

    def _read_frame(self) -> None:
        try:
            data = self._steering.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            raise AssertionError("the data plane closed the steering socket: " + self.stderr())
        for raw in self._reader.feed(data):
            frame = pb.FromDataPlane.FromString(raw)
            if frame.WhichOneof("message") == "event":
                self.events.append(frame.event)
            else:
                self._frames.append(frame)
