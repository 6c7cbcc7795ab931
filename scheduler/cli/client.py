"""The command line's end of the Control service."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc

from scheduler.v1 import control_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:8004"
# The control plane is nice: on a busy machine it takes its time.
TIMEOUT_S = 20.0

Command = Callable[..., Any]


def control_option(command: Command) -> Command:
    """`--control HOST:PORT`."""
    return click.option(
        "--control",
        "control_address",
        metavar="HOST:PORT",
        default=DEFAULT_ADDRESS,
        show_default=True,
        envvar="INFERSCHED_CONTROL",
        show_envvar=True,
        help="Control listener of the running scheduler.",
    )(command)


@contextmanager
def control_stub(address: str) -> Iterator[control_pb2_grpc.ControlStub]:
    """A stub; a failed call becomes one line on stderr and exit status 1."""
    options = [("grpc.enable_http_proxy", 0)]
    try:
        with grpc.insecure_channel(address, options=options) as channel:
            yield control_pb2_grpc.ControlStub(channel)
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE and "connect" in (details or ""):
            details = f"no scheduler answers at {address}; is `infersched serve` running?"
        click.echo(f"infersched: {details}", err=True)

        sys.exit(1)
