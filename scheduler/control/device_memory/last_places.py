"""Where placements were while that was known, kept over restarts.

A device that is lost, left out of one enumeration, or of a driver that hangs while the scheduler
starts is the placement's still: told to be nowhere, the data plane would forget what it has
learned, which is what bounds batches then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scheduler.backends.remembered import ModelKey
from scheduler.config.device_memory import DEVICES_MAX, DeviceKey
from scheduler.config.section import Section
from scheduler.control.device_memory.places import Places
from scheduler.control.kept_file import KeptFile

FILE_NAME = "places.json"
# Models come and go by other names.
ENTRIES_MAX = 16_384


class KeptPlace(Section):
    """Of one model version at one backend. `asked` is what the keys depend on beside what sources
    tell: its groups, and what the configuration says of it and of which sources there are."""

    model: Annotated[str, Field(min_length=1)]
    version: str
    backend: Annotated[str, Field(min_length=1)]
    asked: str
    keys: Annotated[tuple[DeviceKey, ...], Field(min_length=1, max_length=DEVICES_MAX)]


class PlacesFile(Section):
    """The file."""

    format: Literal["infersched-places"] = "infersched-places"
    format_version: Literal[1] = 1
    places: Annotated[tuple[KeptPlace, ...], Field(max_length=ENTRIES_MAX)] = ()


class LastPlaces:
    """By model version and backend address, of those too that are not there now."""

    def __init__(self, directory: Path) -> None:
        self._file = KeptFile(directory / FILE_NAME, PlacesFile, "last places of models")
        kept = self._file.load()
        places = kept.places if kept is not None else ()
        self._last = {((p.model, p.version), p.backend): p for p in places}

    def kept(
        self,
        found: Mapping[tuple[ModelKey, str], Places],
        asked: Mapping[tuple[ModelKey, str], object],
    ) -> dict[tuple[ModelKey, str], Places]:
        """`found` with the last keys where there is only a problem; a placement of which `asked`
        is another has no last keys."""
        kept: dict[tuple[ModelKey, str], Places] = {}
        changed = False
        for placement, places in found.items():
            before, question = self._last.get(placement), repr(asked[placement])
            if places.problem and before is not None and before.asked == question:
                places = replace(places, keys=before.keys)
            elif places.keys:
                changed |= self._note(placement, question, places.keys)
            kept[placement] = places
        if changed:
            self._file.store(PlacesFile(places=tuple(self._last.values())))
        return kept

    def _note(self, placement: tuple[ModelKey, str], asked: str, keys: tuple[str, ...]) -> bool:
        """Whether it is new; beyond the bound what was noted first is dropped."""
        (model, version), backend = placement
        place = KeptPlace(model=model, version=version, backend=backend, asked=asked, keys=keys)
        if self._last.get(placement) == place:
            return False
        self._last.pop(placement, None)
        self._last[placement] = place
        while len(self._last) > ENTRIES_MAX:
            del self._last[next(iter(self._last))]
        return True
