"""Which changes of a device's memory may be of models that are loaded or unloaded, not of batches:
the data plane compares no figures across them."""

from __future__ import annotations

from collections.abc import Callable, Container

from scheduler.memory.table import DeviceMemory

# Of free bytes; less is no model.
CHANGE_BYTES = 2**20


class LoadMarks:
    """By device. `loaded_between(from_ns, to_ns)` tells whether models came or went then."""

    def __init__(self, loaded_between: Callable[[int, int], bool]) -> None:
        self._loaded_between = loaded_between
        self._seen: dict[str, tuple[int, int, int]] = {}  # when, free bytes, and the mark

    def keep(self, keys: Container[str]) -> None:
        """There are no others any more."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}

    def of(self, key: str, device: DeviceMemory) -> int:
        """A number that grows with every such change."""
        at_ns, free = device.reading.measured_at_ns, device.reading.free_bytes
        from_ns, before, mark = self._seen.get(key, (at_ns, free, 0))
        if not device.known or at_ns == 0:
            return mark
        if abs(free - before) >= CHANGE_BYTES and self._loaded_between(from_ns, at_ns):
            mark += 1
        self._seen[key] = at_ns, free, mark
        return mark
