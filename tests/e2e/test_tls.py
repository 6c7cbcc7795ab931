"""TLS from clients and to Triton, by the files of the configuration."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_client
import yaml
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.certificates import Files
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import CHANNEL_OPTIONS, Stub, connected, infer_request, output, rows


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "certificates")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "infersched.yaml"


def listener(files: Files, **more: Any) -> dict[str, Any]:
    pair = {"certificate": str(files.server_certificate), "key": str(files.server_key)}
    return {"tls": {**pair, **more}}


@contextmanager
def serving(config_file: Path, config: dict[str, Any]) -> Iterator[ServedScheduler]:
    config_file.write_text(yaml.safe_dump(config))
    with ServedScheduler(["--config", str(config_file)], wait_ready=False) as served:
        wait_until(served.healthy, "it is ready", timeout_s=60)
        yield served


@contextmanager
def secured(address: str, credentials: grpc.ChannelCredentials) -> Iterator[Stub]:
    with grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        yield Stub(channel)


def server_ready(client: triton_client.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except InferenceServerException:
        return False


def answers(stub: Stub, first: float = 1, count: int = 1) -> bool:
    value = rows(first, count)
    response = stub.ModelInfer(infer_request(value), timeout=30, wait_for_ready=True)
    return bool(np.array_equal(output(response), value))


def refused(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a new connection gets nowhere."""
    channel = (
        grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        if credentials is None
        else grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
    )
    with channel:
        try:
            Stub(channel).ModelInfer(infer_request(rows(1)), timeout=30)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAVAILABLE)
    return False


def test_clients_are_served_over_tls(
    small_triton: EmbeddedTriton, files: Files, config_file: Path
) -> None:
    config = {"backends": [small_triton.grpc_address], "server": listener(files)}
    with serving(config_file, config) as served:
        with triton_client.InferenceServerClient(
            served.address, ssl=True, root_certificates=str(files.ca)
        ) as client:
            wait_until(lambda: server_ready(client), "its control plane is reached")
            value = rows(3, 2)
            tensor = triton_client.InferInput("INPUT0", value.shape, "FP32")
            tensor.set_data_from_numpy(value)
            result = client.infer("identity", [tensor])
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), value)
        with secured(served.address, files.channel_credentials()) as stub:
            # More than any one TLS record, read or window: 4 MiB each way.
            assert answers(stub, 7, 65_536)
            calls = [stub.ModelInfer.future(infer_request(rows(n)), timeout=30) for n in range(200)]
            for n, call in enumerate(calls):
                np.testing.assert_array_equal(output(call.result()), rows(n))
            # One without encryption fails, and nobody else notices.
            assert refused(served.address, None)
            assert answers(stub)


def test_only_clients_with_a_certificate_are_let_in(
    small_triton: EmbeddedTriton, files: Files, config_file: Path
) -> None:
    server = listener(files, client_ca=str(files.ca), min_version="1.3")
    config = {"backends": [small_triton.grpc_address], "server": server}
    with serving(config_file, config) as served:
        with secured(served.address, files.channel_credentials(with_client=True)) as stub:
            assert answers(stub)
        assert refused(served.address, files.channel_credentials())
        stranger = Files(files.directory / "stranger")
        impostor = grpc.ssl_channel_credentials(
            files.ca.read_bytes(),
            stranger.client_key.read_bytes(),
            stranger.client_certificate.read_bytes(),
        )
        assert refused(served.address, impostor)


def test_a_renewed_certificate_is_used_without_a_restart(
    small_triton: EmbeddedTriton, files: Files, config_file: Path
) -> None:
    server = listener(files, client_ca=str(files.ca))
    config = {"backends": [small_triton.grpc_address], "server": server}
    with serving(config_file, config) as served:
        before = files.channel_credentials(with_client=True)
        with secured(served.address, before) as stub:
            assert answers(stub)
            files.renew()
            # Who is connected stays so.
            assert answers(stub)
        assert refused(served.address, before)
        with secured(served.address, files.channel_credentials(with_client=True)) as stub:
            assert answers(stub)
        # A file that cannot be used changes nothing, and is told.
        files.server_certificate.write_text("no certificate")
        with secured(served.address, files.channel_credentials(with_client=True)) as stub:
            assert answers(stub)
        wait_until(lambda: "certificates not reloaded" in served.log_tail(), "it is told")


def test_connections_to_triton_are_encrypted_and_authenticated(
    small_repository: Path, files: Files, config_file: Path
) -> None:
    triton = EmbeddedTriton(
        small_repository,
        extra_arguments=[
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={files.server_certificate}",
            f"--grpc-server-key={files.server_key}",
            f"--grpc-root-cert={files.ca}",
        ],
    )
    backend = {
        "address": triton.grpc_address,
        "tls": {
            "ca": str(files.ca),
            "certificate": str(files.client_certificate),
            "key": str(files.client_key),
            "server_name": "localhost",
        },
    }
    with triton:
        backend["address"] = triton.grpc_address
        with (
            serving(config_file, {"backends": [backend]}) as served,
            connected(served.address) as stub,
        ):
            assert answers(stub, 5, 4)
        # One that trusts somebody else does not get there, and says so.
        stranger = Files(files.directory / "stranger")
        backend["tls"] = {"ca": str(stranger.ca)}
        config_file.write_text(yaml.safe_dump({"backends": [backend]}))
        with ServedScheduler(["--config", str(config_file)], wait_ready=False) as served:
            wait_until(lambda: "backend is down" in served.log_tail(), "it is told", 30)
            assert not served.healthy()


