"""The layers of a configuration: file, environment, flags. Each value remembers its origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import BaseModel

from scheduler.config.errors import ConfigError, ConfigProblem, Path, unknown_key_message
from scheduler.config.schema import Settings

ENVIRONMENT_PREFIX = "INFERSCHED_"


@dataclass
class Layer:
    """Nested raw values and, by path, where each one was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)

    def put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        section = self.values
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value
        self.origins[path] = origin


def file_layer(path: FilePath) -> Layer:
    """Reads one YAML file. Raises ConfigError when it cannot be read or is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([ConfigProblem((), f"cannot read {path}: {reason}")]) from error
    layer = Layer()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError([ConfigProblem((), f"not valid YAML: {reason}", place)]) from error
    if root is None:
        return layer
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError([ConfigProblem((), "expected sections such as `server:`", str(path))])
    layer.values = _mapping(root, (), str(path), layer.origins)
    _find_profiles(layer.values.get("models"), path.absolute().parent)
    return layer


def _find_profiles(models: Any, directory: FilePath) -> None:
    """Who writes the name of one into a file means it as seen from there, wherever it is read."""
    for model in models.values() if isinstance(models, dict) else ():
        if isinstance(model, dict) and model.get("profile") and isinstance(model["profile"], str):
            model["profile"] = str(directory / model["profile"])


def _mapping(node: yaml.MappingNode, path: Path, name: str, origins: dict[Path, str]) -> Any:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        here = (*path, key)
        origin = f"{name}:{key_node.start_mark.line + 1}"
        if key in values:
            raise ConfigError([ConfigProblem(here, "written twice; keep one", origin)])
        origins[here] = origin
        values[key] = _value(value_node, here, name, origins)
    return values


def _value(node: yaml.Node, path: Path, name: str, origins: dict[Path, str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, name, origins)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for position, item in enumerate(node.value):
            here = (*path, position)
            origins[here] = f"{name}:{item.start_mark.line + 1}"
            items.append(_value(item, here, name, origins))
        return items
    if node.tag == "tag:yaml.org,2002:int" and ":" in node.value:
        return node.value  # YAML 1.1 reads 1:30 as base 60; an address is meant
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        place = f"{name}:{node.start_mark.line + 1}"
        raise ConfigError([ConfigProblem(path, f"not a plain value: {error}", place)]) from error


def environment_variable(path: tuple[str, ...]) -> str:
    """`("server", "listen")` -> `INFERSCHED_SERVER__LISTEN`."""
    return ENVIRONMENT_PREFIX + "__".join(part.upper() for part in path)


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """Variables `INFERSCHED_SECTION__KEY`; a model's name keeps its case.

    Raises ConfigError for one that names no key. Variables without `__` that are no section
    (INFERSCHED_CONFIG and the switches of the build) are not configuration.
    """
    layer, problems = Layer(), []
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        parts = name[len(ENVIRONMENT_PREFIX) :].split("__")
        if len(parts) == 1 and parts[0].lower() not in Settings.model_fields:
            continue
        is_model = parts[0].lower() == "models" and len(parts) >= 3
        path = tuple(p if is_model and i == 1 else p.lower() for i, p in enumerate(parts))
        problem = _unknown_path(path, is_model)
        if problem:
            problems.append(ConfigProblem(path, problem, f"env {name}"))
        else:
            layer.put(path, text, f"env {name}")
    if problems:
        raise ConfigError(problems)
    return layer


def _unknown_path(path: tuple[str, ...], is_model: bool) -> str:
    section: Any = Settings
    names = ("defaults", *path[2:]) if is_model else path
    for name in names:
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return "no key below this one"
        if name not in section.model_fields:
            return unknown_key_message(section, name)
        section = section.model_fields[name].annotation
    if isinstance(section, type) and issubclass(section, BaseModel):
        return "a section, not a key; add __KEY"
    return ""


def merge_layers(layers: list[Layer]) -> Layer:
    """Later layers win, key by key; lists are replaced whole."""
    merged = Layer()
    for layer in layers:
        _merge(merged.values, layer.values, (), merged.origins)
        merged.origins.update(layer.origins)
    return merged


def _merge(into: dict[str, Any], new: dict[str, Any], path: Path, origins: dict[Path, str]) -> None:
    for key, value in new.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, here, origins)
            continue
        for old in [p for p in origins if p[: len(here)] == here]:
            del origins[old]
        into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value
