"""Which models are loaded on demand, and how much device memory their weights may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from scheduler.config.device_memory import DEVICES_MAX, DeviceKey
from scheduler.config.section import Section
from scheduler.config.units import Duration, Size, format_size, parse_size_bytes

if TYPE_CHECKING:
    from scheduler.config.schema import Settings

SECOND = 1_000_000_000
BUDGET_MAX = 2**50


def _mode(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return ("on_demand" if value else "off") if isinstance(value, bool) else value


def _budget(value: object) -> object:
    none = value is None or value in ("none", "off") or value is False
    return 0 if none else parse_size_bytes(value)


ResidencyKind = Annotated[
    Literal["on_demand", "pinned", "never"],
    Field(
        description="with residency.mode: on_demand. on_demand: loaded by the first request for "
        "it, unloaded when others need its memory; pinned: loaded at once, never unloaded; never: "
        "neither loaded nor unloaded here, clients do that"
    ),
]
Weights = Annotated[
    Size,
    Field(
        ge=0,
        le=BUDGET_MAX,
        description="device memory that the loaded model takes, on each of its devices, until that "
        "has been measured; 0 = not known",
    ),
]
# One validator: pydantic 2.7 loses those of a `Size` below another one.
Budget = Annotated[
    int,
    BeforeValidator(_budget),
    PlainSerializer(format_size),
    Field(ge=0, le=BUDGET_MAX),
]


class Residency(Section):
    """Models that come when they are asked for; of Tritons with --model-control-mode=explicit."""

    mode: Annotated[Literal["off", "on_demand"], BeforeValidator(_mode)] = Field(
        default="off",
        description="on_demand: a request for a model that is not loaded loads it, and the models "
        "least recently used make room; off: only clients load and unload",
    )
    budget: Budget = Field(
        default=0,
        description="for the weights on each device together; none: what the device has free, less "
        "its headroom. Where no device is known, for each backend",
    )
    budgets: Annotated[dict[DeviceKey, Budget], Field(max_length=DEVICES_MAX)] = Field(
        default={}, description="by device, where it is not `budget`"
    )
    min_residency: Annotated[Duration, Field(ge=0, le=24 * 3600 * SECOND)] = Field(
        default=1 * SECOND,
        description="a model is not unloaded before, nor before it was loaded for as long as its "
        "load took",
    )
    unload_idle_after: Annotated[Duration, Field(ge=0)] = Field(
        default=0,
        description="unload what nobody has used for so long, though nobody needs its memory; 0 = "
        "never",
    )
    load_timeout: Annotated[Duration, Field(ge=1 * SECOND, le=24 * 3600 * SECOND)] = Field(
        default=600 * SECOND, description="a load that takes longer has failed"
    )
    unload_timeout: Annotated[Duration, Field(ge=1 * SECOND, le=24 * 3600 * SECOND)] = Field(
        default=300 * SECOND,
        description="requests for a model that its Triton takes longer to unload are refused until "
        "it has told what became of it",
    )
    drain_timeout: Annotated[Duration, Field(ge=10_000_000)] = Field(
        default=60 * SECOND,
        description="a model that is to make room and has not ended its requests by then stays",
    )

    @property
    def on(self) -> bool:
        return self.mode == "on_demand"

    def budget_of(self, device: str) -> int:
        """In bytes; 0 = none is set."""
        return self.budgets.get(device, self.budget)


def residency_problems(settings: Settings) -> list[tuple[tuple[str, ...], str]]:
    """What cannot be, as (path, sentence with the fix)."""
    residency = settings.residency
    problems: list[tuple[tuple[str, ...], str]] = []
    for device, fixed in settings.device_memory.devices.items():
        budget, has = residency.budget_of(device), fixed.total - fixed.used
        if not fixed.total or budget <= has:
            continue
        named = device in residency.budgets
        path = ("residency", "budgets", device) if named else ("residency", "budget")
        problems.append(
            (
                path,
                f"{format_size(budget)} is above the {format_size(has)} that "
                f"device_memory.devices.{device} has; lower it",
            )
        )
    largest = max([residency.budget, *residency.budgets.values()])
    unbounded = not residency.on or not residency.budget or 0 in residency.budgets.values()
    for name in () if unbounded else settings.models:
        weights = settings.batching_for(name).weights
        if weights > largest:
            problems.append(
                (
                    ("models", name, "weights"),
                    f"{format_size(weights)} is above residency.budget {format_size(largest)}: it "
                    "could never be loaded; raise the budget",
                )
            )
    return problems
