"""Another tenant of a GPU: it takes and frees memory by a schedule.

`python -m benchmarks.gpu_tenant DEVICE` holds as many bytes as the last line of its input says, as
far as they are free, and answers every line with what it has. PyTorch takes them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Protocol

from tests.nvml.figures import Figures

CHUNK_BYTES = 2**30
# Of the memory that the model leaves at its largest, or of all that is free: now less, now more.
PARTS = (0.0, 0.3, 0.6, 0.8, 0.9, 1.0)

Schedule = tuple[tuple[float, int], ...]


def schedule(seed: int, seconds: float, room_bytes: int) -> Schedule:
    """(at, bytes wanted) of changes up to `seconds`; most of the room at first."""
    random = Random(seed)
    changes, at_s = [(0.0, int(0.8 * room_bytes))], 0.0
    while (at_s := at_s + random.uniform(0.3, 3.0)) < seconds:
        changes.append((at_s, int(random.choice(PARTS) * room_bytes)))
    return tuple(changes)


class Tenant(Protocol):
    def hold(self, size_bytes: int) -> int:
        """Has so many bytes, or what it can get; returns what it has."""

    def close(self) -> None: ...


class ProcessTenant:
    """On a real GPU, in a process of its own."""

    def __init__(self, device: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_tenant", str(device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hold(self, size_bytes: int) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(size_bytes, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class FiguresTenant:
    """On a device of the tests' NVML."""

    def __init__(self, figures: Figures, place: int = 0) -> None:
        self._figures, self._place = figures, place

    def hold(self, size_bytes: int) -> int:
        with self._figures.locked():
            device = self._figures.devices[self._place]
            device.other_bytes = min(size_bytes, device.free_bytes + device.other_bytes)
            return int(device.other_bytes)

    def close(self) -> None:
        self.hold(0)


class Playing:
    """Plays a schedule while it is entered; `held` is (seconds since the start, bytes)."""

    def __init__(self, tenant: Tenant, changes: Schedule) -> None:
        self.held: list[tuple[float, int]] = []
        self._tenant, self._changes = tenant, changes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def __enter__(self) -> Playing:
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._tenant.hold(0)

    def _play(self) -> None:
        for at_s, wanted in self._changes:
            if self._stop.wait(max(self._began_s + at_s - time.monotonic(), 0)):
                return
            held = self._tenant.hold(wanted)
            self.held.append((time.monotonic() - self._began_s, held))


def main(arguments: Sequence[str]) -> None:
    import torch

    device = torch.device("cuda", int(arguments[0]))
    chunks: list[torch.Tensor] = []
    for line in sys.stdin:
        wanted = int(line) // CHUNK_BYTES
        while len(chunks) > wanted:
            chunks.pop()
        torch.cuda.empty_cache()
        try:
            while len(chunks) < wanted:
                chunks.append(torch.empty(CHUNK_BYTES, dtype=torch.uint8, device=device))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        print(len(chunks) * CHUNK_BYTES, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
