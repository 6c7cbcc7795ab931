"""Stub servers in processes of their own: their start, their address, what they have answered.

A stub prints one JSON line with its address, then one with its counts for each line it reads; it
ends when its input does, so none outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from benchmarks.results import ROOT

ANSWER_TIMEOUT_S = 20.0
EXIT_TIMEOUT_S = 5.0


class StubFailed(RuntimeError):
    """The stub ended or does not answer."""


@dataclass(frozen=True)
class Counts:
    """What a stub has answered since its start."""

    executions: int
    rows: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.executions - other.executions, self.rows - other.rows)


class StubProcess:
    """`python -m MODULE` as a child."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __enter__(self) -> StubProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.address: str = self._read_line()["address"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def counts(self) -> Counts:
        """Raises StubFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return Counts(**self._read_line())

    def _read_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise StubFailed(f"{self._module} does not answer: status {self._process.poll()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


async def serve_until_input_ends(address: str, counts: Callable[[], Counts]) -> None:
    """The stub's side: tells the address, then the counts as often as asked."""
    ended = asyncio.Event()

    def on_input() -> None:
        asked = os.read(sys.stdin.fileno(), 4096)
        for _ in range(asked.count(b"\n")):
            print(json.dumps(vars(counts())), flush=True)
        if not asked:
            ended.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), on_input)
    print(json.dumps({"address": address}), flush=True)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())


@contextlib.contextmanager
def started_on(core: int) -> Iterator[None]:
    """Processes started in the block stay on that core; the caller gets its own cores back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
