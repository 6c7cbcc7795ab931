"""`infersched profile` on a real Triton whose model sleeps a known time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.cli.main import main
from scheduler.config.profile import load_profile
from scheduler.profiling.inputs import RequestMaker, random_inputs
from scheduler.profiling.measure import Server
from tests import models

# Long enough that a busy machine adds little to them.
PER_ROW_S, PER_BATCH_S = 0.004, 0.02


@pytest.fixture(scope="module")
def sleeping(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("sleeping")
    times = {"per_execution_s": PER_BATCH_S, "per_row_s": PER_ROW_S}
    models.slow(repository, "sleeping", **times, max_batch_size=8, instances=2)
    models.slow(
        repository,
        "joined",
        **times,
        max_batch_size=8,
        instances=2,
        dynamic_batching=models.DynamicBatching((), 200_000),
    )
    models.sequence(repository)
    models.failing(repository)
    models.identity(repository)
    models.identity(repository, "identities", instances=2)
    models.ensemble(repository, "pair", steps=("identities", "identity"))
    models.ensemble(repository, "wide", steps=("identities",))
    models.ensemble(repository, "nested", steps=("wide", "pair"))
    with EmbeddedTriton(repository) as triton:
        yield triton


def profile(triton: EmbeddedTriton, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", "--server", triton.grpc_address, *arguments])


def test_the_time_that_a_model_sleeps_is_found(sleeping: EmbeddedTriton, tmp_path: Path) -> None:
    saved, plot = tmp_path / "p.json", tmp_path / "p.svg"
    np.savez(tmp_path / "i.npz", INPUT0=np.ones((3, 16), dtype=np.float32))
    result = profile(
        sleeping, "sleeping", "--repeats", "9", "--inputs", str(tmp_path / "i.npz"),
        "--save", str(saved), "--plot", str(plot), "--output", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    measured = load_profile(saved)
    assert json.loads(result.stdout) == measured.model_dump(mode="json")
    assert measured.model.name == "sleeping"
    assert measured.in_flight == 2
    assert [(s.rows, s.batches) for s in measured.sizes] == [(n, 9) for n in (1, 2, 3, 4, 6, 8)]
    for size in measured.sizes:
        slept_ns = (PER_BATCH_S + PER_ROW_S * size.rows) * 1e9
        assert slept_ns <= size.median_ns < 3 * slept_ns
    assert plot.read_text().startswith("<svg")


def test_a_table_for_people(sleeping: EmbeddedTriton, tmp_path: Path) -> None:
    arguments = ("--sizes", "1,4", "--repeats", "3", "--save", str(tmp_path / "p.json"))
    plot = tmp_path / "p.png"
    result = profile(sleeping, "sleeping", *arguments, "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "MEDIAN MS" in result.output
    assert "l(b) = " in result.output
    assert f"written: {tmp_path / 'p.json'}" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing"], 1, "nothing"),
        (["sequence"], 1, "sequence model"),
        (["sleeping", "--sizes", "9"], 2, "above the model's max_batch_size 8"),
        (["sleeping", "--sizes", "0"], 2, "at least 1"),
        (["sleeping", "--sizes", "a"], 2, "not of the form"),
        (["sleeping", "--shape", "INPUT0=4"], 1, "has dims [16], not [4]"),
        (["sleeping", "--shape", "16"], 2, "not of the form"),
        (["joined", "--sizes", "1,4"], 1, "a batcher joined them"),
        (["sleeping", "--in-flight", "3"], 2, "above the model's instances, 2"),
        (["sleeping", "--seed", "-1"], 2, "--seed"),
        (["sleeping", "--plot", "p.jpg"], 2, "ends in .svg or .png"),
        (["sleeping", "--plot", "nowhere/p.svg"], 2, "no directory nowhere"),
    ],
)
def test_what_cannot_be_measured_says_why(
    sleeping: EmbeddedTriton, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    save = ["--save", str(tmp_path / "p.json"), "--repeats", "4"]
    result = profile(sleeping, *arguments, *save)
    assert result.exit_code == status, result.output
    assert message in result.output.replace("\n", " ")
    assert not (tmp_path / "p.json").exists()


def test_a_broken_archive_is_said(sleeping: EmbeddedTriton, tmp_path: Path) -> None:
    (tmp_path / "i.npz").write_bytes(b"PK\x03\x04 no archive")
    result = profile(sleeping, "sleeping", "--inputs", str(tmp_path / "i.npz"))
    assert (result.exit_code, "no inputs that can be read" in result.output) == (1, True)


def test_a_batch_that_fails_is_said(sleeping: EmbeddedTriton, tmp_path: Path) -> None:
    inputs, saved = tmp_path / "i.npz", tmp_path / "p.json"
    np.savez(inputs, INPUT0=-np.ones((1, 16), dtype=np.float32))
    result = profile(sleeping, "failing", "--inputs", str(inputs), "--save", str(saved))
    assert result.exit_code == 1
    assert "INTERNAL: " in result.output
    assert not saved.exists()


def test_batches_beside_each_other_do_not_wait_for_each_other(sleeping: EmbeddedTriton) -> None:
    """Two lanes on two instances take half the time of one, and all their batches are counted."""
    server = Server(sleeping.grpc_address)
    try:
        spec = server.model("sleeping", "")
        message = RequestMaker(spec, random_inputs(spec, {}, 1)).message(1)
        replies: list[None] = []
        started = time.monotonic()
        times = server.infer(message, 21, 2, lambda: replies.append(None))
        took_s = time.monotonic() - started
    finally:
        server.close()
    assert len(times) == len(replies) == 21
    assert min(times) >= (PER_BATCH_S + PER_ROW_S) * 1e9
    assert sum(times) > took_s * 1e9


@pytest.mark.parametrize(("name", "lanes"), [("pair", 1), ("wide", 2), ("nested", 1)])
def test_batches_of_an_ensemble_wait_for_no_other_at_its_narrowest_step(
    sleeping: EmbeddedTriton, tmp_path: Path, name: str, lanes: int
) -> None:
    arguments = (name, "--sizes", "1", "--repeats", "4", "--save", str(tmp_path / "p.json"))
    result = profile(sleeping, *arguments)
    assert result.exit_code == 0, result.output
    assert load_profile(tmp_path / "p.json").in_flight == lanes
    result = profile(sleeping, *arguments, "--in-flight", str(lanes + 1))
    assert result.exit_code == 2
    assert f"above the model's instances, {lanes}" in result.output.replace("\n", " ")


def test_no_server_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["profile", "--server", "127.0.0.1:1", "m"])
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.output
