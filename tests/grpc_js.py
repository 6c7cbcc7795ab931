"""The client of the JavaScript world, @grpc/grpc-js, whose HTTP/2 is Node's own.

`python -m tests.grpc_js` installs it; tests do so themselves where that was not done.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tritonclient.grpc import service_pb2

from tests.wire.calls import Matrix, output
from tests.wire.raw_client import INFER_PATH

HERE = Path(__file__).parent / "wire" / "grpc_js"
STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
INSTALL_TIMEOUT_S = 120
UNLIMITED = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}

Message = service_pb2.ModelStreamInferResponse
Request = service_pb2.ModelInferRequest


class NotInstalledError(RuntimeError):
    """It cannot be had here; the message says why."""


def install() -> None:
    """Puts the package beside its program unless it is there. Raises NotInstalledError."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NotInstalledError("no node and npm: install nodejs and npm to test it")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    with open(HERE / "package.json") as package:
        fcntl.flock(package, fcntl.LOCK_EX)  # two workers may need it at once
        whole = HERE / "node_modules" / ".whole"  # npm may be killed half-way
        if whole.exists():
            return
        try:
            subprocess.run(
                command, cwd=HERE, env=clean_environment(), check=True, capture_output=True,
                timeout=INSTALL_TIMEOUT_S,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise NotInstalledError(f"npm install of @grpc/grpc-js failed: {error}") from error
        whole.touch()


def clean_environment() -> dict[str, str]:
    """Without what `make test-asan` preloads."""
    return {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}


class JsClient:
    """One node process. Calls that name the same channel share a connection.

    `channel` is that of calls that name none: `address`, `ca` as PEM, and `options` of grpc-js.
    """

    def __init__(self, **channel: Any) -> None:
        self._channel = {"options": UNLIMITED, **channel}
        self._process = subprocess.Popen(
            ["node", "client.mjs"],
            cwd=HERE,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: dict[int, dict[str, Any]] = {}
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_id = 0
        # Node waits for a reader of what it writes, and reads no further calls meanwhile.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> JsClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def start(self, request: Any, **call: object) -> int:
        """Begins a unary call and returns its id."""
        return self._start([request], {"method": INFER_PATH, **call})

    def start_stream(self, requests: Sequence[Request], **call: object) -> int:
        """Begins a ModelStreamInfer with these requests and no more."""
        return self._start(requests, {"method": STREAM_PATH, "stream": True, **call})

    def _start(self, requests: Sequence[Any], call: dict[str, object]) -> int:
        self._last_id += 1
        bodies = [
            request if isinstance(request, bytes) else request.SerializeToString()
            for request in requests
        ]
        call = {
            "id": self._last_id,
            "channel": self._channel,
            "messages": [base64.b64encode(body).decode() for body in bodies],
            "timeout_ms": 60_000,
            **call,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return self._last_id

    def answer(self, call: int) -> dict[str, Any]:
        """Waits for the end of that call; every call has a deadline, so there is one."""
        while call not in self._answers:
            line = self._lines.get()
            assert line, "node ended"
            answer = json.loads(line)
            answer["messages"] = [base64.b64decode(text) for text in answer["messages"]]
            self._answers[answer["id"]] = answer
        return self._answers.pop(call)

    def response(self, call: int) -> service_pb2.ModelInferResponse:
        """That of a unary call, which must have succeeded."""
        answer = self.answer(call)
        assert answer["code"] == 0, answer
        return service_pb2.ModelInferResponse.FromString(answer["messages"][0])

    def values(self, call: int) -> Matrix:
        return output(self.response(call))


def replies(answer: dict[str, Any]) -> list[Message]:
    """The messages of a stream."""
    return [Message.FromString(message) for message in answer["messages"]]


if __name__ == "__main__":
    try:
        install()
    except NotInstalledError as error:
        sys.exit(f"no @grpc/grpc-js: {error}")
