"""Below the codec: deadlines that pass, and what is not one message. Straight and through, read off
the wire, the same words.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import h2.events
import hpack
import pytest
from hyperframe.frame import Frame, HeadersFrame

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, rows
from tests.wire.raw_client import RawClient, grpc_message

pytestmark = pytest.mark.e2e

EXECUTION_S = 0.6
STREAMS = 1_100
UNPARSABLE = ("13", "Unable to parse request")
MESSAGE = infer_request(rows(1)).SerializeToString()
GZIP = gzip.compress(MESSAGE)
STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def addresses(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Straight to Triton, and through the scheduler, which has seen a batch."""
    repository: Path = tmp_path_factory.mktemp("transport")
    models.identity(repository)
    models.slow(repository, per_execution_s=EXECUTION_S)
    with (
        EmbeddedTriton(repository) as triton,
        ServedScheduler(["--backend", triton.grpc_address]) as scheduler,
    ):
        with connected(scheduler.address) as stub:
            stub.ModelInfer(infer_request(rows(1), model="slow"), timeout=30)
        yield [triton.grpc_address, scheduler.address]


def verdict(address: str, data: bytes, *headers: tuple[str, str]) -> tuple[str, str]:
    """The code and text of a unary call of these DATA, as the server wrote them.

    What the server sends after its answer is not looked at: Triton's frames go on there, and h2
    would end in them.
    """
    with RawClient(address) as client:
        stream = client.request_headers(*headers)
        client.send_data(stream, data, end_stream=True)
        answer = headers_of_answer(client, stream)
        return answer["grpc-status"], answer.get("grpc-message", "")


def headers_of_answer(client: RawClient, stream: int) -> dict[str, str]:
    """Up to the end of the stream."""
    decoder, found, received = hpack.Decoder(), {}, b""
    while True:
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3], "big"):
            part = client.socket.recv(1 << 16)
            assert part, "the server closed the connection"
            received += part
        frame, size = Frame.parse_frame_header(memoryview(received[:9]))
        frame.parse_body(memoryview(received[9 : 9 + size]))
        received = received[9 + size :]
        if isinstance(frame, HeadersFrame):
            found.update(decoder.decode(bytes(frame.data)))
        if frame.stream_id == stream and "END_STREAM" in frame.flags:
            return found


# Too short for anything, and below what an execution takes.
@pytest.mark.parametrize("timeout", ["0S", "1n", "200m"])
def test_a_grpc_deadline_that_passes(addresses: list[str], timeout: str) -> None:
    data = grpc_message(infer_request(rows(1), model="slow").SerializeToString())
    straight, through = (verdict(address, data, ("grpc-timeout", timeout)) for address in addresses)
    assert straight == ("4", "Deadline Exceeded")
    assert through == straight


def test_many_streams_on_one_connection(addresses: list[str]) -> None:
    for address in addresses:
        with RawClient(address) as client:
            client.wait_for(h2.events.RemoteSettingsChanged)
            opened = [client.request_headers(path=STREAM_PATH) for _ in range(STREAMS)]
            client.send_data(opened[-1], grpc_message(MESSAGE))
            client.wait_for(h2.events.DataReceived, opened[-1])


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"", []),
        (grpc_message(MESSAGE)[:-3], []),
        (b"\0\0", []),
        (b"\2" + grpc_message(MESSAGE)[1:], []),
        (grpc_message(GZIP, compressed=True), []),
        (grpc_message(GZIP, compressed=True), [("grpc-encoding", "identity")]),
    ],
    ids=["none", "cut", "cut in its length", "flag", "compressed", "compressed as identity"],
)
def test_what_is_not_a_message(
    addresses: list[str], data: bytes, headers: list[tuple[str, str]]
) -> None:
    """Triton's transport gives up the call while Triton takes the message, now and then as one that
    is empty.
    """
    straight, through = (verdict(address, data, *headers) for address in addresses)
    assert straight in [UNPARSABLE, ("5", "Request for unknown model: '' is not found")]
    assert through == UNPARSABLE
