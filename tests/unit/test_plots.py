"""The axes that all pictures are drawn on."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from scheduler.plots.axes import Axes, document, text, ticks, title

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
