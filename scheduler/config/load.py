"""Loading by precedence: flag > environment > file > default, with the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from scheduler.config.errors import ConfigError, ConfigProblem, Path, problems_of
from scheduler.config.objectives import objectives
from scheduler.config.profile import (
    ProfileError,
    delay_beyond_objective,
    load_profile,
    objective_below_floor,
)
from scheduler.config.residency import residency_problems
from scheduler.config.schema import Batching, Settings
from scheduler.config.sources import (
    Layer,
    environment_layer,
    file_layer,
    merge_layers,
)

BATCHING_SECTIONS = ("defaults", "models")


@dataclass(frozen=True)
class LoadedSettings:
    """Valid settings and, for each value that is no default, where it was written."""

    settings: Settings
    origins: Mapping[Path, str]

    def origin(self, path: Path) -> str:
        """Where the value at `path` was written, itself or as a part of what was."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                # A section that was written only with other keys says nothing about this one.
                # The items of a list are its value.
                below = (p for p in self.origins if p[:length] == path[:length] != p)
                is_section = any(isinstance(p[length], str) for p in below)
                return "default" if is_section else self.origins[path[:length]]
        return "default"

    def effective(self) -> list[tuple[Path, Any, str]]:
        """Every leaf of the settings as (path, value as text or number, origin)."""
        leaves: list[tuple[Path, Any, str]] = []
        _leaves(self.settings.model_dump(mode="json"), (), leaves)
        return [(path, value, self.origin(path)) for path, value, _ in leaves]


def load_settings(
    config_file: FilePath | None = None,
    flags: Mapping[tuple[str, ...], tuple[Any, str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Reads all layers and validates the result.

    `flags` maps a path such as ("server", "listen") to (value, flag name). `environment` None
    is the process's own. Raises ConfigError with every mistake found.
    """
    layers = [file_layer(config_file)] if config_file is not None else []
    layers.append(environment_layer(environment))
    flag_layer = Layer()
    for path, (value, flag) in (flags or {}).items():
        flag_layer.put(path, value, f"flag {flag}")
    layers.append(flag_layer)
    merged = merge_layers(layers)
    origins = dict(merged.origins)
    try:
        settings = Settings.model_validate(merged.values)
    except ValidationError as error:
        problems = problems_of(error, Settings) + _model_problems(_sound_batching(merged.values))
        raise ConfigError(_placed(problems, origins)) from error
    problems = _model_problems(settings)
    if not problems:
        problems = [ConfigProblem(path, text) for path, text in residency_problems(settings)]
    if problems:
        raise ConfigError(_placed(problems, origins))
    return LoadedSettings(settings, origins)


def ignored_profiles(loaded: LoadedSettings) -> list[ConfigProblem]:
    """What a server would say of profiles that it cannot use, as far as the files tell."""
    problems = []
    for name in loaded.settings.models:
        path = loaded.settings.batching_for(name).profile
        if path is None:
            continue
        try:
            of = load_profile(path).model.name
            text = "" if of == name else f"{path} is of model {of}"
        except ProfileError as error:
            text = str(error)
        if text:
            problems.append(ConfigProblem(("models", name, "profile"), f"{text}: it is ignored"))
    return _placed(problems, loaded.origins)


def _sound_batching(values: Mapping[str, Any]) -> Settings:
    """Only what the models' own settings need, so that their mistakes show beside the others."""
    try:
        return Settings.model_validate({k: v for k, v in values.items() if k in BATCHING_SECTIONS})
    except ValidationError:
        return Settings()


def _model_problems(settings: Settings) -> list[ConfigProblem]:
    return [problem for name in settings.models for problem in _problems_of_model(settings, name)]


def _problems_of_model(settings: Settings, name: str) -> list[ConfigProblem]:
    try:
        return _impossible_objectives(settings.batching_for(name), name)
    except ValidationError as error:
        return problems_of(error, Batching, ("models", name))


def _impossible_objectives(batching: Batching, name: str) -> list[ConfigProblem]:
    """Objectives that leave less than what the model's profile has measured, also after a wait.

    A profile that cannot be used says nothing here: the control plane, which knows the model, tells
    why it is ignored.
    """
    if batching.profile is None or batching.batching == "triton":
        return []
    try:
        profile = load_profile(batching.profile)
    except ProfileError:
        return []
    if profile.model.name != name:
        return []
    source = f"measured, {batching.profile}"
    problems = []
    for key, slo_ns in objectives(batching).items():
        text = objective_below_floor(slo_ns, profile.floor_ns, source)
        if not text:
            text = delay_beyond_objective(
                batching.max_queue_delay, slo_ns, key, profile.floor_ns, source
            )
            key = "max_queue_delay"
        if text:
            problems.append(ConfigProblem(("models", name, *key.split(".")), text))
    return problems


def _placed(problems: list[ConfigProblem], origins: Mapping[Path, str]) -> list[ConfigProblem]:
    placed = []
    for problem in problems:
        lengths = range(len(problem.path), 0, -1)
        found = [origins[problem.path[:n]] for n in lengths if problem.path[:n] in origins]
        placed.append(ConfigProblem(problem.path, problem.message, found[0] if found else ""))
    return placed


def _leaves(value: Any, path: Path, leaves: list[tuple[Path, Any, str]]) -> None:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            _leaves(item, (*path, key), leaves)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for position, item in enumerate(value):
            _leaves(item, (*path, position), leaves)
    else:
        leaves.append((path, value, ""))
