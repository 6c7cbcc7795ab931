"""Files of a backend's TLS that are renewed while calls go to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.backends.probe import Answer, TritonCalls, _connected
from scheduler.security.tls import ClientTls
from tests.certificates import Files

TIMEOUT_S = 10.0
WARNING = "renewed certificates open no connection"


class Ready(service_pb2_grpc.GRPCInferenceServiceServicer):
    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: object
    ) -> service_pb2.ServerReadyResponse:
        return service_pb2.ServerReadyResponse(ready=True)


@asynccontextmanager
async def serving(pair: tuple[bytes, bytes], port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(), server)
    port = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def pair_of(files: Files) -> tuple[bytes, bytes]:
    """Key and certificate as they are in the files now."""
    return files.server_key.read_bytes(), files.server_certificate.read_bytes()


def calls_to(port: int, files: Files) -> TritonCalls:
    return TritonCalls(f"127.0.0.1:{port}", ClientTls(ca=files.ca, server_name="localhost"))


def test_a_connection_that_is_open_goes_on(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """As long as the renewed ones open none; that is told once."""

    async def scenario() -> None:
        earlier = pair_of(files)
        async with serving(earlier) as port:
            calls = calls_to(port, files)
            assert (await calls.ready(TIMEOUT_S)).answer is Answer.READY
            files.renew()
            for _ in range(3):
                assert (await calls.ready(TIMEOUT_S)).answer is Answer.READY
            assert caplog.text.count(WARNING) == 1
            used = calls._client
        while _connected(used):
            await asyncio.sleep(0.01)
        # Nobody is dialled with the earlier ones again,
        async with serving(earlier, port):
            assert (await calls.ready(TIMEOUT_S)).answer is Answer.UNREACHABLE
        # and a server is found as it comes back with the renewed.
        async with serving(pair_of(files), port):
            while (await calls.ready(TIMEOUT_S)).answer is not Answer.READY:
                await asyncio.sleep(0.01)
        await calls.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_renewed_ones_are_used_where_they_open_a_connection(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(pair_of(files)) as port:
            calls = calls_to(port, files)
            assert (await calls.ready(TIMEOUT_S)).answer is Answer.READY
            before = calls._client
            bundle = files.ca.read_bytes()
            files.renew()
            files.ca.write_bytes(bundle + files.ca.read_bytes())
            assert (await calls.ready(TIMEOUT_S)).answer is Answer.READY
            assert calls._client is not before
        assert WARNING not in caplog.text
        await calls.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
