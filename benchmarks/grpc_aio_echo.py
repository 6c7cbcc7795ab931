"""The fastest Python gRPC server one can write: grpc.aio on uvloop, bytes in, the same bytes out.

It parses no protobuf, checks nothing, queues nothing. A process, for StubProcess.
"""

from __future__ import annotations

import gc
from typing import Any

import grpc
import uvloop

from benchmarks.stub_process import Counts, serve_until_input_ends
from benchmarks.workloads import INFER_PATH


class Echo:
    """Handler of ModelInfer; counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def infer(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        return request


async def serve() -> None:
    echo = Echo()
    service, method = INFER_PATH[1:].split("/")
    # Without a serialiser messages are bytes.
    handler = grpc.unary_unary_rpc_method_handler(echo.infer)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.freeze()
    await serve_until_input_ends(f"127.0.0.1:{port}", lambda: Counts(echo.calls, echo.calls))
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve())
