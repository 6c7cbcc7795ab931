"""`python -m scheduler.dataplane`: started by the supervisor, which owns the sockets."""

from __future__ import annotations

import argparse

import uvloop

from scheduler.dataplane.process import Inherited, run
from scheduler.telemetry import logs


def parse_arguments() -> tuple[Inherited, str | None]:
    parser = argparse.ArgumentParser(prog="infersched-dataplane", description=__doc__)
    parser.add_argument("--listen-fd", type=int, action="append", default=[], required=True)
    parser.add_argument("--steering-fd", type=int, required=True)
    parser.add_argument("--counters-fd", type=int, required=True)
    parser.add_argument("--cold-socket", required=True)
    parser.add_argument("--log-level", choices=logs.LEVELS, default=None)
    arguments = parser.parse_args()
    inherited = Inherited(
        listen_fds=tuple(arguments.listen_fd),
        steering_fd=arguments.steering_fd,
        counters_fd=arguments.counters_fd,
        cold_socket=arguments.cold_socket,
    )
    return inherited, arguments.log_level


def main() -> None:
    inherited, log_level = parse_arguments()
    logs.configure("dataplane", log_level)
    uvloop.run(run(inherited))


if __name__ == "__main__":
    main()
