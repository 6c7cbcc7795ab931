"""`python -m scheduler.dataplane`: started by the supervisor, which owns the sockets."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvloop

from scheduler.dataplane.process import Inherited, run
from scheduler.dataplane.slices import ask_for_short_slices
from scheduler.security.tls import MIN_VERSIONS, ServerTls
from scheduler.telemetry import logs


def parse_arguments() -> tuple[Inherited, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="infersched-dataplane", description=__doc__)
    parser.add_argument("--listen-fd", type=int, action="append", default=[], required=True)
    parser.add_argument("--steering-fd", type=int, required=True)
    parser.add_argument("--counters-fd", type=int, required=True)
    parser.add_argument("--cold-socket", required=True)
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-client-ca", type=Path)
    parser.add_argument("--tls-min-version", choices=MIN_VERSIONS, default="1.2")
    parser.add_argument("--no-scheduling-hints", dest="hints", action="store_false")
    parser.add_argument("--log-level", choices=logs.LEVELS, default=None)
    arguments = parser.parse_args()
    tls: ServerTls | None = None
    if arguments.tls_certificate is not None:
        tls = ServerTls(
            certificate=arguments.tls_certificate,
            key=arguments.tls_key,
            client_ca=arguments.tls_client_ca,
            min_version=arguments.tls_min_version,
        )
    inherited = Inherited(
        listen_fds=tuple(arguments.listen_fd),
        steering_fd=arguments.steering_fd,
        counters_fd=arguments.counters_fd,
        cold_socket=arguments.cold_socket,
        tls=tls,
    )
    return inherited, arguments


def main() -> None:
    inherited, arguments = parse_arguments()
    logs.configure("dataplane", arguments.log_level)
    if arguments.hints:
        ask_for_short_slices()
    uvloop.run(run(inherited))


if __name__ == "__main__":
    main()
