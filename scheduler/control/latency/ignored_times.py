"""Times that cannot be, which the engine learns nothing from, and jumps of its clock.

They are told in the log when they begin and when they have stopped, however many they are.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping

from scheduler.backends.remembered import ModelKey
from scheduler.telemetry.logs import log
from scheduler.v1 import dataplane_pb2 as pb

logger = logging.getLogger(__name__)

# By the kinds of pb.LatencySnapshot.
BATCH_TIMES = {
    "backward": "batches that ended before they began, by the clock",
    "zero": "batches that took no time",
    "too_long": "batches that took more than an hour",
    "prior": "what was said before a batch ran, and makes no sense",
}
# Of the counters page.
CLOCK_JUMPS = {
    "clock_back_total": "the clock of the data plane went back",
    "clock_ahead_total": "the clock of the data plane went ahead by more than 10 s, or it stood "
    "still",
}
# Looks without another one, until it has stopped.
QUIET_LOOKS = 12


class Spell:
    """Counts that grow while something goes wrong; one of each source."""

    def __init__(self) -> None:
        self.count = 0  # since it began
        self.sources: set[str] = set()  # that have grown since the last look
        self._seen: dict[str, int] = {}
        self._told = False
        self._quiet_looks = 0

    def take(self, source: str, count: int) -> None:
        """A count that is less than it was has begun anew."""
        before = self._seen.get(source, 0)
        self._seen[source] = count
        more = count - before if count >= before else count
        if more:
            self.count += more
            self.sources.add(source)

    def look(self) -> str:
        """What has become of it: "begun", "stopped" or nothing new."""
        if self.sources:
            self._quiet_looks = 0
            news = "" if self._told else "begun"
            self._told = True
            return news
        self._quiet_looks += 1
        if not self._told or self._quiet_looks < QUIET_LOOKS:
            return ""
        self._told = False
        return "stopped"


class IgnoredTimes:
    """Takes what was read, and tells of it once a reading is through."""

    def __init__(self) -> None:
        self._of_models: dict[tuple[ModelKey, str], Spell] = {}
        self._of_clock = {kind: Spell() for kind in CLOCK_JUMPS}

    def take(self, read: Mapping[tuple[ModelKey, str], pb.LatencySnapshot]) -> None:
        """The placements that were read, by model and backend."""
        for (key, backend), latency in read.items():
            for kind in BATCH_TIMES:
                count = latency.ignored.get(kind, 0)
                if count or (key, kind) in self._of_models:
                    self._of_models.setdefault((key, kind), Spell()).take(backend, count)

    def take_clock(self, page: Mapping[str, int]) -> None:
        """The counters of the data plane as a whole."""
        for kind, spell in self._of_clock.items():
            spell.take("", page[kind])

    def tell(self, models: Container[ModelKey]) -> None:
        """Once for every reading; models that are no more are forgotten."""
        for kind, text in CLOCK_JUMPS.items():
            _tell(self._of_clock[kind], text)
        self._of_models = {at: spell for at, spell in self._of_models.items() if at[0] in models}
        for (key, kind), spell in self._of_models.items():
            text = f"model {key[0]}: times are ignored: {BATCH_TIMES[kind]}"
            backends = ", ".join(sorted(spell.sources))
            _tell(spell, text, version=key[1], backend=backends)


def _tell(spell: Spell, text: str, **fields: str) -> None:
    news = spell.look()
    if news == "begun":
        log(logger, logging.WARNING, text, times=spell.count, **fields)
    elif news == "stopped":
        fields.pop("backend", None)
        log(logger, logging.INFO, f"no more: {text}", times=spell.count, **fields)
        spell.count = 0
    spell.sources.clear()
