"""What the data plane is told of latencies, and what is kept of those it has learned."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from click.testing import CliRunner

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.cli.main import main
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import all_ready

pytestmark = pytest.mark.e2e

MS = 1_000_000
READ_S = 20.0


def index_of(data_plane: FakeDataPlane, name: str) -> int:
    return next(m.index for m in data_plane.applies[-1].models if m.name == name)


def prior_of(apply: pb.Apply, name: str) -> dict[int, int]:
    """Mean time in nanoseconds by rows."""
    return {
        size.rows: size.backend_ns // size.batches
        for model in apply.models
        if model.name == name
        for size in model.placements[0].latency_prior
    }


def learned(data_plane: FakeDataPlane, name: str, ms: int) -> pb.Snapshot:
    """A snapshot in which batches of one row of this model take `ms`."""
    snapshot = pb.Snapshot()
    latency = snapshot.models.add(index=index_of(data_plane, name)).latencies.add(observations=50)
    latency.sizes.add(rows=1, batches=50, backend_ns=50 * ms * MS)
    return snapshot


def test_batches_that_triton_has_run_are_a_prior(
    data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    with tritonclient.grpc.InferenceServerClient(triton.grpc_address) as client:
        rows = tritonclient.grpc.InferInput("INPUT0", [3, 16], "FP32")
        rows.set_data_from_numpy(np.zeros((3, 16), dtype=np.float32))
        client.infer("identity", [rows])
    with ControlPlane(data_plane, [triton.grpc_address]):
        data_plane.wait_apply(lambda a: prior_of(a, "identity").get(3, 0) > 0, "a prior")
    assert prior_of(data_plane.applies[-1], "decoupled") == {}


def test_what_was_learned_is_kept_over_a_restart_of_everything(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    settings = {"server.state_directory": str(tmp_path / "state"),
                "server.drain.propagation_wait": "0s"}  # fmt: skip
    for life, expected in ((6, None), (9, 6 * MS)):
        with (
            FakeDataPlane() as data_plane,
            ControlPlane(data_plane, [triton.grpc_address], settings=settings) as control,
        ):
            apply = data_plane.wait_apply(all_ready, "every model ready")
            if expected is not None:
                assert prior_of(apply, "identity") == {1: expected}
            data_plane.snapshot = learned(data_plane, "identity", life)
            assert control.terminate() == 0
    (entry,) = json.loads((tmp_path / "state" / "latencies.json").read_text())["latencies"]
    assert entry["sizes"][0]["mean_ns"] == 9 * MS


def test_a_new_data_plane_is_told_what_the_old_one_learned(
    data_plane: FakeDataPlane, triton: EmbeddedTriton
) -> None:
    with ControlPlane(data_plane, [triton.grpc_address]):
        data_plane.wait_apply(all_ready, "every model ready")
        data_plane.snapshot = learned(data_plane, "identity", 6)
        file = data_plane.runtime_directory / "latencies.json"
        wait_until(file.exists, "it is kept", READ_S)
        assert prior_of(data_plane.applies[-1], "identity").get(1) != 6 * MS
        data_plane.vanish()
        data_plane.pid += 1
        data_plane.listen()
        data_plane.wait_apply(lambda a: prior_of(a, "identity") == {1: 6 * MS}, "the prior")


def test_operators_see_what_was_learned(
    data_plane: FakeDataPlane, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text(
        f"backends: [{{address: '{triton.grpc_address}', executor: gpu}}]\n"
        "models: {identity: {slo: 5ms, attainment: 0.95}}\n"
    )

    def shown(*command: str) -> str:
        arguments = [*command, "--control", control.control_address]
        return CliRunner().invoke(main, arguments).output

    with ControlPlane(data_plane, config_file=config) as control:
        data_plane.wait_apply(all_ready, "every model ready")
        data_plane.snapshot = learned(data_plane, "identity", 6)
        data_plane.snapshot.shared_memory.used_bytes = 8192
        latency = data_plane.snapshot.models[0].latencies[0]
        latency.alpha_ns, latency.beta_ns, latency.rows_target = 1_053_000, 5_072_000, 12
        latency.known, latency.margin, latency.error_mean = True, 1.25, -0.01
        wait_until(lambda: "is below" in shown("status"), "it is read", READ_S)
        assert "models.identity.slo: 5ms is below the 6 ms" in shown("status")
        listed = next(li for li in shown("models", "list").splitlines() if "identity" in li)
        assert "1.053 b + 5.072" in listed
        assert listed.split()[-1] == "12"
        described = shown("models", "describe", "identity")
        for words in ("load_aware", "95.00%", "1, executor 1", "1.250", "-1.0%", "6.000", "5ms"):
            assert words in described
        (model,) = json.loads(shown("models", "describe", "identity", "--output", "json"))
        assert model["placements"][0]["latency"]["observations"] == 50
        assert "no model 'x'" in shown("models", "describe", "x")
        with urllib.request.urlopen(control.metrics_url + "/metrics", timeout=30) as answer:
            metrics = answer.read()
        assert b"infersched_prediction_error_seconds{" in metrics
        assert b"infersched_shared_memory_used_bytes 8192.0" in metrics


def test_a_reload_to_an_objective_that_nothing_can_meet_is_refused(
    data_plane: FakeDataPlane, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    config = tmp_path / "infersched.yaml"
    config.write_text("models: {identity: {slo: 50ms}}\n")
    with ControlPlane(data_plane, [triton.grpc_address], config_file=config) as control:
        data_plane.wait_apply(all_ready, "every model ready")
        data_plane.snapshot = learned(data_plane, "identity", 6)
        file = data_plane.runtime_directory / "latencies.json"
        wait_until(file.exists, "it is learned", READ_S)
        config.write_text("models: {identity: {slo: 5ms}}\n")
        assert control.process is not None
        control.process.send_signal(signal.SIGHUP)

        def refused() -> bool:
            with urllib.request.urlopen(control.metrics_url + "/metrics", timeout=30) as answer:
                return b"infersched_config_reload_failures_total 1.0" in answer.read()

        wait_until(refused, "the reload is refused")
        identity = next(m for m in data_plane.applies[-1].models if m.name == "identity")
        assert identity.batching.slo_ns == 50 * MS
