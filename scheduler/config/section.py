"""What every part of the configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    # pydantic before 2.10 warns of every key that begins with `model_`.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
