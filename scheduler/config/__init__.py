"""Configuration: schema, units, loading by precedence, errors that name the key and the fix."""

from __future__ import annotations

from scheduler.config.address import Address, parse_address
from scheduler.config.errors import ConfigError, ConfigProblem
from scheduler.config.load import LoadedSettings, ignored_profiles, load_settings
from scheduler.config.schema import Backend, Batching, Settings, batching_problems

__all__ = [
    "Address",
    "Backend",
    "Batching",
    "ConfigError",
    "ConfigProblem",
    "LoadedSettings",
    "Settings",
    "batching_problems",
    "ignored_profiles",
    "load_settings",
    "parse_address",
]
