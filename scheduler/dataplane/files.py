"""How many files the data plane may open: each connection is one.

The soft limit of 1,024 that most systems start processes with is for programs that use select().
"""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("infersched.dataplane")

# For connections to backends and to the control plane, and what the process itself has open.
FILES_KEPT_BACK = 256


def raise_file_limit() -> int:
    """Raises the soft limit to the hard one. Returns the number of files that may be open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_within(wanted: int, file_limit: int) -> int:
    """The client connections that can be had of `wanted`, with files left for the backends.

    A listener without files left would let clients wait for ever, and a lost backend could not be
    dialled again.
    """
    possible = max(file_limit - FILES_KEPT_BACK, file_limit // 2, 1)
    return min(wanted, possible)


class ConnectionLimit:
    """Cuts `server.connections_max` down to what the system allows, and says so once."""

    def __init__(self) -> None:
        self._file_limit = raise_file_limit()
        self._said = 0

    def within(self, wanted: int) -> int:
        possible = connections_within(wanted, self._file_limit)
        if possible < wanted != self._said:
            self._said = wanted
            log.warning(
                "connections_max %d is cut to %d: the limit of open files is %d; raise it "
                "(ulimit -n, LimitNOFILE=)",
                wanted,
                possible,
                self._file_limit,
            )
        return possible
