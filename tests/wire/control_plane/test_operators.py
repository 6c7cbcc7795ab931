"""The Control service, the command line over it, and reload."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.cli.main import main
from scheduler.v1 import control_pb2, control_pb2_grpc
from scheduler.v1 import dataplane_pb2 as pb
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import (
    TIMEOUT_S,
    failure,
)

pytestmark = pytest.mark.e2e


def test_control_shows_models_backends_queues_and_batches(
    control: ControlPlane,
    data_plane: FakeDataPlane,
    triton: EmbeddedTriton,
    operator: control_pb2_grpc.ControlStub,
) -> None:
    index = next(m.index for m in data_plane.applies[-1].models if m.name == "identity")
    data_plane.snapshot.models.add(index=index, queued_requests=4, oldest_age_ns=9)
    data_plane.snapshot.batches.add(model_index=index, backend_index=0, requests=2, rows=7)
    status = operator.GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    assert status.ready
    assert (status.models, status.models_ready, status.backends_serving) == (3, 3, 1)
    assert status.data_plane.connected
    backends = operator.ListBackends(control_pb2.ListBackendsRequest(), timeout=TIMEOUT_S).backends
    assert [(b.address, b.server_version) for b in backends] == [(triton.grpc_address, "2.51.0")]
    queues = operator.ListQueues(control_pb2.ListQueuesRequest(), timeout=TIMEOUT_S).queues
    assert [(q.model_name, q.queued_requests, q.requests_max) for q in queues] == [
        ("identity", 4, 10_000)
    ]
    batches = operator.ListBatches(control_pb2.ListBatchesRequest(), timeout=TIMEOUT_S).batches
    assert [(b.model_name, b.backend_address, b.rows) for b in batches] == [
        ("identity", triton.grpc_address, 7)
    ]
    config = operator.GetEffectiveConfig(control_pb2.GetEffectiveConfigRequest(), timeout=TIMEOUT_S)
    values = {value.path: (json.loads(value.value_json), value.origin) for value in config.values}
    assert values["backends[0].address"] == (triton.grpc_address, "flag --backend")


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("command", ["models list", "backends list", "status"])
def test_the_command_line_shows_it(
    control: ControlPlane, triton: EmbeddedTriton, command: str, output: str
) -> None:
    arguments = [*command.split(), "--control", control.control_address, "--output", output]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    if output == "json":
        shown = json.loads(result.output)
        assert shown["ready"] if command == "status" else len(shown) in (1, 3)
    else:
        wanted = {
            "models list": "identity",
            "backends list": triton.grpc_address,
            "status": "3 of 3",
        }
        assert wanted[command] in result.output


def test_queues_need_a_data_plane(
    control: ControlPlane, data_plane: FakeDataPlane, operator: control_pb2_grpc.ControlStub
) -> None:
    data_plane.vanish()

    def connected() -> bool:
        now = operator.GetStatus(control_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
        return bool(now.data_plane.connected)

    wait_until(lambda: not connected(), "disconnected")
    code, _ = failure(lambda: operator.ListQueues(control_pb2.ListQueuesRequest(), timeout=30))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_a_reload_takes_effect_and_a_bad_file_changes_nothing(
    data_plane: FakeDataPlane, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    file = tmp_path / "infersched.yaml"
    file.write_text("models:\n  identity: {slo: 20ms}\n")

    def slo_ms(apply: pb.Apply) -> float:
        identity = [model for model in apply.models if model.name == "identity"]
        return identity[0].batching.slo_ns / 1e6 if identity else 0

    with ControlPlane(data_plane, [triton.grpc_address], config_file=file) as control:
        data_plane.wait_apply(lambda apply: slo_ms(apply) == 20, "the first configuration")
        assert control.process is not None
        file.write_text(
            "server: {shared_memory_bytes_max: 16MiB}\nmodels:\n  identity: {slo: 30ms}\n"
        )
        control.process.send_signal(signal.SIGHUP)
        data_plane.wait_apply(lambda apply: slo_ms(apply) == 30, "the second configuration")
        # The segment is made once.
        assert data_plane.applies[-1].limits.shared_memory_bytes_max == 256 << 20
        file.write_text("models:\n  identity: {slow: 40ms}\n")
        control.process.send_signal(signal.SIGHUP)

        def failures() -> bool:
            with urllib.request.urlopen(f"{control.metrics_url}/metrics", timeout=30) as answer:
                return b"infersched_config_reload_failures_total 1.0" in answer.read()

        wait_until(failures, "the failure is counted")
        assert slo_ms(data_plane.applies[-1]) == 30
