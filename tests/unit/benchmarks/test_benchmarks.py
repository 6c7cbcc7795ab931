"""What the benchmarks' own figures rest on: result files, verdicts, quantiles, arrivals, counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import uvloop
from tritonclient.grpc import service_pb2

from benchmarks import h2load
from benchmarks.compare import compare, verdict
from benchmarks.loading import compare_replies, problem_of_totals
from benchmarks.openloop.load import LoadError, LoadSpec, read_samples, run_load
from benchmarks.results import GOALS, Figure, header, read_results, write_results
from benchmarks.stream_load import Stream, StreamConnection, StreamPlan
from benchmarks.workloads import INFER_PATH, large, simple
from scheduler._native.loadgen import LatencyHistogram, poisson_arrivals

# Half of a bucket (128 buckets a power of two), as the histogram promises.
QUANTILE_ERROR_MAX = 0.004
SECOND_NS = 1_000_000_000


def of(value: float, better: str = "higher") -> Figure:
    return Figure("figure", value, 2, 5, "x", better)


# -- results ---------------------------------------------------------------------------------------


def test_a_result_file_reads_back_as_written(tmp_path: Path) -> None:
    head = header(7, ["frontend"])
    figures = [Figure.of("frontend_ratio", 31.25), Figure.of("idle_cpu", 0.0)]

    write_results(tmp_path / "made" / "results.jsonl", head, figures)
    read_head, read = read_results(tmp_path / "made" / "results.jsonl")

    assert read_head == head
    assert read_head["seed"] == 7
    assert read == {figure.figure: figure for figure in figures}


@pytest.mark.parametrize("name", GOALS)
def test_a_figure_is_one_json_object_with_the_agreed_keys(name: str) -> None:
    line = Figure.of(name, 3.0).to_json()
    assert list(json.loads(line)) == ["figure", "value", "must", "aim", "unit", "better"]
    assert "\n" not in line
    assert json.loads(line)["better"] in ("higher", "lower")


def test_what_a_figure_comes_from_stands_behind_the_agreed_keys(tmp_path: Path) -> None:
    figure = Figure.of("payload_600kb_ratio", 1.1, by_round=[1.2, 1.1, 0.9], round_s=3.0)
    fields = json.loads(figure.to_json())
    assert list(fields)[-2:] == ["by_round", "round_s"]
    assert (fields["by_round"], fields["round_s"]) == ([1.2, 1.1, 0.9], 3.0)
    write_results(tmp_path / "results.jsonl", {"header": 1}, [figure])
    _, read = read_results(tmp_path / "results.jsonl")
    assert read == {figure.figure: figure}


@pytest.mark.parametrize("name", [name for name in GOALS if GOALS[name].must is None])
def test_a_figure_without_a_goal_is_only_to_be_verified(name: str) -> None:
    figure = Figure.of(name, 0.01)
    assert (figure.grade, figure.sound) == ("no goal", True)
    assert not Figure.of(name, 0.01, "rows differ").sound
    assert Figure.of(name, 0.01, "rows differ").grade == "NOT VERIFIED"


def test_a_figure_with_a_goal_is_to_reach_it() -> None:
    assert Figure.of("payload_600kb_ratio", 0.8).sound
    assert not Figure.of("payload_600kb_ratio", 0.79).sound


@pytest.mark.parametrize("line", ["not JSON", '{"figure": "idle_cpu"}', "[1]", "null"])
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(Figure.of("idle_cpu", 1).to_json() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl:2: not a result line"):
        read_results(path)


def test_a_problem_makes_the_value_zero_and_no_bound_is_reached() -> None:
    for name in ("frontend_ratio", "idle_cpu"):
        figure = Figure.of(name, 50.0 if name == "frontend_ratio" else 0.01, "rows differ")
        assert figure.value == 0
        assert not figure.reaches(figure.must)
        assert figure.grade == "NOT VERIFIED"


def test_a_measured_nothing_is_not_taken_for_unverified() -> None:
    assert Figure.of("idle_cpu", 0.0).verified
    assert Figure.of("idle_cpu", 0.0).grade == "aim reached"


@pytest.mark.parametrize(
    ("better", "value", "grade"),
    [
        ("higher", 5, "aim reached"),
        ("higher", 2, "must reached"),
        ("higher", 1.9, "BELOW MUST"),
        ("lower", 2, "aim reached"),
        ("lower", 5, "must reached"),
        ("lower", 5.1, "BELOW MUST"),
    ],
)
def test_grades(better: str, value: float, grade: str) -> None:
    must, aim = (2, 5) if better == "higher" else (5, 2)
    assert Figure("figure", value, must, aim, "x", better).grade == grade


# -- compare ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (of(10), of(11.2), "better"),
        (of(10), of(10.9), "same"),
        (of(10), of(9.2), "same"),
        (of(10), of(8.9), "worse"),
        (of(10, "lower"), of(8.9, "lower"), "better"),
        (of(10, "lower"), of(11.2, "lower"), "worse"),
        (of(10, "lower"), of(10.9, "lower"), "same"),
        (of(10), of(0), "unverified"),
        (of(0), of(10), "new"),
        (None, of(10), "new"),
        (None, of(0), "unverified"),
        (of(10), None, "gone"),
    ],
)
def test_verdicts(old: Figure | None, new: Figure | None, word: str) -> None:
    assert verdict(old, new, 0.1) == word
    lines, sound = compare(
        {"figure": old} if old else {}, {"figure": new} if new else {}, tolerance=0.1
    )
    assert lines[1].endswith(word)
    assert sound == (word in ("better", "same", "new"))


# -- latencies and arrivals ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["lognormal", "exponential", "two peaks"])
def test_quantiles_are_those_of_the_values(shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "lognormal": rng.lognormal(13, 2, 20_000),
        "exponential": rng.exponential(5e6, 20_000),
        "two peaks": np.concatenate([rng.normal(2e5, 1e3, 19_000), rng.normal(4e9, 1e8, 1_000)]),
    }[shape].astype(np.int64)
    histogram = LatencyHistogram()
    for value in values.tolist():
        histogram.add(value)

    assert len(histogram) == len(values)
    for q in (0.0, 0.01, 0.5, 0.9, 0.949, 0.951, 0.99, 0.999, 1.0):
        expected = int(np.quantile(values, q, method="inverted_cdf"))
        # One nanosecond: the middle of a bucket is a whole number.
        assert histogram.quantile(q) == pytest.approx(expected, rel=QUANTILE_ERROR_MAX, abs=1), q


def test_an_empty_histogram_and_times_below_zero() -> None:
    histogram = LatencyHistogram()
    assert histogram.quantile(0.5) == 0
    histogram.add(-5)
    assert (len(histogram), histogram.quantile(1.0)) == (1, 0)


def test_poisson_arrivals_repeat_with_their_seed_only(seed: int) -> None:
    first = poisson_arrivals(5_000, seed, 1_000)
    assert poisson_arrivals(5_000, seed, 1_000) == first
    assert poisson_arrivals(5_000, seed, 2_000)[:1_000] == first
    assert poisson_arrivals(5_000, seed + 1, 1_000) != first


def test_poisson_arrivals_are_poisson(seed: int) -> None:
    """Bounds are six standard errors wide."""
    rate, count = 20_000, 50_000
    offsets = np.array(poisson_arrivals(rate, seed, count), dtype=np.float64)
    gaps = np.diff(offsets) * rate / SECOND_NS  # in mean gaps
    assert (gaps >= 0).all()
    error = 6 / np.sqrt(count)
    assert gaps.mean() == pytest.approx(1, abs=error)
    # The variance of an exponential's sample variance is 8 / n; gaps are independent.
    assert gaps.var() == pytest.approx(1, abs=error * np.sqrt(8))
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=error)
    assert (gaps > 1).mean() == pytest.approx(np.exp(-1), abs=error)


# -- what makes a load count -----------------------------------------------------------------------

GOOD_TOTALS = {
    "sent": 1_000,
    "answered": 1_000,
    "ok": 1_000,
    "ok_empty": 0,
    "connections_lost": 0,
    "statuses": {"0": 1_000},
    "first_error": "",
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"answered": 999}, "999 answers to 1000 requests"),
        ({"sent": 0, "answered": 0, "ok": 0}, "0 answers to 0 requests"),
        ({"ok": 998, "first_error": "queue full"}, "queue full"),
        ({"ok_empty": 1}, "without a message"),
        ({"connections_lost": 1}, "connections were lost"),
    ],
)
def test_problems_of_totals(change: dict[str, object], problem: str) -> None:
    found = problem_of_totals({**GOOD_TOTALS, **change}, samples=10, sample_share=0.01)
    assert (problem in found) if problem else not found


def test_too_few_kept_replies_are_a_problem() -> None:
    totals = {**GOOD_TOTALS, **dict.fromkeys(("sent", "answered", "ok"), 100_000)}
    assert not problem_of_totals(totals, samples=990, sample_share=0.01)
    assert "only 400" in problem_of_totals(totals, samples=400, sample_share=0.01)


def test_replies_of_another_payload_are_found() -> None:
    # A request reads as a response up to its raw contents: enough to tell messages apart.
    direct = {index: payload.message for index, payload in enumerate(simple("a", 2, 1))}
    other = simple("b", 1, 1)[0].message
    assert compare_replies([(0, direct[0]), (1, direct[1])], direct) == ""
    assert "payload 1 is not the direct one" in compare_replies([(1, other)], direct)
    assert "no direct reply to payload 5" in compare_replies([(5, direct[0])], direct)


def stream_reply(request: str, index: int) -> bytes:
    reply = service_pb2.ModelStreamInferResponse()
    reply.infer_response.id = request
    reply.infer_response.raw_output_contents.append(np.int32(index).tobytes())
    return reply.SerializeToString()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({3: stream_reply("7-1", 0)}, "the reply 3 of stream 7 is wrong"),
        ({2: stream_reply("7-0", 1)}, "the reply 2 of stream 7 is wrong"),
        ({2: stream_reply("7-2", 0)}, "the reply 2 of stream 7 is wrong"),
        ({0: b"\x0a\x02no"}, "the reply 0 of stream 7 is wrong"),
        ({3: None}, "3 replies to 2 requests"),
    ],
)
def test_replies_of_a_stream_are_checked(change: dict[int, bytes | None], problem: str) -> None:
    plan = StreamPlan("host:1", "decoupled", replies=2, connections=1, streams=1, seconds=1.0)
    connection = StreamConnection(plan, 7)
    replies = {i: stream_reply(f"7-{i // 2}", i % 2) for i in range(4)} | change
    kept = [reply for reply in replies.values() if reply is not None]
    connection.streams[1] = Stream(7, requests=2, replies=kept)
    assert connection.check() == "" if not problem else problem in connection.check()


def test_a_load_without_streams_is_a_problem() -> None:
    plan = StreamPlan("host:1", "decoupled", replies=2, connections=1, streams=1, seconds=1.0)
    assert StreamConnection(plan, 0).check() == "no stream was opened"


H2LOAD_REPORT = """\
finished in 2.02s, 81300.81 req/s, 12.41MB/s
requests: 1000 total, 1000 started, 1000 done, {done} succeeded, {failed} failed, 0 errored
status codes: {done} 2xx, {failed} 3xx, 0 4xx, 0 5xx
traffic: 3.75MB (3933152) total, 88.00KB (90112) headers (space savings 95.60%), 2.38MB data
"""


def test_reports_of_h2load() -> None:
    good = h2load.parse(H2LOAD_REPORT.format(done=1000, failed=0), 1000, 2.1, 0.5)
    assert (good.requests_per_s, good.problem) == (81300.81, "")
    bad = h2load.parse(H2LOAD_REPORT.format(done=999, failed=1), 1000, 2.1, 0.5)
    assert bad.problem == "999 answers of 1000 had an HTTP status 2xx"
    with pytest.raises(h2load.H2loadFailed, match="not a report"):
        h2load.parse("unknown option", 1000, 2.1, 0.5)


# -- the generator ---------------------------------------------------------------------------------


class GrpcioEcho:
    """A grpcio server in this process that returns each ModelInfer's bytes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.fail_every = 0

    def infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.received.append(request)
        if self.fail_every and len(self.received) % self.fail_every == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        return request


