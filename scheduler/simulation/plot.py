"""A study as pictures that need nothing else: in-time throughput against load, and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 150, 36, 50
TICKS = 6
COLOURS = ("#2060b0", "#d07000", "#208040", "#a02040", "#7040a0", "#806020", "#108090", "#606060")

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines by name over a common ground; y starts at 0."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    y_max: float | None = None  # None: the highest value
    diagonal: bool = False  # everything in time


def svg(charts: Sequence[Chart]) -> str:
    """One picture, the charts below each other."""
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for i, chart in enumerate(charts):
        parts += [f'<g transform="translate(0 {i * HEIGHT})">', *_chart(chart), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def html(
    title: str, charts: Sequence[Chart], columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A page with the charts and a table."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    style = (
        "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{style}</style></head>\n<body><h1>{escape(title)}</h1>\n{svg(charts)}"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></body></html>\n"
    )


def _chart(chart: Chart) -> list[str]:
    every = [point for line in chart.lines.values() for point in line]
    x_max = max((x for x, _ in every), default=0) or 1.0
    y_max = chart.y_max or max((y for _, y in every), default=0) * 1.05 or 1.0

    def x(value: float) -> float:
        return LEFT + value / x_max * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - min(value / y_max, 1) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="20" font-size="15">{escape(chart.title)}</text>']
    for at in ticks(x_max):
        parts.append(_grid(x(at), TOP, x(at), HEIGHT - BOTTOM))
        parts.append(_label(x(at), HEIGHT - BOTTOM + 18, f"{at:g}", "middle"))
    for at in ticks(y_max):
        parts.append(_grid(LEFT, y(at), WIDTH - RIGHT, y(at)))
        parts.append(_label(LEFT - 8, y(at) + 4, f"{at:g}", "end"))
    parts.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, chart.x_label, "middle"))
    parts.append(_label(LEFT - 8, TOP - 8, chart.y_label, "middle"))
    if chart.diagonal:
        end = min(x_max, y_max)
        parts.append(
            f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(end):.1f}" y2="{y(end):.1f}" '
            'stroke="#999" stroke-dasharray="4 4"/>'
        )
    for i, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        high = TOP + 16 + 18 * i
        beside = WIDTH - RIGHT + 12
        parts.append(
            f'<line x1="{beside}" y1="{high - 4}" x2="{beside + 18}" y2="{high - 4}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(_label(beside + 24, high, name, "start"))
    return parts


def ticks(highest: float) -> list[float]:
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
