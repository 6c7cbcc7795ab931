"""A study as pictures that need nothing else: in-time throughput against load, and over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scheduler.plots.axes import Axes, document, line, text, title

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 150, 52, 50
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
    parts = []
    for i, chart in enumerate(charts):
        parts += [f'<g transform="translate(0 {i * HEIGHT})">', *_chart(chart), "</g>"]
    return document(WIDTH, HEIGHT * len(charts), parts)


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
    every = [point for points in chart.lines.values() for point in points]
    x_max = max((x for x, _ in every), default=0) or 1.0
    y_max = chart.y_max or max((y for _, y in every), default=0) * 1.05 or 1.0
    axes = Axes(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, x_max, y_max)
    parts = [title(LEFT, chart.title), *axes.grid(chart.x_label, chart.y_label)]
    if chart.diagonal:
        end = min(x_max, y_max)
        parts.append(line(axes.x(0), axes.y(0), axes.x(end), axes.y(end), "#999", dashes="4 4"))
    for i, (name, points) in enumerate(chart.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{axes.x(at):.1f},{axes.y(value):.1f}" for at, value in points)
        if len(points) == 1:  # no line has one point
            x, y = path.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
        else:
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        high = TOP + 16 + 18 * i
        beside = WIDTH - RIGHT + 12
        parts.append(line(beside, high - 4, beside + 18, high - 4, colour, 2))
        parts.append(text(beside + 24, high, name, "start"))
    return parts
