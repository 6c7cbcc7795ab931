"""Which changes of a device's memory may be of models that are loaded or unloaded, not of batches:
the data plane compares no figures across them."""

from __future__ import annotations

from collections.abc import Container

from scheduler.control.turns import Turns
from scheduler.memory.table import DeviceMemory

# Of free bytes; less is no model.
CHANGE_BYTES = 2**20


class LoadMarks:
    """By device. `turns` tells when models came or went."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._seen: dict[str, tuple[int, int, int]] = {}  # when, free bytes, and the changes

    def keep(self, keys: Container[str]) -> None:
        """There are no others any more."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}

    def of(self, key: str, device: DeviceMemory) -> int:
        """A number that grows with every such change, and when one is noticed late: what showed it
        may have been told already."""
        at_ns, free = device.reading.measured_at_ns, device.reading.free_bytes
        from_ns, before, changes = self._seen.get(key, (at_ns, free, 0))
        if device.known and at_ns:
            if abs(free - before) >= CHANGE_BYTES and self._turns.ran_between(from_ns, at_ns):
                changes += 1
            self._seen[key] = at_ns, free, changes
        return changes + self._turns.surprises
