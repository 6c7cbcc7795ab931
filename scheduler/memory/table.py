"""All devices by key, whatever source tells of them: their last figures, and what these are worth.

A device is `known` while a source tells figures of it that are young enough. One that was known
stays in the table, unknown, so that what became of it can be seen; batches there are then bounded
by what was learned from out-of-memory replies only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scheduler.config.units import format_duration
from scheduler.memory.headroom import Ages, Headroom, widened_bytes
from scheduler.memory.source import DeviceReading, SourceAbsent, SourceError
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

# Of devices that are gone and that nothing refers to; the oldest go first.
GONE_MAX = 64
# Between two warnings of one device or source that comes and goes.
SAY_PERIOD_S = 60.0
FALLBACK = "batches there are bounded by what is learned from out-of-memory replies only"


@dataclass(frozen=True)
class DeviceMemory:
    """What is known of a device at one instant. `known`: the figures may be relied on."""

    key: str
    known: bool
    source: str
    problem: str
    age_ns: int
    headroom_bytes: int
    reading: DeviceReading
    schedulers: int = 1  # that use it, each with a memory ledger of its own
    old: bool = False  # the figures are stale, and the headroom is wider for it


@dataclass
class _Entry:
    reading: DeviceReading  # the last one without a problem, or the first
    source: str
    rank: int
    ages: Ages
    problem: str = ""
    told: bool = False  # that there is a problem


@dataclass
class _Source:
    error: str = ""
    told: bool = False  # that there is an error
    absent: bool = False
    errors: int = 0
    keys: set[str] = field(default_factory=set)


class DeviceTable:
    """Takes looks from any source; not thread-safe."""

    def __init__(
        self,
        headroom_of: Callable[[str], Headroom],
        clock_s: Callable[[], float] = time.monotonic,
        schedulers_of: Callable[[str], int] = lambda key: 1,
    ) -> None:
        self._headroom_of = headroom_of
        self._schedulers_of = schedulers_of
        self._clock_s = clock_s
        self._said_at_s: dict[str, float] = {}
        self._entries: dict[str, _Entry] = {}
        self._sources: dict[str, _Source] = {}

    def take(
        self,
        source: str,
        rank: int,
        ages: Ages,
        readings: Sequence[DeviceReading],
        error: SourceError | None = None,
    ) -> None:
        """A look of a source; `error` says why it has none. Of two sources that tell of one device
        the one of the lower rank counts, as long as it tells figures."""
        state = self._sources.setdefault(source, _Source())
        self._say_source(source, state, error)
        state.absent = _is_absent(state, error)
        if error is not None:
            state.errors += 1
            return  # what it has told ages
        keys = {reading.key for reading in readings}
        for key in state.keys - keys:
            self._lose(key, source, "it is gone: lost, or divided anew (MIG)")
        for reading in readings:
            self._take_reading(reading, source, rank, ages)
        state.keys = keys

    def drop_source(self, source: str) -> None:
        """The configuration has it no more: nor its devices."""
        self._sources.pop(source, None)
        self._entries = {k: e for k, e in self._entries.items() if e.source != source}

    def forget_gone(self, referred_to: set[str]) -> None:
        """Bounds what is kept of devices that no source tells of."""
        gone = [key for key, entry in self._entries.items() if self._is_gone(key, entry)]
        for key in [key for key in gone if key not in referred_to][:-GONE_MAX]:
            del self._entries[key]

    def devices(self, now_ns: int) -> dict[str, DeviceMemory]:
        """Every device by key, as of now."""
        return {key: self._device(key, entry, now_ns) for key, entry in self._entries.items()}

    def say_ages(self, now_ns: int) -> None:
        """Tells of figures that have become too old: their source hangs."""
        for key, entry in self._entries.items():
            device = self._device(key, entry, now_ns)
            # A source that fails has been told of.
            if not device.known and not self.source_problems.get(entry.source):
                self._say(key, entry, device.problem)

    @property
    def keys(self) -> set[str]:
        return set(self._entries)

    @property
    def told(self) -> set[str]:
        """The keys that a source told of at its last look that did not fail."""
        return {key for state in self._sources.values() for key in state.keys}

    @property
    def source_errors(self) -> dict[str, int]:
        """Failed looks by source, of those that are there."""
        sources = list(self._sources.items())
        return {name: state.errors for name, state in sources if not state.absent}

    @property
    def source_problems(self) -> dict[str, str]:
        """What is wrong with each source now; empty when nothing is."""
        return {name: state.error for name, state in list(self._sources.items())}

    def heard_of(self, sources: Sequence[str]) -> bool:
        """Whether each of these has been looked at once."""
        return all(name in self._sources for name in sources)

    def of_source(self, source: str) -> list[DeviceReading]:
        """The devices that the source tells of, by the driver's numbers."""
        state = self._sources.get(source, _Source())
        found = [e for key, e in self._entries.items() if e.source == source and key in state.keys]
        # One of which nothing is known is not taken for another one.
        found.sort(key=lambda entry: (entry.reading.ordinal, bool(entry.problem)))
        return [entry.reading for entry in found]

    def _take_reading(self, reading: DeviceReading, source: str, rank: int, ages: Ages) -> None:
        entry = self._entries.get(reading.key)
        if entry is not None and entry.source != source and entry.rank <= rank:
            told_by = self._sources.get(entry.source)
            if not entry.problem and told_by is not None and not told_by.error:
                return
        if entry is None:
            entry = self._entries[reading.key] = _Entry(reading, source, rank, ages)
        if reading.problem:
            if entry.source == source:
                entry.problem = reading.problem
                self._say(reading.key, entry, reading.problem)
            return
        if entry.told:
            log(logger, logging.INFO, "device memory is known again", device=reading.key,
                source=source)  # fmt: skip
        self._entries[reading.key] = _Entry(reading, source, rank, ages)

    def _lose(self, key: str, source: str, problem: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.source == source:
            entry.problem = problem
            self._say(key, entry, problem)

    def _is_gone(self, key: str, entry: _Entry) -> bool:
        state = self._sources.get(entry.source)
        return bool(entry.problem) and (state is None or key not in state.keys)

    def _device(self, key: str, entry: _Entry, now_ns: int) -> DeviceMemory:
        reading = entry.reading
        age_ns = max(now_ns - reading.measured_at_ns, 0) if reading.measured_at_ns else 0
        headroom = self._headroom_of(key).bytes_of(reading.total_bytes)
        problem = entry.problem
        if not problem and age_ns >= entry.ages.lost_after_ns:
            state = self._sources.get(entry.source)
            problem = (
                f"its figures are older than {format_duration(entry.ages.lost_after_ns)}: "
                + (state.error if state is not None and state.error else f"{entry.source} hangs")
            )
        return DeviceMemory(
            key=key,
            known=not problem,
            source=entry.source,
            problem=problem,
            age_ns=age_ns,
            headroom_bytes=min(widened_bytes(headroom, age_ns, entry.ages), reading.total_bytes),
            reading=reading,
            old=not problem and age_ns > entry.ages.stale_after_ns > 0,
            schedulers=self._schedulers_of(key),
        )

    def _say(self, key: str, entry: _Entry, problem: str) -> None:
        if not entry.told and self._may_say(f"device {key}"):
            entry.told = True
            log(logger, logging.WARNING, f"the memory of a device is not known: {problem}; "
                f"{FALLBACK}", device=key, source=entry.source)  # fmt: skip

    def _may_say(self, what: str) -> bool:
        """What comes and goes is said once a while."""
        now_s = self._clock_s()
        if now_s - self._said_at_s.get(what, float("-inf")) < SAY_PERIOD_S:
            return False
        self._said_at_s = {w: at for w, at in self._said_at_s.items() if now_s - at < SAY_PERIOD_S}
        self._said_at_s[what] = now_s
        return True

    def _say_source(self, source: str, state: _Source, error: SourceError | None) -> None:
        text = str(error) or "it fails" if error is not None else ""
        if text and not state.told and self._may_say(f"source {source}"):
            state.told = True
            level = logging.INFO if _is_absent(state, error) else logging.WARNING
            log(logger, level, f"no device memory is known by {source}: {text}; {FALLBACK}")
        elif not text and state.told:
            state.told = False
            log(logger, logging.INFO, f"device memory is known by {source} again")
        state.error = text


def _is_absent(source: _Source, error: SourceError | None) -> bool:
    """Whether it never told of a device: then there need not be any."""
    return isinstance(error, SourceAbsent) and not source.keys


def fixed_reading(key: str, total_bytes: int, used_bytes: int) -> DeviceReading:
    """A device by the figures of the configuration; they do not age."""
    return DeviceReading(
        key,
        measured_at_ns=0,
        total_bytes=total_bytes,
        free_bytes=total_bytes - used_bytes,
        used_bytes=used_bytes,
    )
