"""Stable numbers for model versions and backends; the counters page is kept by them.

The book is written to the runtime directory, so that a control plane that was killed comes back
with the same numbers and the data plane's queues and counters stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from scheduler._native.counters import BACKENDS_MAX, MODELS_MAX

__all__ = ["BACKENDS_MAX", "MODELS_MAX", "IndexBook"]


class IndexBook:
    """Gives each key a number below `limit`; a freed number is used again as late as possible."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._index_of: dict[str, int] = {}
        self._freed: list[int] = []
        self._next = 0
        self._load()

    @property
    def index(self) -> dict[str, int]:
        """The numbers as they were assigned last, also by the process before this one."""
        return dict(self._index_of)

    @property
    def given(self) -> range:
        """All numbers that were ever given, freed ones too."""
        return range(self._next)

    def assign(self, keys: Iterable[str]) -> dict[str, int]:
        """The numbers of exactly these keys; keys beyond the limit get none."""
        wanted = dict.fromkeys(keys)
        before = (dict(self._index_of), self._next)
        for key in [key for key in self._index_of if key not in wanted]:
            self._freed.append(self._index_of.pop(key))
        for key in wanted:
            if key not in self._index_of:
                index = self._take()
                if index is not None:
                    self._index_of[key] = index
        if (self._index_of, self._next) != before:
            self._store()
        return {key: self._index_of[key] for key in wanted if key in self._index_of}

    def _take(self) -> int | None:
        if self._next < self._limit:
            self._next += 1
            return self._next - 1
        return self._freed.pop(0) if self._freed else None

    def _load(self) -> None:
        try:
            stored = json.loads(self._path.read_text())
            self._index_of = {str(k): int(v) for k, v in stored["index_of"].items()}
            self._freed = [int(index) for index in stored["freed"]]
            self._next = int(stored["next"])
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            # Absent at the first start; a torn one only costs the continuity of counters.
            self._index_of, self._freed, self._next = {}, [], 0

    def _store(self) -> None:
        state = {"index_of": self._index_of, "freed": self._freed, "next": self._next}
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._path)
