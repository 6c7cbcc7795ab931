"""What is to outlive a restart, in one file of the state directory.

The file is written whole. One that is torn or of another format says nothing: it is reported, and
what is learned anew replaces it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from scheduler.config.section import Section
from scheduler.telemetry.logs import log

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 * 2**20

File = TypeVar("File", bound=Section)


class KeptFile(Generic[File]):
    """`what` it holds is said of a file that cannot be used."""

    def __init__(self, path: Path, kind: type[File], what: str) -> None:
        self._path = path
        self._kind = kind
        self._what = what
        self._failure = ""

    def load(self) -> File | None:
        """None where there is none, or none that can be used."""
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            if len(text) > FILE_BYTES_MAX:
                raise ValueError("it is too large")
            return self._kind.model_validate_json(text)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self._ignore(f"{place}: {first['msg']}" if place else str(first["msg"]))
        except (OSError, ValueError) as error:
            self._ignore(str(error))
        return None

    def store(self, file: File) -> bool:
        """Whether it was written; a failure is told once."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".new")
            temporary.write_text(file.model_dump_json() + "\n")
            temporary.replace(self._path)
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log(logger, logging.WARNING, f"{self._what} cannot be kept",
                    file=self._path, reason=error.strerror)  # fmt: skip
            return False
        self._failure = ""
        return True

    def _ignore(self, reason: str) -> None:
        log(
            logger,
            logging.WARNING,
            f"{self._what} are ignored: the file cannot be used, and is replaced at the "
            "next change",
            file=self._path,
            reason=reason,
        )
