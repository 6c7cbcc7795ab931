"""How the backends are watched."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scheduler.config.section import Section
from scheduler.config.units import Duration

MILLISECOND = 1_000_000


class Discovery(Section):
    """How the control plane watches the backends."""

    probe_period: Annotated[Duration, Field(ge=10_000_000)] = Field(
        default=250 * MILLISECOND,
        description="between two ServerReady probes of a backend",
    )
    probe_timeout: Annotated[Duration, Field(ge=10_000_000)] = Field(
        default=300 * MILLISECOND,
        description="of one probe; a backend is down after two in a row",
    )
    refresh_period: Annotated[Duration, Field(ge=50_000_000)] = Field(
        default=1_000 * MILLISECOND,
        description="between two readings of a backend's repository index",
    )
