"""The stub backend (csrc/loadgen/echo.h) as a process, for StubProcess."""

from __future__ import annotations

import asyncio
import gc

import uvloop

from benchmarks.stub_process import Counts, serve_until_input_ends
from benchmarks.workloads import INFER_PATH
from scheduler._native.loadgen import EchoServer


async def serve() -> None:
    echo = EchoServer(INFER_PATH)
    server = await asyncio.get_running_loop().create_server(echo.protocol, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    gc.freeze()
    await serve_until_input_ends(f"{host}:{port}", lambda: Counts(echo.executions, echo.rows))
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
