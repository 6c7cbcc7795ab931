"""Backends that break the protocol or end their connections in the middle of something."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from tests.dataplane import DataPlane, identity_model
from tests.wire.calls import connected, infer_error, infer_request, output, rows
from tests.wire.fake_triton import Request, identity
from tests.wire.h2_backend import OK_HEADERS, OK_TRAILERS, H2Backend, answer
from tests.wire.raw_client import grpc_message


def good(connection: H2Connection, stream: int, message: bytes) -> bool | None:
    answer(connection, stream, identity(Request.FromString(message)).SerializeToString())
    return None


def once(bad: Callable[[H2Connection, int, bytes], bool | None], times: int = 1) -> H2Backend:
    """Does `bad` with the first request, or so many, and is good from then on."""
    seen: list[int] = []

    def on_request(connection: H2Connection, stream: int, message: bytes) -> bool | None:
        seen.append(stream)
        behave = bad if len(seen) <= times else good
        return behave(connection, stream, message)

    return H2Backend(on_request)


def close_at_once(connection: H2Connection, stream: int, message: bytes) -> bool:
    return False


def close_inside_the_reply(connection: H2Connection, stream: int, message: bytes) -> bool:
    connection.send_headers(stream, OK_HEADERS)
    connection.send_data(stream, b"\0\0\0\1\0abc")
    return False


def refuse_stream(connection: H2Connection, stream: int, message: bytes) -> None:
    connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)


def break_stream(connection: H2Connection, stream: int, message: bytes) -> None:
    connection.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)


def cancel_inside_the_reply(connection: H2Connection, stream: int, message: bytes) -> None:
    connection.send_headers(stream, OK_HEADERS)
    connection.reset_stream(stream, ErrorCodes.CANCEL)


def goaway_below(connection: H2Connection, stream: int, message: bytes) -> bool:
    connection.close_connection(ErrorCodes.NO_ERROR, last_stream_id=max(stream - 2, 0))
    return False


@pytest.mark.parametrize(
    "bad",
    [
        close_at_once,
        close_inside_the_reply,
        refuse_stream,
        break_stream,
        cancel_inside_the_reply,
        goaway_below,
    ],
    ids=lambda bad: bad.__name__,
)
def test_a_lost_call_is_run_again(
    bad: Callable[[H2Connection, int, bytes], bool | None], plane: DataPlane
) -> None:
    with once(bad) as backend, connected(plane.address) as stub:
        plane.apply([identity_model()], [backend.address])
        for n in range(3):
            response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(n))
        assert backend.requests == 4


def reset_and_leave(connection: H2Connection, stream: int, message: bytes) -> bool:
    connection.reset_stream(stream, ErrorCodes.CANCEL)
    connection.close_connection(ErrorCodes.NO_ERROR, last_stream_id=stream)
    return False


def test_a_reset_by_a_backend_that_leaves_is_a_lost_connection(plane: DataPlane) -> None:
    """However often: nothing of it is the fault of the request."""
    with once(reset_and_leave, times=3) as backend, connected(plane.address) as stub:
        plane.apply([identity_model()], [backend.address])
        response = stub.ModelInfer(infer_request(rows(1)), timeout=20)
        np.testing.assert_array_equal(output(response), rows(1))
        assert backend.requests == 4


@pytest.mark.parametrize("bad", [refuse_stream, goaway_below], ids=lambda bad: bad.__name__)
def test_what_surely_did_not_run_is_sent_again_even_if_not_idempotent(
    bad: Callable[[H2Connection, int, bytes], bool | None], plane: DataPlane
) -> None:
    with once(bad) as backend, connected(plane.address) as stub:
        plane.apply([identity_model(idempotent=False)], [backend.address])
        response = stub.ModelInfer(infer_request(rows(1)), timeout=30)
        np.testing.assert_array_equal(output(response), rows(1))


def goaway_after_the_reply(connection: H2Connection, stream: int, message: bytes) -> bool:
    good(connection, stream, message)
    connection.close_connection(ErrorCodes.NO_ERROR, last_stream_id=stream)
    return False


def test_a_connection_that_is_retired_again_and_again_loses_nothing(plane: DataPlane) -> None:
    with H2Backend(goaway_after_the_reply) as backend, connected(plane.address) as stub:
        plane.apply([identity_model()], [backend.address])
        for n in range(10):
            response = stub.ModelInfer(infer_request(rows(n)), timeout=30)
            np.testing.assert_array_equal(output(response), rows(n))


def reply_parts(*parts: bytes | list[tuple[str, str]]) -> Callable[..., bool | None]:
    """Headers as lists, DATA as bytes; the last part ends the stream."""

    def on_request(connection: H2Connection, stream: int, message: bytes) -> None:
        for position, part in enumerate(parts):
            last = position + 1 == len(parts)
            if isinstance(part, bytes):
                connection.send_data(stream, part, end_stream=last)
            else:
                connection.send_headers(stream, part, end_stream=last)

    return on_request


REPLY = identity(infer_request(rows(1))).SerializeToString()
BAD_REPLIES = {
    "no message": (OK_HEADERS, OK_TRAILERS),
    "half a message": (OK_HEADERS, grpc_message(REPLY)[:-3], OK_TRAILERS),
    "two messages": (OK_HEADERS, grpc_message(REPLY) * 2, OK_TRAILERS),
    "compressed": (OK_HEADERS, grpc_message(REPLY, compressed=True), OK_TRAILERS),
    "no status": (OK_HEADERS, grpc_message(REPLY)),
    "status text": (OK_HEADERS, grpc_message(REPLY), [("grpc-status", "fine")]),
    "http error": ([(":status", "503"), ("content-type", "text/html")], b"<html>"),
    "reset with an error": None,
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_a_broken_reply_is_an_error_of_its_request_only(name: str, plane: DataPlane) -> None:
    parts = BAD_REPLIES[name]

    def reset(connection: H2Connection, stream: int, message: bytes) -> None:
        connection.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)

    bad = reset if parts is None else reply_parts(*parts)
    with H2Backend(bad) as backend, connected(plane.address) as stub:
        plane.apply([identity_model(idempotent=False)], [backend.address])
        error = infer_error(stub, infer_request(rows(1)), timeout=30)
        assert error.code() in (
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNIMPLEMENTED,
        )
        assert error.details() or name == "status text"
        assert "Stream removed" not in error.details(), "it is answered, not reset"


def test_trailers_of_the_backend_do_not_confuse_ours(plane: DataPlane) -> None:
    trailers = [("grpc-status", "9"), ("grpc-message", "50%25 done%0A%zz"), ("x-more", "y")]
    trailers_only = [*OK_HEADERS, *trailers]
    for parts in ((OK_HEADERS, trailers), (trailers_only,)):
        with H2Backend(reply_parts(*parts)) as backend, connected(plane.address) as stub:
            plane.apply([identity_model()], [backend.address])
            error = infer_error(stub, infer_request(rows(1)), timeout=30)
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert error.details() == "50% done\n%zz"
