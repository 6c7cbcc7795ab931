"""The client of the JavaScript world, @grpc/grpc-js, whose HTTP/2 is Node's own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import infer_request, output, rows
from tests.wire.fake_triton import FakeTriton
from tests.wire.raw_client import INFER_PATH

HERE = Path(__file__).parent / "grpc_js"
INSTALL_TIMEOUT_S = 120


def install() -> None:
    """Puts the package beside this file. Skips where that is not possible."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm: install nodejs and npm to test with @grpc/grpc-js")
    if (HERE / "node_modules" / "@grpc" / "grpc-js").is_dir():
        return
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    try:
        subprocess.run(
            command, cwd=HERE, env=clean_environment(), check=True, capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm install of @grpc/grpc-js failed: {error}")


def clean_environment() -> dict[str, str]:
    """Without what `make test-asan` preloads."""
    return {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}


class JsClient:
    """One node process with one channel."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            ["node", "client.mjs", address],
            cwd=HERE,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0

    def __enter__(self) -> JsClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, request: Any, **call: object) -> int:
        """Begins a call and returns its id."""
        self._last_id += 1
        body = request if isinstance(request, bytes) else request.SerializeToString()
        call = {
            "id": self._last_id,
            "method": INFER_PATH,
            "body": base64.b64encode(body).decode(),
            "timeout_ms": 20_000,
            **call,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return self._last_id

    def answer(self, call: int) -> dict[str, Any]:
        """Waits for the end of that call; every call has a deadline, so there is one."""
        assert self._process.stdout is not None
        while call not in self._answers:
            line = self._process.stdout.readline()
            assert line, "node ended"
            answer = json.loads(line)
            self._answers[answer["id"]] = answer
        return self._answers.pop(call)

    def values(self, call: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        answer = self.answer(call)
        assert answer["code"] == 0, answer
        body = base64.b64decode(answer["body"])
        return output(service_pb2.ModelInferResponse.FromString(body))


@pytest.fixture
def client(plane: DataPlane, fake: FakeTriton) -> Iterator[JsClient]:
    install()
    assert plane.apply([identity_model(staged_batches_max=0)], [fake.address]) == ""
    with JsClient(plane.address) as running:
        yield running


def test_many_calls_are_merged_and_answered(client: JsClient, fake: FakeTriton) -> None:
    calls = [client.start(infer_request(rows(n, 1 + n % 3))) for n in range(300)]
    for n, call in enumerate(calls):
        np.testing.assert_array_equal(client.values(call), rows(n, 1 + n % 3))
    assert len(fake.requests) < 300


def test_large_messages_pass_both_ways(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([identity_model(dims=(-1,))], [fake.address])
    values = rows(1, 4, 300_000)  # 4.8 MB
    np.testing.assert_array_equal(client.values(client.start(infer_request(values))), values)


def test_errors_arrive_with_code_text_and_details(client: JsClient) -> None:
    answer = client.answer(client.start(infer_request(rows(1), model="nope")))
    assert answer["code"] == 5
    assert answer["details"] == "Request for unknown model: 'nope' is not found"
    request = infer_request(rows(1), parameters={"priority": "high"})
    assert client.answer(client.start(request))["code"] == 3
    assert client.answer(client.start(b"\xff\xff"))["code"] == 13


def test_a_refusal_carries_details_and_pushback(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    model = identity_model(queue_requests_max=1, staged_batches_max=0)
    plane.apply([model], [fake.address])
    fake.hold()
    # grpc-js itself obeys the pushback for a retry policy; it has none here.
    first = client.start(infer_request(rows(1)))
    wait_until(lambda: len(fake.requests) == 1, "it is in flight")
    second = client.start(infer_request(rows(2)))
    plane.wait_queued(1)
    refused = client.answer(client.start(infer_request(rows(3))))
    assert refused["code"] == 8
    assert int(refused["trailers"]["grpc-retry-pushback-ms"][0]) >= 1
    assert refused["trailers"]["grpc-status-details-bin"]
    fake.release()
    np.testing.assert_array_equal(client.values(first), rows(1))
    np.testing.assert_array_equal(client.values(second), rows(2))


def test_deadlines_and_cancels_free_the_queue(
    client: JsClient, plane: DataPlane, fake: FakeTriton
) -> None:
    fake.hold()
    first = client.start(infer_request(rows(1)))
    wait_until(lambda: len(fake.requests) == 1, "it is in flight")
    expired = client.start(infer_request(rows(2)), timeout_ms=150)
    cancelled = client.start(infer_request(rows(3)), cancel_after_ms=100)
    assert client.answer(expired)["code"] == 4
    assert client.answer(cancelled)["code"] == 1
    plane.wait_queued(0)
    assert plane.counters()["in_flight"] == 1
    fake.release()
    np.testing.assert_array_equal(client.values(first), rows(1))
