"""Latency profiles: how long batches of a model took when they were measured, as a JSON file.

`infersched profile` writes them; a model's `profile` key names one. A file that cannot be read, or
is of another model, says nothing and stops nothing: ProfileError has the reason to be told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from scheduler.config.section import Section
from scheduler.config.units import format_duration

FORMAT = "infersched-profile"
HOUR_NS = 3600 * 10**9
SIZES_MAX = 4096
FILE_BYTES_MAX = 4 * 2**20

Time = Annotated[int, Field(ge=1, le=HOUR_NS)]
Count = Annotated[int, Field(ge=1, le=2**53)]
# No device has more.
Bytes = Annotated[float, Field(ge=0, le=2**50, allow_inf_nan=False)]


class ProfileError(Exception):
    """The file is no profile, or none of this model."""


class SizeProfile(Section):
    """Batches of one size, by their time from dispatch to reply in nanoseconds."""

    rows: Annotated[int, Field(ge=1, le=2**31 - 1)]
    batches: Count
    mean_ns: Time
    median_ns: Time
    p99_ns: Time


class ProfiledModel(Section):
    """What was measured; another signature is another model."""

    name: Annotated[str, Field(min_length=1)]
    version: Annotated[str, Field(pattern="^[0-9]+$")]
    signature: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Fit(Section):
    """The line alpha * rows + beta through the medians; r_squared is 1 for a perfect one."""

    alpha_ns: float = Field(allow_inf_nan=False)
    beta_ns: float = Field(allow_inf_nan=False)
    r_squared: Annotated[float, Field(le=1, allow_inf_nan=False)]


class MemorySize(Section):
    """What an instance had taken after a batch of this size; `moved`: other tenants moved memory
    at that step, and it is what the line says."""

    rows: Annotated[int, Field(ge=1, le=2**31 - 1)]
    need_bytes: Bytes
    moved: bool = False


class MemoryProfile(Section):
    """The line base + bytes a row through what an instance takes of its device.

    `stopped` says at which size the sweep ended, empty when all of them fitted.
    """

    device: Annotated[str, Field(min_length=1)]
    source: str
    instances: Annotated[int, Field(ge=1, le=1024)]
    base_bytes: Bytes
    bytes_per_row: Bytes
    r_squared: Annotated[float, Field(le=1, allow_inf_nan=False)]
    stopped: str = ""
    sizes: Annotated[tuple[MemorySize, ...], Field(min_length=1, max_length=SIZES_MAX)]


class Profile(Section):
    """One file. `memory` is of `infersched profile --memory` only."""

    format: Literal["infersched-profile"] = "infersched-profile"
    format_version: Literal[1] = 1
    model: ProfiledModel
    measured_at: str
    server: str
    in_flight: Annotated[int, Field(ge=1, le=1024)]
    fit: Fit
    sizes: Annotated[tuple[SizeProfile, ...], Field(min_length=1, max_length=SIZES_MAX)]
    memory: MemoryProfile | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Profile:
        rows = [size.rows for size in self.sizes]
        if rows != sorted(set(rows)):
            raise ValueError("sizes are not in ascending order")
        for size in self.sizes:
            if not size.median_ns <= size.p99_ns:
                raise ValueError(f"the p99 of {size.rows} rows is below their median")
        return self

    @property
    def floor_ns(self) -> int:
        """The shortest time in which any request can be answered."""
        return lone_request_ns([(size.rows, size.median_ns) for size in self.sizes])


def model_signature(max_batch_size: int, tensors: Iterable[tuple[str, str, Iterable[int]]]) -> str:
    """A short text that differs between models of other inputs and outputs or batch limits.

    `tensors` are (name, datatype, dims) of the inputs and then the outputs.
    """
    described = [max_batch_size, [[name, kind, list(dims)] for name, kind, dims in tensors]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def load_profile(path: Path) -> Profile:
    """Raises ProfileError with the reason."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        where = f"{path.absolute()}: {error.strerror}{_other_place(path)}"
        raise ProfileError(f"cannot read {where}") from error
    if len(text) > FILE_BYTES_MAX:
        raise ProfileError(f"{path} is no profile: it is larger than 4 MiB")
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise ProfileError(f"{path} is no profile: {reason}") from error


def _other_place(missing: Path) -> str:
    """The end of `missing` may name a file of the working directory, which is another one."""
    ends = (Path(*missing.parts[start:]) for start in range(1, len(missing.parts)))
    found = next((end for end in ends if not missing.exists() and end.is_file()), None)
    if found is None:
        return ""
    return (
        f"; there is a {found} in the working directory {Path.cwd()}, but what a file names is "
        "relative to that file"
    )


def save_profile(profile: Profile, path: Path) -> None:
    """Replaces the file whole. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(profile.model_dump_json(indent=1) + "\n")
    temporary.replace(path)


def check_model(profile: Profile, name: str, version: str, signature: str) -> None:
    """Raises ProfileError when the profile was measured on another model."""
    measured = profile.model
    if (measured.name, measured.version) != (name, version):
        raise ProfileError(
            f"it is of model {measured.name} version {measured.version}, not of {name} version "
            f"{version}"
        )
    if measured.signature != signature:
        raise ProfileError(
            "the model had other inputs, outputs or another max_batch_size when it was measured"
        )


def lone_request_ns(times: Sequence[tuple[int, int]]) -> int:
    """What one row takes, by (rows, ns) of ascending sizes; 0 without any.

    Where none of one row is among them, by the line through the two smallest: no more than the
    smallest, and no less than its part of that.
    """
    if not times:
        return 0
    rows, ns = times[0]
    least_ns = ns // rows
    larger = next((time for time in times if time[0] > rows), None)
    if rows == 1 or larger is None:
        return least_ns
    next_rows, next_ns = larger
    by_line_ns = ns - (next_ns - ns) * (rows - 1) // (next_rows - rows)
    return min(max(by_line_ns, least_ns), ns)


def objective_below_floor(objective_ns: int, floor_ns: int, source: str) -> str:
    """The sentence for an objective that nothing can meet, empty for one that can be met."""
    if not objective_ns or not floor_ns or objective_ns > floor_ns:
        return ""
    return (
        f"{format_duration(objective_ns)} is below the {floor_ns / 1e6:.3g} ms that a lone request "
        f"takes at the model ({source}); raise it above that"
    )


def delay_beyond_objective(
    delay_ns: int, objective_ns: int, key: str, floor_ns: int, source: str
) -> str:
    """The sentence for a wait after which no request meets the objective of `key`, else empty."""
    most_ns = objective_ns - floor_ns
    if not delay_ns or delay_ns < most_ns:
        return ""
    return (
        f"{format_duration(delay_ns)} leaves {format_duration(objective_ns - delay_ns)} of {key} "
        f"{format_duration(objective_ns)}, and a lone request takes {floor_ns / 1e6:.3g} ms at the "
        f"model ({source}): what waits so long is late; make it less than "
        f"{most_ns / 1e6:.3g}ms"
    )
