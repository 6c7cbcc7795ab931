"""`infersched simulate`: workloads by name and from files, reports, pictures, bad input."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scheduler.cli.main import main
from scheduler.cli.simulate import POLICIES
from scheduler.simulation.compare import NAMES

pytestmark = pytest.mark.native

FILE = """
executors: 2
noise: 0.05
warm_up: 100ms
tenants: {gold: 3, free: 1}
models:
  - name: small
    latency: {alpha: 1ms, beta: 5ms}
    slo: 40ms
    priority_levels: 2
    arrivals: {kind: gamma, rate: 100, shape: 0.5}
    classes:
      - {share: 1, priority: 1, tenant: gold}
      - {share: 3, priority: 2, tenant: free, slo: none, name: patient}
    levels: [{}, {best_effort: true}]
  - name: large
    latency: {table: [8ms, 9ms, 11ms]}
    slo: 100ms
    executors: [1]
    arrivals: {kind: on_off, rate: 20, on: 100ms, off: 50ms}
faults:
  - {kind: down, start: 500ms, end: 700ms, executor: 0}
  - {kind: clock_jump, start: 800ms, shift: -5ms}
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    for name in [name for name in os.environ if name.startswith("INFERSCHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def simulate(runner: CliRunner, *arguments: str) -> Result:
    return runner.invoke(main, ["simulate", "--requests", "500", *arguments])


def as_json(runner: CliRunner, *arguments: str) -> Any:
    result = simulate(runner, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_policies_are_those_of_the_simulator() -> None:
    assert set(POLICIES) == set(NAMES)


def test_a_named_workload_under_every_policy(runner: CliRunner) -> None:
    chosen = [argument for name in POLICIES for argument in ("--policy", name)]
    found = as_json(runner, "C", *chosen, "--load", "0.1,1", "--seeds", "2")
    points = found["points"]
    assert [point["policy"] for point in points[::2]] == list(POLICIES)
    for point in points:
        assert point["offered_per_s"] == pytest.approx(2714 * point["load"])
        assert 0 <= point["attainment_lowest"] <= point["attainment"] <= 1
        assert sum(model["offered"] for model in point["models"]) == 500
        assert len(point["models"]) == 20
    for point in points:
        if point["load"] == 0.1:
            # Its fixed wait of 10 ms is a part of the objective that it does not know of.
            low = 0.97 if point["policy"] == "ray_serve" else 1
            assert point["attainment"] >= low, point["policy"]


def test_a_table_has_a_line_for_each_load(runner: CliRunner) -> None:
    result = simulate(runner, "A", "--rate", "100,300", "--goodput")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["POLICY", "infersched", "infersched", "goodput"]
    assert [line.split()[2] for line in lines[1:3]] == ["100", "300"]


def test_a_file_with_classes_tenants_and_faults(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(FILE)
    found = as_json(runner, "w.yaml", "--load", "1,4", "--goodput")
    assert [point["offered_per_s"] for point in found["points"]] == [120, 480]
    small, large = found["points"][0]["models"]
    assert (small["name"], large["name"]) == ("small", "large")
    gold, free = small["classes"]
    assert (gold["name"], gold["priority"], gold["tenant"]) == ("class 0", 1, "gold")
    assert (free["name"], free["priority"], free["tenant"]) == ("patient", 2, "free")
    for kind in (gold, free, *large["classes"]):
        assert kind["attainment"] == pytest.approx(kind["in_time"] / kind["offered"], abs=1e-5)
    assert [(kind["name"], kind["priority"]) for kind in large["classes"]] == [("class 0", 1)]
    assert gold["offered"] * 2 < free["offered"]
    assert small["offered"] > 3 * large["offered"] > 0
    assert found["goodput"][0]["goodput_per_s"] > 0


def test_the_same_command_gives_the_same_result(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(FILE)
    first = as_json(runner, "w.yaml", "--seed", "7")
    assert as_json(runner, "w.yaml", "--seed", "7") == first
    assert as_json(runner, "w.yaml", "--seed", "8") != first


def test_the_outage_of_a_file_is_seen_over_time(runner: CliRunner, tmp_path: Path) -> None:
    text = FILE.replace("executor: 0", "").replace("end: 700ms", "end: 1500ms")
    (tmp_path / "w.yaml").write_text(text)
    found = as_json(runner, "w.yaml", "--load", "1")
    steps = found["over_time"]["policies"]["infersched"]
    away = [step for step in steps if 0.6 <= step["from_s"] <= 1.3 and step["offered"]]
    before = [step for step in steps if step["from_s"] <= 0.4 and step["offered"]]
    assert away
    assert before
    # Without a deadline a request waits; the others are lost.
    assert sum(step["in_time"] for step in before) > 0.8 * sum(s["offered"] for s in before)
    assert sum(step["in_time"] for step in away) < 0.8 * sum(s["offered"] for s in away)


def test_a_trace_and_a_profile_are_read(runner: CliRunner, tmp_path: Path) -> None:
    times = [f"{12.5 + i / 100},x" for i in range(1000)]
    (tmp_path / "t.csv").write_text("\n".join(["time,id", *reversed(times)]))
    sizes = [{"rows": rows, "batches": 9, "mean_ns": ms * 10**6, "median_ns": ms * 10**6,
              "p99_ns": ms * 10**6} for rows, ms in ((1, 4), (3, 8))]  # fmt: skip
    profile = {
        "format": "infersched-profile", "format_version": 1, "measured_at": "now", "server": "s",
        "model": {"name": "m", "version": "1", "signature": "0" * 16}, "in_flight": 1,
        "fit": {"alpha_ns": 2e6, "beta_ns": 2e6, "r_squared": 1.0}, "sizes": sizes,
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(profile))
    (tmp_path / "w.yaml").write_text(
        "warm_up: 0ms\nmodels: [{name: m, slo: 20ms, latency: {profile: p.json}, "
        "arrivals: {kind: trace, file: t.csv}}]"
    )
    (point,) = as_json(runner, "w.yaml", "--load", "1")["points"]
    assert point["offered_per_s"] == pytest.approx(100, rel=0.01)
    assert point["attainment"] == 1
    # The gaps of 10 ms leave each request alone: 4 ms, and half of them would need 2 rows.
    assert point["mean_batch"] == 1
    assert point["latency_ms"]["p50"] == pytest.approx(4, rel=0.04)


@pytest.mark.parametrize("name", ["plot.svg", "plot.html"])
def test_a_picture_needs_nothing_else(runner: CliRunner, tmp_path: Path, name: str) -> None:
    arguments = ["--policy", "infersched", "--policy", "symphony", "--load", "0.1,1"]
    assert simulate(runner, "A", *arguments, "--plot", name).exit_code == 0
    text = (tmp_path / name).read_text()
    picture = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) >= 2 for line in lines)
    assert "src=" not in text
    assert "href=" not in text


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("name: a", "name: a, value: 2"), "value"),
        (("name: a", "name: a, priority_levels: 2, aging: 1s"), "aging"),
        (("name: a", "name: a, queue_requests_max: 9"), "queue_requests_max"),
        (("name: a", "name: a, attainment: 0.9"), "attainment"),
        (("name: a", "name: a, priority_levels: 2, levels: [{attainment: 0.5}]"), "levels"),
        (("models:", "tenants: {gold: 3}\nmodels:"), "tenants"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reference_policies_are_not_asked_for_what_they_do_not_know(
    runner: CliRunner, tmp_path: Path, change: tuple[str, str], key: str
) -> None:
    plain = (
        "models: [{name: a, slo: 40ms, latency: {alpha: 1ms, beta: 5ms}, arrivals: {rate: 100}}]"
    )
    for text, status in ((plain, 0), (plain.replace(*change), 2)):
        (tmp_path / "w.yaml").write_text(text)
        assert simulate(runner, "w.yaml", "--load", "1").exit_code == 0
        result = simulate(runner, "w.yaml", "--load", "1", "--policy", "symphony")
        assert result.exit_code == status
    assert f"reference policies know nothing of: {key}" in result.output


def test_a_picture_of_pixels(runner: CliRunner, tmp_path: Path) -> None:
    assert simulate(runner, "A", "--load", "0.1,1", "--plot", "plot.png").exit_code == 0
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")


def test_no_policy_has_larger_batches_than_the_model(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(
        "executors: 2\nmodels: [{name: a, max_batch_size: 3, slo: 40ms, "
        "latency: {alpha: 1ms, beta: 5ms}, arrivals: {kind: poisson, rate: 2000}}]"
    )
    chosen = [argument for name in POLICIES for argument in ("--policy", name)]
    for point in as_json(runner, "w.yaml", *chosen, "--load", "1")["points"]:
        assert 1 <= point["mean_batch"] <= 3, point["policy"]


def test_the_end_of_a_run_is_no_outage(runner: CliRunner) -> None:
    """What came after the last counted request is open when the run ends."""
    for policy in ("infersched", "just_enough"):
        found = as_json(runner, "J", "--policy", policy, "--load", "0.3")
        steps = found["over_time"]["policies"][policy]
        assert min(s["in_time"] / s["offered"] for s in steps if s["offered"]) > 0.8, policy


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("rate: 100, shape", "rate: 100, on: 1s, shape"), "on does nothing with kind: gamma"),
        (("rate: 100", "rate: 1e-12"), "1e-12/s is no load"),
        (("on: 100ms", "on: 1ns"), "models[1].arrivals.on"),
        (("noise: 0.05", "speeds: [1, 2, 3]"), "speeds of 3 executors, but executors: 2"),
        (("warm_up: 100ms", "warm_up: 1000h"), "warm_up"),
        (("slo: 100ms", "slo: 100ms\n    aging: 1s"), "aging needs"),
        (
            ("[{}, {best_effort: true}]", "[{slo: 1s, best_effort: true}]"),
            "best_effort has neither",
        ),
        (
            ("[{}, {best_effort: true}]", "[{best_effort: true}, {slo: 90ms}]"),
            "levels[0] is best_effort and above one that is not",
        ),
        (("slo: none", "slo: 0"), "models[0].classes[1].slo (w.yaml:14): 0 is no objective; write"),
        (("slo: none", "slo: -5ms"), "models[0].classes[1].slo (w.yaml:14): -5ms is negative"),
        (
            ("slo: none", "slo: nothing"),
            "models[0].classes[1].slo (w.yaml:14): expected a duration",
        ),
        (("slo: 40ms", "slo: 40"), "models[0].slo"),
        (("slo: 40ms", "slo: 0s"), "models[0].slo"),
        (("noise", "nois"), "did you mean noise"),
        (("rate: 100", "rate: -1"), "models[0].arrivals.rate"),
        (("rate: 100, ", ""), "a rate in requests/s is needed"),
        (("alpha: 1ms, beta: 5ms", ""), "either alpha and beta"),
        (("tenant: gold", "tenant: nobody"), "no tenant is called nobody"),
        (("executors: [1]", "executors: [2]"), "executors are 0 to 1"),
        (("kind: down", "kind: flood"), "faults[0].kind"),
        (("name: large", "name: small"), "two models have one name"),
        (("{kind: gamma, rate: 100, shape: 0.5}", "{kind: trace, file: no.csv}"), "no.csv"),
        (("alpha: 1ms, beta: 5ms", "profile: no.json"), "no.json"),
        (("noise: 0.05", "noise: .nan"), "noise"),
        (("models:", "models: ["), "not valid YAML"),
        (("slo: 40ms", "slo: 5900us"), "models[0].slo (w.yaml): 5.9 ms cannot be met: one row"),
        (("slo: none", "slo: 5ms"), "models[0].classes[1].slo (w.yaml): 5 ms cannot be met"),
        (
            ("tenant: gold", "rows: 60"),
            "models[0].classes[0].rows (w.yaml): a batch of 60 rows takes 65 ms, but its slo is "
            "40 ms; give fewer rows, or a larger slo",
        ),
        (("tenant: gold", "slo: 50ms"), "models[0].classes[0].slo (w.yaml): 50 ms does nothing: "),
        (("tenant: gold", "slo: none"), "none does nothing: the slo of the model, 40 ms, counts"),
        (
            ("[{}, {best_effort: true}]", "[{}, {slo: 500ms}]"),
            "models[0].classes[1].slo (w.yaml): none does nothing: levels[1].slo, 500 ms, counts "
            "too, and the earliest wins; give levels[1] a longer slo, or best_effort",
        ),
        (("priority: 2", "priority: 3"), "classes[1] has priority 3, but priority_levels is 2"),
        (("table: [8ms, 9ms, 11ms]", "table: [8ms, 0ms]"), "models[1].latency.table[1]"),
        (("table: [8ms, 9ms, 11ms]", "profile: no.json"), "models[1].latency.profile (no.json)"),
        (
            ("{kind: on_off, rate: 20, on: 100ms, off: 50ms}", "{kind: trace, file: no.csv}"),
            "models[1].arrivals.file (no.csv)",
        ),
        (
            ("kind: on_off, rate: 20, on: 100ms, off: 50ms", "kind: series, rates: [0, 0]"),
            "no request ever arrives",
        ),
        (("rate: 100", "rate: 2e7"), "models[0].arrivals.rate"),
        (("end: 700ms", "end: 400ms"), "down needs an end after its start"),
        (("end: 700ms, ", ""), "down needs an end after its start"),
        (("kind: down", "kind: failing, factor: 2"), "a part, at most 1"),
        (("kind: down", "kind: slow, factor: 0"), "a factor above 0"),
        (("kind: down", "kind: slow, factor: 1e-9"), "a factor above 0, at least 0.001"),
        (("executors: [1]", "executors: [1, 1]"), "large: an executor is named twice"),
        (("off: 50ms", "off: 277h"), "a rate of 20/s is 1.99e+08/s while requests come"),
        (
            ("slo: 100ms", "slo: 2h"),
            "models[1].slo (w.yaml:18): it is out of range; give a time from 1ns to 1h",
        ),
        (
            ("slo: 100ms", "slo: 100ms\n    queue_requests_max: 99999999999999999999"),
            "models[1].queue_requests_max (w.yaml:19): input should be less than or equal to 1000",
        ),
        (
            ("[{}, {best_effort: true}]", "[{slo: 0}]"),
            "models[0].levels[0].slo",
        ),
        (("slo: 100ms", "slo: 100ms\n    attainment: 0.9999999"), "models[1].attainment"),
        (("start: 500ms, end: 700ms", "start: 500ms, end: 2562047h"), "faults[0].end"),
        (("kind: down", "kind: removed"), "needs a model, one of small, large"),
        (("executor: 0", "executor: 7"), "executor 7 of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_a_bad_file_exits_2_and_says_what_is_wrong(
    runner: CliRunner, tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    (tmp_path / "w.yaml").write_text(FILE.replace(*change))
    result = simulate(runner, "w.yaml")
    assert (result.exit_code, told in result.output) == (2, True), result.output


def test_names_that_no_file_can_have_are_said(runner: CliRunner) -> None:
    long = "x" * 300
    result = simulate(runner, "A", "--plot", f"{long}.svg")
    assert (result.exit_code, "File name too long" in result.output) == (2, True)
    result = simulate(runner, "A", "--plot", f"{long}/p.svg")
    assert (result.exit_code, "there is no directory" in result.output) == (2, True)
    result = simulate(runner, long)
    assert (result.exit_code, "no workload is called" in result.output) == (2, True)


def test_no_loads_are_a_mistake(runner: CliRunner) -> None:
    for option in ("--load", "--rate"):
        result = simulate(runner, "A", option, "")
        assert (result.exit_code, "'' is not of the form 0.5,1,2" in result.output) == (2, True)


def test_a_mistake_is_told_once(runner: CliRunner, tmp_path: Path) -> None:
    for change in (("rate: 100", "rate: -1"), ("slo: none", "slo: 0")):
        (tmp_path / "w.yaml").write_text(FILE.replace(*change))
        assert len(simulate(runner, "w.yaml").output.splitlines()) == 1
    (tmp_path / "w.yaml").write_text("models: []\n")
    assert "name at least one" in simulate(runner, "w.yaml").output


def test_a_trace_that_ends_with_the_warm_up_is_no_perfect_run(
    runner: CliRunner, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("0\n0.5\n2.5\n")
    (tmp_path / "w.yaml").write_text(
        "models: [{name: a, latency: {alpha: 1ms}, slo: 9ms, arrivals: {kind: trace, file: t.csv}}]"
    )
    assert simulate(runner, "w.yaml", "--load", "1").exit_code == 0
    result = simulate(runner, "w.yaml", "--load", "1,2")
    assert result.exit_code == 2
    assert "at load 2 nothing arrives after the warm_up of 2 s" in result.output


def test_a_trace_may_begin_with_a_byte_order_mark(runner: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf0\n1\n2\n")
    (tmp_path / "w.yaml").write_text(
        "warm_up: 0ms\nmodels: [{name: a, latency: {alpha: 1ms}, slo: 9ms, "
        "arrivals: {kind: trace, file: t.csv}}]"
    )
    (point,) = as_json(runner, "w.yaml", "--load", "1")["points"]
    assert point["models"][0]["offered"] == 3


@pytest.mark.parametrize("text", ["", "time\n", "1\nsoon\n", "1\nnan\n", "0\n1e9\n"])
def test_a_bad_trace_exits_2(runner: CliRunner, tmp_path: Path, text: str) -> None:
    arrivals = ("{kind: gamma, rate: 100, shape: 0.5}", "{kind: trace, file: t.csv}")
    (tmp_path / "w.yaml").write_text(FILE.replace(*arrivals))
    (tmp_path / "t.csv").write_text(text)
    result = simulate(runner, "w.yaml")
    assert (result.exit_code, "t.csv" in result.output) == (2, True), result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["X"],
        ["no.yaml"],
        ["A", "--policy", "best"],
        ["A", "--load", "0"],
        ["A", "--load", "half"],
        ["A", "--rate", "-1"],
        ["A", "--rate", "1e9"],
        ["A", "--noise", "-1"],
        ["A", "--requests", "1"],
        ["A", "--plot", "picture.jpg"],
        ["A", "--plot", "nowhere/picture.svg"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2(runner: CliRunner, arguments: list[str]) -> None:
    result = simulate(runner, *arguments)
    assert result.exit_code == 2
    assert result.output


def test_reference_policies_refuse_what_they_know_nothing_of(
    runner: CliRunner, tmp_path: Path
) -> None:
    (tmp_path / "w.yaml").write_text(FILE)
    result = simulate(runner, "w.yaml", "--policy", "symphony")
    assert result.exit_code == 2
    assert "faults" in result.output
    assert "classes" in result.output
    levels = (
        "executors: 1\nmodels: [{name: a, latency: {alpha: 1ms}, slo: 9ms, priority_levels: 2, "
    )
    (tmp_path / "w.yaml").write_text(levels + "levels: [{slo: 5ms}], arrivals: {rate: 9}}]")
    assert "levels" in simulate(runner, "w.yaml", "--policy", "symphony").output
