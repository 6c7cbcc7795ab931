"""A profile as SVG pictures: latencies with their line and reach up to the p99, and memory."""

from __future__ import annotations

from scheduler.config.profile import MemoryProfile, Profile
from scheduler.plots.axes import Axes, document, line, text, title
from scheduler.profiling.measure import line_text

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 58, 55
MIB = 2**20
MEASURED, FITTED = "#2060b0", "#d07000"


def svg(profile: Profile) -> str:
    """A picture that needs nothing else."""
    rows_max = profile.sizes[-1].rows
    time_max_ms = max(size.p99_ns for size in profile.sizes) * 1.05 / 1e6
    axes = Axes(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, rows_max, time_max_ms)
    fit = profile.fit
    alpha_ms, beta_ms = fit.alpha_ns / 1e6, fit.beta_ns / 1e6
    formula = f"{line_text(profile)}, {profile.in_flight} in flight"
    line_end_ms = alpha_ms * rows_max + beta_ms
    parts = [
        title(LEFT, f"{profile.model.name} version {profile.model.version}"),
        text(LEFT, 38, formula, "start", "#555"),
        *axes.grid("rows of a batch", "ms"),
    ]
    if len(profile.sizes) > 1:
        ends = (axes.x(0), axes.y(beta_ms), axes.x(rows_max), axes.y(line_end_ms))
        parts.append(line(*ends, FITTED, 1.5))
    for size in profile.sizes:
        at, low, high = axes.x(size.rows), axes.y(size.median_ns / 1e6), axes.y(size.p99_ns / 1e6)
        parts.append(line(at, low, at, high, MEASURED))
        parts.append(f'<circle cx="{at:.1f}" cy="{low:.1f}" r="3.5" fill="{MEASURED}"/>')
    return document(WIDTH, HEIGHT, parts)


def memory_svg(profile: Profile, need: MemoryProfile) -> str:
    """What an instance takes of the device, by rows."""
    rows_max = need.sizes[-1].rows
    line_end = need.base_bytes + need.bytes_per_row * rows_max
    top_mib = max(*(size.need_bytes for size in need.sizes), line_end, 1.0) * 1.05 / MIB
    axes = Axes(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, rows_max, top_mib)
    base_mib, per_row_mib = need.base_bytes / MIB, need.bytes_per_row / MIB
    formula = (
        f"need(b) = {base_mib:.4g} MiB + {per_row_mib:.4g} MiB * b, R2 {need.r_squared:.4f}, "
        f"on {need.device}"
    )
    return document(
        WIDTH,
        HEIGHT,
        [
            title(LEFT, f"{profile.model.name} version {profile.model.version}"),
            text(LEFT, 38, formula, "start", "#555"),
            *axes.grid("rows of a batch", "MiB"),
            line(
                axes.x(0), axes.y(base_mib), axes.x(rows_max), axes.y(line_end / MIB), FITTED, 1.5
            ),
            *(
                f'<circle cx="{axes.x(size.rows):.1f}" cy="{axes.y(size.need_bytes / MIB):.1f}" '
                f'r="3.5" fill="{"white" if size.moved else MEASURED}" stroke="{MEASURED}"/>'
                for size in need.sizes
            ),
        ],
    )
