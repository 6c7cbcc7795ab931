"""A profile as an SVG picture: medians, their line, and the reach up to the p99."""

from __future__ import annotations

from html import escape

from scheduler.config.profile import Profile

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 55
TICKS = 6


def svg(profile: Profile) -> str:
    """A picture that needs nothing else."""
    rows_max = profile.sizes[-1].rows
    time_max = max(size.p99_ns for size in profile.sizes) * 1.05

    def x(rows: float) -> float:
        return LEFT + rows / rows_max * (WIDTH - LEFT - RIGHT)

    def y(time_ns: float) -> float:
        return HEIGHT - BOTTOM - time_ns / time_max * (HEIGHT - TOP - BOTTOM)

    fit = profile.fit
    line_end = fit.alpha_ns * rows_max + fit.beta_ns
    title = f"{profile.model.name} version {profile.model.version}"
    formula = (
        f"l(b) = {fit.alpha_ns / 1e6:.4g} ms b + {fit.beta_ns / 1e6:.4g} ms, "
        f"R2 {fit.r_squared:.4f}, {profile.in_flight} in flight"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="38" fill="#555">{escape(formula)}</text>',
    ]
    for at in _ticks(rows_max):
        parts.append(_grid(x(at), TOP, x(at), HEIGHT - BOTTOM))
        parts.append(_label(x(at), HEIGHT - BOTTOM + 18, f"{at:g}", "middle"))
    for at in _ticks(time_max / 1e6):
        parts.append(_grid(LEFT, y(at * 1e6), WIDTH - RIGHT, y(at * 1e6)))
        parts.append(_label(LEFT - 8, y(at * 1e6) + 4, f"{at:g}", "end"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "rows of a batch", "middle"))
    parts.append(_label(LEFT - 8, TOP - 6, "ms", "end"))
    parts.append(
        f'<line x1="{x(0):.1f}" y1="{y(max(fit.beta_ns, 0)):.1f}" x2="{x(rows_max):.1f}" '
        f'y2="{y(min(max(line_end, 0), time_max)):.1f}" stroke="#d07000" stroke-width="1.5"/>'
    )
    for size in profile.sizes:
        at, low, high = x(size.rows), y(size.median_ns), y(size.p99_ns)
        parts.append(
            f'<line x1="{at:.1f}" y1="{low:.1f}" x2="{at:.1f}" y2="{high:.1f}" stroke="#2060b0"/>'
        )
        parts.append(f'<circle cx="{at:.1f}" cy="{low:.1f}" r="3.5" fill="#2060b0"/>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(highest: float) -> list[float]:
    """At most TICKS + 1 round values from 0 on."""
    step = 10.0**-9
    factors = (2.0, 2.5, 2.0)
    turn = 0
    while highest / step > TICKS:
        step *= factors[turn % 3]
        turn += 1
    return [round(step * n, 9) for n in range(int(highest / step) + 1)]


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
