"""The scheduler where a seccomp filter forbids what it asks of the kernel's scheduler."""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests import seccomp
from tests.dataplane import wait_until
from tests.serving import ServedScheduler

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not seccomp.SUPPORTED, reason="needs seccomp and known call numbers"),
]


def filtered(action: str, directory: Path, hints: bool) -> ServedScheduler:
    config = directory / "infersched.yaml"
    config.write_text(
        f"server: {{scheduling_hints: {str(hints).lower()}}}\nbackends: ['127.0.0.1:1']\n"
    )
    return ServedScheduler(
        ["--config", str(config)], launcher=seccomp.launcher(action), wait_ready=False
    )


def live(scheduler: ServedScheduler) -> bool:
    """Asked through the data plane, answered by the control plane."""
    with grpc.insecure_channel(scheduler.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with contextlib.suppress(grpc.RpcError):
            return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5.0).live)
    return False


@pytest.mark.parametrize(
    ("action", "hints"), [("kill", False), ("refuse", True)], ids=["killed", "refused"]
)
def test_it_serves_where_hints_are_forbidden(action: str, hints: bool, tmp_path: Path) -> None:
    with filtered(action, tmp_path, hints) as scheduler:
        wait_until(lambda: live(scheduler), "it is live")
        assert "started again" not in scheduler.log_path.read_text()


def test_a_filter_that_kills_is_named_in_the_log(tmp_path: Path) -> None:
    with filtered("kill", tmp_path, hints=True) as scheduler:
        wait_until(
            lambda: "server.scheduling_hints: false" in scheduler.log_path.read_text(),
            "what helps is said",
        )
