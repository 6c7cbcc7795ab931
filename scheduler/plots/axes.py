"""Axes from 0 on with round ticks and a grid, and the SVG document around them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

TICKS = 6
GRID, TEXT = "#ddd", "black"


@dataclass(frozen=True)
class Axes:
    """A ground of `width` times `height` points; both axes start at 0.

    What is above `x_max` or `y_max` lies on the edge.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_max: float
    y_max: float

    def x(self, value: float) -> float:
        """Where `value` is, in points from the left."""
        part = min(max(value / self.x_max, 0), 1)
        return self.left + part * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Where `value` is, in points from the top."""
        part = min(max(value / self.y_max, 0), 1)
        return self.height - self.bottom - part * (self.height - self.top - self.bottom)

    def grid(self, x_label: str, y_label: str) -> list[str]:
        """Lines and values at the ticks, and what the axes are."""
        ground, edge = self.height - self.bottom, self.width - self.right
        parts = []
        for at in ticks(self.x_max):
            parts.append(line(self.x(at), self.top, self.x(at), ground, GRID))
            parts.append(text(self.x(at), ground + 18, f"{at:g}", "middle"))
        for at in ticks(self.y_max):
            parts.append(line(self.left, self.y(at), edge, self.y(at), GRID))
            parts.append(text(self.left - 8, self.y(at) + 4, f"{at:g}", "end"))
        parts.append(text((self.left + edge) / 2, self.height - 12, x_label, "middle"))
        parts.append(text(self.left - 8, self.top - 8, y_label, "middle"))
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


def document(width: int, height: int, parts: Iterable[str]) -> str:
    """A whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    )
    return "\n".join([*head, *parts, "</svg>", ""])


def title(x: float, words: str) -> str:
    return f'<text x="{x}" y="20" font-size="15">{escape(words)}</text>'


def text(x: float, y: float, words: str, anchor: str, colour: str = TEXT) -> str:
    """`anchor` is "start", "middle" or "end"."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashes: str = "none"
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}" stroke-dasharray="{dashes}"/>'
    )
