"""Closed-loop clients that check every answer while a test breaks something."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np

from tests.dataplane import wait_until
from tests.wire.calls import Stub, connected, infer_request, output, rows

CLIENTS = 8
CALL_TIMEOUT_S = 20.0
WAIT_S = 60.0


class Load:
    """What the clients have seen so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.errors: list[Exception] = []
        self.answered = 0
        # How often a client that had good answers began to see errors.
        self.interruptions = 0
        self._interrupted: set[int] = set()

    def add(self, client: int, error: Exception | None) -> None:
        with self._lock:
            if error is None:
                self.answered += 1
                self._interrupted.discard(client)
                return
            self.errors.append(error)
            if client not in self._interrupted:
                self._interrupted.add(client)
                self.interruptions += 1

    def wait_answers(self, more: int, timeout_s: float = WAIT_S) -> None:
        """Waits for that many further good answers."""
        target = self.answered + more
        wait_until(lambda: self.answered >= target, f"{more} more answers", timeout_s)

    def codes(self) -> set[grpc.StatusCode]:
        """The statuses seen; an answer with wrong values is raised here."""
        for error in self.errors:
            if not isinstance(error, grpc.RpcError):
                raise error
        return {error.code() for error in self.errors}


@contextmanager
def load(
    address: str, *, clients: int = CLIENTS, model: str = "identity", **call: Any
) -> Iterator[Load]:
    """`clients` connections, each with one request out; rows and values differ by client and turn.

    The body starts when all have had answers, and the load goes on for a moment after it.
    """
    seen = Load()
    stop = threading.Event()
    call.setdefault("timeout", CALL_TIMEOUT_S)

    def run(stub: Stub, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            value = rows(number * 1000 + turn % 1000, 1 + turn % 4)
            try:
                response = stub.ModelInfer(infer_request(value, model=model), **call)
                np.testing.assert_array_equal(output(response), value)
            except Exception as error:  # told by the caller
                seen.add(number, error)
            else:
                seen.add(number, None)

    with ExitStack() as stack:
        stubs = [stack.enter_context(connected(address)) for _ in range(clients)]
        threads = [
            threading.Thread(target=run, args=(stub, number)) for number, stub in enumerate(stubs)
        ]
        for thread in threads:
            thread.start()
        try:
            seen.wait_answers(4 * clients)
            yield seen
            seen.wait_answers(4 * clients)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