@pytest.fixture
def grpcio_echo() -> Iterator[tuple[GrpcioEcho, str]]:
    echo = GrpcioEcho()
    service, method = INFER_PATH[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(echo.infer)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield echo, f"127.0.0.1:{port}"
    server.stop(None).wait(5)


def test_a_closed_loop_sends_each_payload_in_turn_and_keeps_the_replies(
    grpcio_echo: tuple[GrpcioEcho, str], tmp_path: Path
) -> None:
    echo, address = grpcio_echo
    spec = LoadSpec(
        target=address,
        pool=50,
        connections=2,
        in_flight=8,
        requests_max=300,
        warmup_s=0.0,
        seconds=30.0,  # a bound
        sample_share=1.0,
        samples_path=str(tmp_path / "samples"),
    )

    result = uvloop.run(run_load(spec))

    messages = [payload.message for payload in simple(spec.model, spec.pool, spec.seed)]
    totals = result["totals"]
    assert problem_of_totals(totals, 300, 1.0) == ""
    assert (totals["sent"], totals["sent_rows"], totals["statuses"]) == (300, 300, {"0": 300})
    assert sorted(echo.received) == sorted(messages * 6)
    samples = read_samples(tmp_path / "samples")
    assert sorted(index for index, _ in samples) == sorted([*range(50)] * 6)
    assert all(reply == messages[index] for index, reply in samples)
    window = result["window"]
    assert window["due"] == window["latency_ns"]["count"] == 300
    assert 0 < window["latency_ns"]["p50"] <= window["latency_ns"]["max"] < window["duration_ns"]


def test_an_open_loop_starts_its_calls_when_they_are_due(
    grpcio_echo: tuple[GrpcioEcho, str],
) -> None:
    echo, address = grpcio_echo
    echo.fail_every = 10
    arrivals_s = [0.05 + 0.002 * number for number in range(100)]
    spec = LoadSpec(
        target=address,
        connections=1,
        arrivals_s=arrivals_s,
        requests_max=len(arrivals_s),
        warmup_s=0.0,
        seconds=30.0,
        objective_s=30.0,
    )

    result = uvloop.run(run_load(spec))

    totals, window = result["totals"], result["window"]
    assert totals["statuses"] == {"0": 90, "8": 10}
    assert totals["first_error"] == "too much"
    assert "not OK" in problem_of_totals(totals, 90, 0.0)
    assert window["due"] == len(arrivals_s) == window["good"] + window["failed"]
    # The last one is not sent before it is due.
    assert window["duration_ns"] > (arrivals_s[-1] - arrivals_s[0]) * SECOND_NS


def frame(kind: int, payload: bytes) -> bytes:
    """An HTTP/2 frame of stream 0 without flags."""
    return len(payload).to_bytes(3, "big") + bytes([kind]) + bytes(5) + payload


def test_a_message_leaves_whole_when_the_window_lets_it() -> None:
    """A server with room for all of it says nothing more until it has got it."""
    window = struct.pack(">I", 0x3FFFFFFF)
    opening = frame(0x4, struct.pack(">H", 0x4) + window) + frame(0x8, window)
    (message,) = large("identity", 1, 1)
    spec = LoadSpec(target="", workload="large", pool=1, connections=1, in_flight=1, warmup_s=0.0)

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(opening)
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readexactly(len(message.message))
        writer.close()

    async def load() -> dict[str, Any]:
        async with await asyncio.start_server(receive, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            spec.target = f"{host}:{port}"
            spec.seconds = spec.requests_max = 1
            return await asyncio.wait_for(run_load(spec), 20)

    assert uvloop.run(load())["totals"]["connections_lost"] == 1


def test_a_server_that_is_not_there_is_an_error() -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        spec = LoadSpec(target=f"127.0.0.1:{bound.getsockname()[1]}", in_flight=1)
        with pytest.raises(LoadError, match="cannot connect to"):
            uvloop.run(run_load(spec))