def with_own_ca(files: Files) -> list[str]:
    """A tritonserver's arguments that what happens to the scheduler's `ca` does not touch."""
    own = files.directory / "its-own-ca.pem"
    shutil.copy(files.ca, own)
    return [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={files.server_certificate}",
        f"--grpc-server-key={files.server_key}",
        f"--grpc-root-cert={own}",
    ]


def test_files_that_are_being_replaced_cost_no_backend(
    small_repository: Path, files: Files, config_file: Path
) -> None:
    with EmbeddedTriton(small_repository, extra_arguments=with_own_ca(files)) as triton:
        trust = {"ca": str(files.ca), "server_name": "localhost"}
        backend = {"address": triton.grpc_address, "tls": trust}
        with (
            serving(config_file, {"backends": [backend]}) as served,
            connected(served.address) as stub,
        ):

            def told(text: str) -> int:
                return served.log_path.read_text().count(text)

            assert answers(stub, 1)
            good = files.ca.read_bytes()
            files.ca.write_bytes(good[: len(good) // 2])
            wait_until(lambda: told("certificates not reloaded") > 0, "it is told", 30)
            before = told("certificates not reloaded")
            files.ca.unlink()
            wait_until(lambda: told("certificates not reloaded") > before, "it is told", 30)
            assert answers(stub, 2)
            assert served.healthy()
            assert told("backend is down") == 0
            # What happens meanwhile is seen, and who comes back is dialled.
            triton.kill()
            wait_until(lambda: told("backend is down") > 0, "its end is noticed", 30)
            triton.start_ready()
            wait_until(served.healthy, "it is found again", 60)
            assert answers(stub, 3)
            files.ca.write_bytes(good)
            wait_until(lambda: told("certificates reloaded") > 0, "the new ones are used", 30)
            assert answers(stub, 4)


def traced(stub: Stub) -> bool:
    """Whether Triton's trace settings come, by way of the control plane."""
    with suppress(grpc.RpcError):
        return bool(stub.TraceSetting(service_pb2.TraceSettingRequest(), timeout=30).settings)
    return False


def test_an_authority_that_is_renewed_as_a_whole_costs_no_backend(
    small_repository: Path, files: Files, config_file: Path
) -> None:
    """The Triton has its old certificate until it starts again."""
    with EmbeddedTriton(small_repository, extra_arguments=with_own_ca(files)) as triton:
        trust = {"ca": str(files.ca), "server_name": "localhost"}
        with (
            serving(
                config_file, {"backends": [{"address": triton.grpc_address, "tls": trust}]}
            ) as served,
            connected(served.address) as stub,
        ):

            def told(text: str) -> int:
                return served.log_path.read_text().count(text)

            assert answers(stub, 1)
            wait_until(lambda: traced(stub), "the control plane answers", 30)
            files.renew()
            wait_until(lambda: told("renewed certificates open no connection") > 0, "told", 30)
            assert answers(stub, 2)
            assert traced(stub)
            assert served.healthy()
            assert told("backend is down") == 0
            triton.kill()
            wait_until(lambda: told("backend is down") > 0, "its end is noticed", 30)
            triton.start_ready()
            wait_until(served.healthy, "it is found again", 60)
            assert answers(stub, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": None}, "certificate and key belong together"),
        ({"key": "{other_key}"}, "key"),
        ({"certificate": "/nowhere/server.pem"}, "/nowhere/server.pem: No such file"),
        ({"client_ca": "{server_key}"}, "authority"),
        ({"min_version": "1.1"}, "min_version"),
    ],
)
def test_files_that_cannot_be_used_end_the_start_with_2(
    files: Files, config_file: Path, change: dict[str, str | None], words: str
) -> None:
    other = Files(files.directory / "other")
    section = listener(files)["tls"]
    for key, text in change.items():
        names = {"other_key": other.server_key, "server_key": files.server_key}
        section[key] = text.format(**names) if text is not None else None
    config_file.write_text(yaml.safe_dump({"server": {"tls": section}, "backends": ["h:1"]}))
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config_file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "server.tls" in done.stderr
    assert words in done.stderr


def test_peers_that_never_finish_the_handshake_disturb_nobody(
    small_triton: EmbeddedTriton, files: Files, config_file: Path
) -> None:
    config = {"backends": [small_triton.grpc_address], "server": listener(files)}
    with serving(config_file, config) as served:
        host, _, port = served.address.rpartition(":")
        silent = [socket.create_connection((host, int(port)), 10) for _ in range(50)]
        for number, one in enumerate(silent):
            one.sendall(b"\x16\x03\x01"[: number % 4])
        with secured(served.address, files.channel_credentials()) as stub:
            assert answers(stub)
        for one in silent:
            one.close()
