"""The axes that all pictures are drawn on."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest

from scheduler.plots.axes import Axes, document, line, text, ticks, title
from scheduler.plots.pictures import SCALE, png
from scheduler.plots.strokes import strokes, width

SVG = "{http://www.w3.org/2000/svg}"
AXES = Axes(width=200, height=100, left=20, right=10, top=5, bottom=15, x_max=50, y_max=4)


def test_ticks_are_round_and_few() -> None:
    assert ticks(1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(5839) == [0, 1000, 2000, 3000, 4000, 5000]


def test_both_axes_start_at_0_and_end_at_the_edge() -> None:
    assert (AXES.x(0), AXES.x(25), AXES.x(50)) == (20, 105, 190)
    assert (AXES.y(0), AXES.y(2), AXES.y(4)) == (85, 45, 5)


@pytest.mark.parametrize("beyond", [50.1, 1e9, float("inf")])
def test_what_is_beyond_an_axis_lies_on_the_edge(beyond: float) -> None:
    assert (AXES.x(beyond), AXES.x(-beyond)) == (190, 20)
    assert (AXES.y(beyond), AXES.y(-beyond)) == (5, 85)


def test_a_picture_is_xml_whatever_the_words() -> None:
    words = '<a & "b">'
    parts = [title(0, words), text(1, 2, words, "end"), *AXES.grid(words, "ms")]
    root = ElementTree.fromstring(document(200, 100, parts))
    assert [part.text for part in root.iter(f"{SVG}text")].count(words) == 3
    # 0 to 50 in tens, 0 to 4 in ones
    assert len(root.findall(f"{SVG}line")) == len(ticks(50)) + len(ticks(4)) == 11


def pixels(data: bytes) -> np.ndarray:
    """Of a PNG of 8-bit RGB without filters; checks its chunks."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, rows, wide, high = 8, b"", 0, 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        (told,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert told == zlib.crc32(kind + body)
        if kind == b"IHDR":
            wide, high = struct.unpack(">II", body[:8])
        elif kind == b"IDAT":
            rows += zlib.decompress(body)
        at += 12 + length
    return np.frombuffer(rows, np.uint8).reshape(high, 1 + 3 * wide)[:, 1:].reshape(high, wide, 3)


def test_a_picture_in_pixels_has_the_lines_where_they_are() -> None:
    parts = [line(10, 20, 60, 20, "#2060b0", 2), line(10, 30, 60, 30, "#999", dashes="4 4")]
    parts.append('<g transform="translate(0 40)"><circle cx="50" cy="10" r="4" fill="#d00"/></g>')
    seen = pixels(png(document(80, 70, parts)))
    assert seen.shape == (70 * SCALE, 80 * SCALE, 3)
    assert tuple(seen[20 * SCALE, 30 * SCALE]) == (0x20, 0x60, 0xB0)
    assert tuple(seen[50 * SCALE, 50 * SCALE]) == (0xDD, 0, 0)
    assert tuple(seen[10 * SCALE, 30 * SCALE]) == (255, 255, 255)
    dashed = seen[30 * SCALE, 10 * SCALE : 60 * SCALE, 0] < 200
    assert 0.3 < dashed.mean() < 0.8


@pytest.mark.parametrize("anchor", ["start", "middle", "end"])
def test_words_in_pixels_are_where_they_belong(anchor: str) -> None:
    seen = pixels(png(document(200, 40, [text(100, 30, "l(b) = 1.5 ms", anchor)])))
    columns = np.flatnonzero((seen < 128).any(axis=(0, 2))) / SCALE
    left, right = {"start": (100, 192), "middle": (54, 146), "end": (8, 100)}[anchor]
    assert left - 2 <= columns.min()
    assert columns.max() <= right + 2


def test_all_of_ascii_has_strokes_and_the_rest_a_box() -> None:
    letters = [chr(code) for code in range(33, 127)]
    assert all(strokes(letter) for letter in letters)
    assert len({str(strokes(letter)) for letter in letters}) >= len(letters) - 1  # 0 and O
    assert strokes("²") == strokes("é") != strokes("2")
    assert width("abc") == 16
