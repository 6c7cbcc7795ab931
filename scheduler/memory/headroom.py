"""How much of a device's free memory is kept, and how old figures widen that."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.config.device_memory import HEADROOM_MIN_DEFAULT, HEADROOM_PART_DEFAULT


@dataclass(frozen=True)
class Headroom:
    """Of a device with `total_bytes`: the larger of a part of it and a number of bytes."""

    part: float = HEADROOM_PART_DEFAULT
    bytes_min: int = HEADROOM_MIN_DEFAULT

    def bytes_of(self, total_bytes: int) -> int:
        return max(int(self.part * total_bytes), self.bytes_min)


@dataclass(frozen=True)
class Ages:
    """Figures up to `stale_after_ns` are fresh, those of `lost_after_ns` say nothing any more."""

    stale_after_ns: int
    lost_after_ns: int


def widened_bytes(headroom_bytes: int, age_ns: int, ages: Ages) -> int:
    """headroom · max(1, age / stale_after).

    Another tenant may take memory at any time, and the longer it had for it the more it may have
    taken: the headroom grows in proportion to the time that nobody has looked.
    """
    if age_ns <= ages.stale_after_ns:
        return headroom_bytes
    return headroom_bytes * age_ns // max(ages.stale_after_ns, 1)
