"""@grpc/grpc-js through the whole of the scheduler before a real Triton, from one node process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.certificates import Files
from tests.dataplane import wait_until
from tests.grpc_js import UNLIMITED, JsClient, NotInstalledError, Request, install, replies
from tests.serving import ServedScheduler
from tests.streams import index_of, repeat_request, sequence_request, sum_of
from tests.wire.calls import infer_request, output, rows
from tests.wire.proxy import Proxy

CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 4, 8, 13, 14
GZIP = 2
# Numbers of 8 bytes: more than the 4 MiB that clients take by default, and less.
LARGE, MIDDLING = 600_000, 100_000
PING_BYTES = 17
# Replies that take half a second: a Triton that is left with longer ones may die of it.
REPLIES, DELAY_MS = 20, 25


@pytest.fixture(scope="module")
def js(scheduler: ServedScheduler) -> Iterator[JsClient]:
    try:
        install()
    except NotInstalledError as error:
        pytest.skip(str(error))
    with JsClient(address=scheduler.address) as client:
        yield client


def integers(count: int, seed: int = 0) -> Request:
    """One row for the model identity_int64, of numbers that repeat."""
    values = (np.arange(count, dtype=np.int64) + seed) // 1000
    request = Request(model_name="identity_int64")
    request.inputs.add(name="INPUT0", datatype="INT64", shape=[1, count])
    request.raw_input_contents.append(values.tobytes())
    return request


def echoes(js: JsClient, request: Request, **call: Any) -> bool:
    """Whether the identity models answer with the bytes of the request."""
    response = js.response(js.start(request, **call))
    return list(response.raw_output_contents) == list(request.raw_input_contents)


def test_many_unary_calls_keep_their_answers_apart(js: JsClient) -> None:
    calls = [js.start(infer_request(rows(n, 1 + n % 5))) for n in range(400)]
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(js.values(call), rows(n, 1 + n % 5))


def test_a_stream_brings_decoupled_replies_and_those_of_others(js: JsClient) -> None:
    requests = [
        repeat_request(5, "five", wants_empty_final=True),
        infer_request(rows(1, 2), request_id="plain"),
        sequence_request(3, 77, start=True, request_id="first"),
        sequence_request(4, 77, end=True, request_id="last"),
        infer_request(rows(1), model="nope", request_id="unknown"),
    ]
    answer = js.answer(js.start_stream(requests))
    assert answer["code"] == 0, answer
    by_id: dict[str, list[Any]] = {}
    for reply in replies(answer):
        by_id.setdefault(reply.infer_response.id, []).append(reply)
    *five, final = by_id["five"]
    assert [index_of(reply) for reply in five] == list(range(5))
    assert final.infer_response.parameters["triton_final_response"].bool_param
    (plain,) = by_id["plain"]
    np.testing.assert_array_equal(output(plain.infer_response), rows(1, 2))
    assert [sum_of(by_id[name][0].infer_response) for name in ("first", "last")] == [3, 7]
    (unknown,) = by_id["unknown"]
    assert unknown.error_message == "Request for unknown model: 'nope' is not found"


def test_a_header_makes_a_failed_request_the_status_of_its_stream(js: JsClient) -> None:
    requests = [infer_request(-rows(1), model="failing")]
    answer = js.answer(js.start_stream(requests))
    assert (answer["code"], len(answer["messages"])) == (0, 1)
    (reply,) = replies(answer)
    answer = js.answer(js.start_stream(requests, metadata={"triton_grpc_error": "true"}))
    assert (answer["code"], answer["messages"]) == (INTERNAL, [])
    assert answer["details"] == reply.error_message
    assert "a row has a negative number" in answer["details"]


def test_errors_of_models_arrive_with_their_text(js: JsClient) -> None:
    answer = js.answer(js.start(infer_request(-rows(1), model="failing")))
    assert answer["code"] == INTERNAL
    assert "a row has a negative number" in answer["details"]


def test_large_messages_pass_both_ways_where_the_client_takes_them(
    js: JsClient, scheduler: ServedScheduler
) -> None:
    assert echoes(js, integers(LARGE))
    cautious = {"address": scheduler.address, "options": {"grpc.max_send_message_length": -1}}
    answer = js.answer(js.start(integers(LARGE), channel=cautious))
    assert answer["code"] == RESOURCE_EXHAUSTED
    assert echoes(js, integers(10), channel=cautious), "its connection goes on"
    answer = js.answer(js.start_stream([integers(LARGE), integers(LARGE, seed=1)]))
    received = [reply.infer_response.raw_output_contents[0] for reply in replies(answer)]
    assert received == [integers(LARGE, seed).raw_input_contents[0] for seed in (0, 1)]


def test_deadlines_and_cancels_end_streams_and_calls(js: JsClient) -> None:
    slow = repeat_request(REPLIES, delay_ms=DELAY_MS)
    expired = js.start_stream([slow], timeout_ms=150)
    cancelled = js.start_stream([slow], cancel_after_messages=2)
    answer = js.answer(expired)
    assert answer["code"] == DEADLINE_EXCEEDED
    assert len(answer["messages"]) < REPLIES
    answer = js.answer(cancelled)
    assert (answer["code"], len(answer["messages"])) == (CANCELLED, 2)
    many = [js.start(infer_request(rows(n), model="slow"), cancel_after_ms=1) for n in range(50)]
    assert {js.answer(call)["code"] for call in many} <= {0, CANCELLED}
    # What they held is free for others.
    answer = js.answer(js.start_stream([repeat_request(2), repeat_request(2)]))
    indices = [index_of(reply) for reply in replies(answer)]
    assert sorted(indices) == [0, 0, 1, 1], "replies of decoupled requests may interleave"
    assert js.response(js.start(infer_request(rows(1), model="slow")))


def test_keepalive_pings_are_answered_while_nothing_else_moves(
    js: JsClient, scheduler: ServedScheduler
) -> None:
    options = {
        "grpc.keepalive_time_ms": 20,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,
    }
    with Proxy(scheduler.address) as proxy:
        channel = {"address": proxy.address, "options": options}
        for n in range(2):  # of a new connection, and of one that was idle
            assert echoes(js, infer_request(rows(n)), channel=channel)
            up_min, down_min = (
                size + 20 * PING_BYTES for size in (proxy.bytes_up, proxy.bytes_down)
            )
            wait_until(lambda least=up_min: proxy.bytes_up > least, "pings are sent")
            wait_until(lambda least=down_min: proxy.bytes_down > least, "pings are answered")
        assert echoes(js, infer_request(rows(2)), channel=channel)
        assert proxy.connections_total == 1


@pytest.fixture(scope="module")
def secured(
    triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, str]]:
    """A way to a scheduler that has TLS and compresses its answers, and the authority's PEM."""
    files = Files(tmp_path_factory.mktemp("certificates"))
    server = {
        "tls": {"certificate": str(files.server_certificate), "key": str(files.server_key)},
        "response_compression": "gzip",
    }
    config_file = Path(files.directory) / "config.yaml"
    config_file.write_text(yaml.safe_dump({"backends": [triton.grpc_address], "server": server}))
    with ServedScheduler(["--config", str(config_file)], wait_ready=False) as served:
        wait_until(served.healthy, "it is ready", timeout_s=60)
        with Proxy(served.address) as proxy:
            yield proxy, files.ca.read_text()


