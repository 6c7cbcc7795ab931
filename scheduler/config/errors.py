"""What is wrong with a configuration, with the place and the nearest right key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

PathPart = str | int
Path = tuple[PathPart, ...]


def path_text(path: Sequence[PathPart]) -> str:
    """`("backends", 0, "address")` -> `backends[0].address`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class ConfigProblem:
    """One mistake: where it is (`path`), where it was written (`origin`) and what to do."""

    path: Path
    message: str
    origin: str = ""

    def __str__(self) -> str:
        place = path_text(self.path)
        source = f" ({self.origin})" if self.origin else ""
        return f"{place}{source}: {self.message}" if place else f"{self.message}{source}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has every mistake found."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def model_at(root: type[BaseModel], path: Sequence[PathPart]) -> type[BaseModel] | None:
    """The section of the schema at `path`, None where the path leads to no section."""
    current: Any = root
    for part in path:
        if isinstance(part, int):
            continue
        if typing.get_origin(current) is dict:
            current = _section_of(typing.get_args(current)[1])
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return None
        current = _section_of(fields[part].annotation)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _section_of(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (tuple, list, typing.Annotated, types.UnionType):
        for argument in typing.get_args(annotation):
            section = _section_of(argument)
            if isinstance(section, type) and issubclass(section, BaseModel):
                return section
        return None
    return annotation


def unknown_key_message(section: type[BaseModel] | None, key: str) -> str:
    """`unknown key; did you mean ...?`, or the known keys where none is near."""
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known keys: {', '.join(known)}" if known else "unknown key"


def problems_of(
    error: ValidationError, root: type[BaseModel], prefix: Path = ()
) -> list[ConfigProblem]:
    """Pydantic's errors in the words of the configuration."""
    problems = []
    for item in error.errors(include_url=False):
        path = tuple(item["loc"])
        if item["type"] == "extra_forbidden":
            message = unknown_key_message(model_at(root, path[:-1]), str(path[-1]))
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        elif item["type"] == "model_type":
            message = "expected a section with keys"
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
        problems.append(ConfigProblem(prefix + path, message))
    return problems
