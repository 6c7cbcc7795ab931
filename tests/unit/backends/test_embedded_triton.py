"""Installing and running the embedded tritonserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from click.testing import CliRunner

from scheduler.backends import embedded_triton, triton_install
from scheduler.backends.embedded_triton import EmbeddedTriton, TritonStartError
from scheduler.cli.triton import triton as triton_command
from tests import models

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.usefixtures("needs_triton")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repository")
    models.identity(path)
    return path


def echo(address: str) -> None:
    """One request through the identity model; fails unless the rows come back."""
    values = np.arange(48, dtype=np.float32).reshape(3, 16)
    tensor = grpcclient.InferInput("INPUT0", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    with grpcclient.InferenceServerClient(address) as client:
        result = client.infer("identity", [tensor], client_timeout=30).as_numpy("OUTPUT0")
    np.testing.assert_array_equal(result, values)


def test_tool_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERSCHED_TRITON_DIR", str(tmp_path / "tools"))
    assert triton_install.default_tool_directory() == tmp_path / "tools"
    monkeypatch.delenv("INFERSCHED_TRITON_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert triton_install.default_tool_directory() == tmp_path / "cache" / "infersched" / "triton"


def test_an_old_glibc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.31")
    with pytest.raises(triton_install.TritonInstallError, match=r"needs glibc >= 2\.35.*2\.31"):
        triton_install.check_machine()


def test_another_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(triton_install.TritonInstallError, match=r"riscv64.*--backend HOST:PORT"):
        triton_install.check_machine()


def test_a_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "python_version", lambda: "3.10")
    monkeypatch.setattr(triton_install, "shared_libpython_version", lambda: None)
    with pytest.raises(triton_install.TritonInstallError, match=r"apt-get install libpython3\.10"):
        triton_install.check_python()


def test_a_libpython_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "python_version", lambda: "3.11")
    monkeypatch.setattr(triton_install, "shared_libpython_version", lambda: "3.11.99")
    with pytest.raises(triton_install.TritonInstallError, match=r"libpython is 3\.11\.99"):
        triton_install.check_python()


def test_a_python_without_stub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_install, "python_version", lambda: "3.14")
    with pytest.raises(triton_install.TritonInstallError, match=r"3\.10 to 3\.12.*not 3\.14"):
        triton_install.check_python()


def test_a_failed_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_install, "check_python", lambda: None)
    monkeypatch.setattr(triton_install, "PACKAGE", "./no such wheel")
    with pytest.raises(triton_install.TritonInstallError, match="pip could not install"):
        triton_install.install(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert triton_install.locate(tmp_path) is None


def test_what_a_killed_install_of_the_same_number_has_left_is_replaced(tmp_path: Path) -> None:
    """In a container every process has the number of the one before."""
    left = tmp_path / f"target.{os.getpid()}.partial"
    (left / "old").mkdir(parents=True)
    with triton_install.staged_directory(tmp_path / "target") as staged:
        (staged / "new").mkdir()
    assert [entry.name for entry in (tmp_path / "target").iterdir()] == ["new"]
    assert not left.exists()


def test_a_download_that_breaks_off_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def breaks_off_once(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, int(len(commands) == 1), "", "broken off")

    monkeypatch.setattr(subprocess, "run", breaks_off_once)
    triton_install.pip_install("carrier==1", tmp_path)
    assert [command[-1] for command in commands] == ["carrier==1"] * 2
    monkeypatch.setattr(triton_install, "PIP_ATTEMPTS", 1)
    commands.clear()
    with pytest.raises(triton_install.TritonInstallError, match="carrier==1:\nbroken off"):
        triton_install.pip_install("carrier==1", tmp_path)


def test_path_command_fails_without_an_install(tmp_path: Path) -> None:
    result = CliRunner().invoke(triton_command, ["path", "--directory", str(tmp_path)])
    assert result.exit_code == 1
    assert "infersched triton install" in result.output


def test_starting_without_an_install_says_what_to_run(tmp_path: Path, repository: Path) -> None:
    triton = EmbeddedTriton(repository, tool_directory=tmp_path)
    with pytest.raises(triton_install.TritonInstallError, match="infersched triton install"):
        triton.start()
    triton.close()


@needs_triton
def test_install_is_idempotent_and_path_prints_it() -> None:
    lines: list[str] = []
    installed = triton_install.install(report=lines.append)
    assert installed == triton_install.locate()
    assert lines == []
    result = CliRunner().invoke(triton_command, ["path"])
    assert result.exit_code == 0
    assert result.output.strip() == str(installed.server)


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_tests_without_a_triton_are_skipped_unless_it_is_required(
    required: str, outcome: str, tmp_path: Path
) -> None:
    one = f"{Path(__file__)}::test_serves_answers_and_cleans_up"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one],
        cwd=ROOT,
        env={
            **os.environ,
            "INFERSCHED_TRITON_DIR": str(tmp_path),
            "INFERSCHED_REQUIRE_TRITON": required,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout
    assert "no embedded Triton: make setup installs it" in done.stdout
    assert done.returncode == int(bool(required))


@needs_triton
@pytest.mark.e2e
def test_serves_answers_and_cleans_up(repository: Path) -> None:
    with EmbeddedTriton(repository) as triton:
        log_path = triton.log_path
        pid = triton.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
        with grpcclient.InferenceServerClient(triton.grpc_address) as client:
            assert client.is_server_ready()
        assert urllib.request.urlopen(str(triton.metrics_url), timeout=30).status == 200
        echo(triton.grpc_address)
        regions = f"infersched_triton_{os.getpid()}_{triton.grpc_port}_*"
        assert list(Path("/dev/shm").glob(regions))
    assert not psutil.pid_exists(pid)
    assert not list(Path("/dev/shm").glob(regions))
    assert not log_path.exists()


@needs_triton
@pytest.mark.e2e
def test_a_killed_server_starts_again_on_its_ports(repository: Path) -> None:
    with EmbeddedTriton(repository, metrics_port=None) as triton:
        address = triton.grpc_address
        assert triton.kill() == -signal.SIGKILL
        assert not triton.running
        assert triton.pid is None
        assert not triton.accepting()
        triton.start()
        triton.wait_ready()
        assert triton.grpc_address == address
        echo(address)
        assert triton.terminate() == 0


@needs_triton
@pytest.mark.e2e
def test_a_model_that_does_not_load_is_reported_with_the_log(tmp_path: Path) -> None:
    source = tmp_path / "broken.py"
    source.write_text("raise RuntimeError('no weights here')\n")
    repository = tmp_path / "repository"
    tensor = models.Tensor("INPUT0")
    models.write_model(repository, "broken", source=source, inputs=[tensor], outputs=[tensor])
    triton = EmbeddedTriton(repository, metrics_port=None)
    with pytest.raises(TritonStartError, match="no weights here"):
        triton.start_ready()
    assert not triton.running
    triton.close()


@needs_triton
@pytest.mark.e2e
def test_a_chosen_port_that_gets_taken_is_chosen_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and silent: only the bind of the server tells
        ports = iter([taken.getsockname()[1], embedded_triton.free_port()])
        monkeypatch.setattr(embedded_triton, "free_port", lambda host: next(ports))
        with EmbeddedTriton(repository, metrics_port=None) as triton:
            assert triton.grpc_port != taken.getsockname()[1]
            echo(triton.grpc_address)


@needs_triton
@pytest.mark.e2e
def test_a_fixed_port_that_is_taken_is_an_error(repository: Path) -> None:
    with EmbeddedTriton(repository, metrics_port=None) as first:
        second = EmbeddedTriton(repository, grpc_port=first.grpc_port, metrics_port=None)
        with pytest.raises(TritonStartError, match=f"listens on {first.grpc_address}"):
            second.start()
        assert not second.running
        second.close()
        echo(first.grpc_address)


@needs_triton
@pytest.mark.e2e
def test_the_server_dies_with_its_parent(repository: Path) -> None:
    program = (
        "import sys, time\n"
        "from scheduler.backends.embedded_triton import EmbeddedTriton\n"
        "triton = EmbeddedTriton(sys.argv[1], metrics_port=None)\n"
        "triton.start_ready()\n"
        "print(triton.pid, triton.grpc_port, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(repository)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert parent.stdout is not None
        pid, port = (int(word) for word in parent.stdout.readline().split())
        server = psutil.Process(pid)
        stubs = server.children(recursive=True)
        assert stubs
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs([server, *stubs], timeout=60)
    for region in Path("/dev/shm").glob(f"infersched_triton_{parent.pid}_{port}_*"):
        region.unlink()
    assert alive == []