def test_calls_and_streams_go_over_tls_and_compressed(
    js: JsClient, secured: tuple[Proxy, str]
) -> None:
    proxy, authority = secured
    plain = {"address": proxy.address, "ca": authority, "options": UNLIMITED}
    algorithm = {"grpc.default_compression_algorithm": GZIP}
    compressing = {**plain, "options": {**UNLIMITED, **algorithm}}
    size_max = 8 * MIDDLING // 4
    for channel, is_small in ((plain, False), (compressing, True)):
        up, down = proxy.bytes_up, proxy.bytes_down
        assert echoes(js, integers(MIDDLING), channel=channel)
        assert (proxy.bytes_up - up < size_max) == is_small
        assert proxy.bytes_down - down < size_max, "answers are compressed in any case"
    up, down = proxy.bytes_up, proxy.bytes_down
    requests = [integers(MIDDLING, seed) for seed in range(3)]
    answer = js.answer(js.start_stream(requests, channel=compressing))
    received = [reply.infer_response.raw_output_contents[0] for reply in replies(answer)]
    assert received == [request.raw_input_contents[0] for request in requests]
    assert proxy.bytes_up - up < size_max
    assert proxy.bytes_down - down < size_max
    assert echoes(js, integers(LARGE), channel=compressing), "one that is answered as it is"


def test_a_client_that_trusts_somebody_else_gets_nowhere(
    js: JsClient, secured: tuple[Proxy, str], tmp_path: Path
) -> None:
    proxy, _ = secured
    other = {"ca": Files(tmp_path).ca.read_text(), "options": {}, "address": proxy.address}
    answer = js.answer(js.start(infer_request(rows(1)), channel=other))
    assert answer["code"] == UNAVAILABLE
