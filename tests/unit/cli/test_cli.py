"""The command line: exit codes, output forms, what --help promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scheduler.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in [name for name in os.environ if name.startswith("INFERSCHED_")]:
        monkeypatch.delenv(name)
    return CliRunner()


def test_every_command_loads_and_has_the_help_it_is_listed_with(runner: CliRunner) -> None:
    listed = runner.invoke(main, ["--help"]).output
    for name, (_, _, text) in COMMANDS.items():
        result = runner.invoke(main, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert text.split(".")[0] in listed


def test_help_imports_neither_grpc_nor_pydantic() -> None:
    code = "import sys, scheduler.cli.main; print({'grpc', 'pydantic'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_every_setting_option_shows_its_environment_variable(runner: CliRunner) -> None:
    from scheduler.cli.options import SETTING_OPTIONS

    text = "".join(runner.invoke(main, ["serve", "--help"]).output.split())
    for path, *_ in SETTING_OPTIONS.values():
        assert "INFERSCHED_" + "__".join(part.upper() for part in path) in text


def test_a_bad_configuration_exits_2_and_names_key_and_fix(
    runner: CliRunner, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("defaults: {slo: 5}\n")
    for arguments in (["config", "validate", str(file)], ["serve", "--config", str(file)]):
        result = runner.invoke(main, arguments)
        assert result.exit_code == 2
        assert f"defaults.slo ({file}:1): 5 needs a unit: write 5ms or 5s" in result.output


def test_a_good_configuration_exits_0(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("backends: [triton:8001]\n")
    assert runner.invoke(main, ["config", "validate", str(file)]).exit_code == 0


def test_serve_without_a_backend_exits_2(runner: CliRunner) -> None:
    result = runner.invoke(main, ["serve"])
    assert result.exit_code == 2
    assert "--backend HOST:PORT" in result.output


def test_config_show_gives_value_and_origin(runner: CliRunner) -> None:
    arguments = ["config", "show", "--origin", "--output", "json", "--listen", "127.0.0.1:5"]
    records = json.loads(runner.invoke(main, arguments).output)
    expected = {"key": "server.listen", "value": ["127.0.0.1:5"], "origin": "flag --listen"}
    assert records == [expected]


def test_config_show_effective_has_every_key(runner: CliRunner) -> None:
    output = runner.invoke(main, ["config", "show", "--effective"]).output
    for key in ("server.drain.deadline", "defaults.max_queue_requests", "discovery.probe_period"):
        assert key in output


@pytest.mark.parametrize("command", [["models", "list"], ["backends", "list"], ["status"]])
def test_a_scheduler_that_is_not_there_exits_1(runner: CliRunner, command: list[str]) -> None:
    result = runner.invoke(main, [*command, "--control", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no scheduler answers at 127.0.0.1:1" in result.output


def test_an_unknown_option_exits_2(runner: CliRunner) -> None:
    assert runner.invoke(main, ["serve", "--nope"]).exit_code == 2


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "scheduler.cli", "version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    from scheduler import __version__

    assert done.stdout.strip() == __version__
