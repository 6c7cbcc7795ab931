"""Pictures in files: as SVG, or as PNG, drawn from the SVG of scheduler.plots.axes.

The drawing knows what these pictures are made of, straight lines, circles and text, and no more.
"""

from __future__ import annotations

import math
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from scheduler.plots.strokes import HEIGHT, Point, strokes, width

SUFFIXES = (".svg", ".png")
# Pixels a point.
SCALE = 2
# Of text, as parts of its size.
_CAPITALS, _LETTER, _STROKE = 0.72, 0.1, 0.1
_NAMES = {"white": (255, 255, 255), "black": (0, 0, 0)}

Colour = tuple[int, int, int]


def save(path: Path, svg: str) -> None:
    """Writes a picture in the form that the name asks for. Raises OSError."""
    if path.suffix.lower() == ".png":
        path.write_bytes(png(svg))
    else:
        path.write_text(svg, encoding="utf-8")


def png(svg: str) -> bytes:
    """The picture in pixels."""
    root = ElementTree.fromstring(svg)
    canvas = _Canvas(int(root.attrib["width"]), int(root.attrib["height"]))
    canvas.draw(root, float(root.attrib["font-size"]), (0.0, 0.0))
    return _encoded(canvas.pixels())


class _Canvas:
    def __init__(self, width: int, height: int) -> None:
        self._ground: npt.NDArray[np.float32] = np.full(
            (height * SCALE, width * SCALE, 3), 255, dtype=np.float32
        )

    def pixels(self) -> npt.NDArray[np.uint8]:
        return np.asarray(self._ground.round(), dtype=np.uint8)

    def draw(self, parent: ElementTree.Element, text_size: float, origin: Point) -> None:
        for part in parent:
            tag = part.tag.rpartition("}")[2]
            get = part.attrib.get
            if tag == "g":
                x, y = get("transform", "")[len("translate(") : -1].split()
                self.draw(part, text_size, (origin[0] + float(x), origin[1] + float(y)))
            elif tag == "text":
                self._text(part, float(get("font-size", text_size)), origin)
            elif tag in ("line", "polyline"):
                self._lines(_points(part), part, origin)
            elif tag == "circle":
                self._circle(part, origin)

    def _text(self, part: ElementTree.Element, size: float, origin: Point) -> None:
        words = part.text or ""
        across, down = size * _LETTER, size * _CAPITALS / HEIGHT
        wide = width(words) * across
        behind = {"middle": wide / 2, "end": wide}.get(part.attrib.get("text-anchor", ""), 0.0)
        left = origin[0] + float(part.attrib["x"]) - behind
        line = origin[1] + float(part.attrib["y"])
        colour = _colour(part.attrib.get("fill", "black"))
        for stroke in strokes(words):
            placed = [(left + x * across, line + (y - HEIGHT) * down) for x, y in stroke]
            for a, b in pairwise(placed if len(placed) > 1 else placed * 2):
                self._segment(a, b, size * _STROKE, colour)

    def _lines(self, points: list[Point], part: ElementTree.Element, origin: Point) -> None:
        colour = _colour(part.attrib["stroke"])
        thick = float(part.attrib.get("stroke-width", 1))
        dashes = part.attrib.get("stroke-dasharray", "none")
        placed = [(origin[0] + x, origin[1] + y) for x, y in points]
        for a, b in pairwise(placed if len(placed) != 1 else placed * 2):
            if dashes == "none":
                self._segment(a, b, thick, colour)
                continue
            on, off = (float(length) for length in dashes.split())
            length = math.dist(a, b)
            for i in range(int(length / (on + off)) + 1):
                begin, end = i * (on + off), min(i * (on + off) + on, length)
                self._segment(
                    _along(a, b, begin / length), _along(a, b, end / length), thick, colour
                )

    def _circle(self, part: ElementTree.Element, origin: Point) -> None:
        centre = (origin[0] + float(part.attrib["cx"]), origin[1] + float(part.attrib["cy"]))
        radius = float(part.attrib["r"])
        if "stroke" in part.attrib:
            self._segment(centre, centre, 2 * radius + 1, _colour(part.attrib["stroke"]))
            radius -= 0.5
        self._segment(centre, centre, 2 * radius, _colour(part.attrib["fill"]))

    def _segment(self, a: Point, b: Point, thick: float, colour: Colour) -> None:
        """A straight line with round ends; a pixel counts by how much of it is covered."""
        (ax, ay), (bx, by) = ((x * SCALE, y * SCALE) for x, y in (a, b))
        reach = thick * SCALE / 2
        high, wide, _ = self._ground.shape
        left, right = _range(min(ax, bx) - reach, max(ax, bx) + reach, wide)
        top, bottom = _range(min(ay, by) - reach, max(ay, by) + reach, high)
        ys, xs = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
        dx, dy = bx - ax, by - ay
        squared = dx * dx + dy * dy
        along = np.clip(((xs - ax) * dx + (ys - ay) * dy) / squared, 0, 1) if squared else 0.0
        distance = np.hypot(xs - ax - along * dx, ys - ay - along * dy)
        covered = np.clip(reach + 0.5 - distance, 0, 1)[..., None]
        cut = self._ground[top:bottom, left:right]
        cut += (np.array(colour, dtype=np.float32) - cut) * covered


def _range(low: float, high: float, end: int) -> tuple[int, int]:
    first = min(max(math.floor(low) - 1, 0), end)
    return first, min(max(math.ceil(high) + 1, first), end)


def _along(a: Point, b: Point, part: float) -> Point:
    return (a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part)


def _points(part: ElementTree.Element) -> list[Point]:
    get = part.attrib
    if "points" not in get:
        return [(float(get["x1"]), float(get["y1"])), (float(get["x2"]), float(get["y2"]))]
    pairs = (pair.split(",") for pair in get["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def _colour(text: str) -> Colour:
    if text in _NAMES:
        return _NAMES[text]
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    return (int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16))


def _encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    high, wide, _ = pixels.shape
    rows = np.concatenate([np.zeros((high, 1), np.uint8), pixels.reshape(high, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )
