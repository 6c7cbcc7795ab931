"""What happened on a GPU over time, as a picture: memory above, requests and errors below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scheduler.plots.axes import Axes, document, line, text, title

WIDTH, HEIGHT, MIDDLE = 900, 560, 290
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 55
USED, TENANT, ANSWERED, FAILED = "#2060b0", "#d07000", "#208040", "#c02020"
GIB = 2**30

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Timeline:
    """Times are in seconds since the load began; `answers` says of each whether it was OK."""

    seconds: float
    total_bytes: int
    used: Sequence[tuple[float, int]]
    tenant: Sequence[tuple[float, int]]
    answers: Sequence[tuple[float, bool]]

    @property
    def errors(self) -> int:
        return sum(not ok for _, ok in self.answers)

    @property
    def per_s(self) -> float:
        """OK answers a second."""
        return (len(self.answers) - self.errors) / self.seconds

    def rates(self, bin_s: float, ok: bool) -> list[tuple[float, float]]:
        """Answers a second in each bin, at its middle."""
        counts = Counter(int(at // bin_s) for at, good in self.answers if good == ok)
        bins = max(int(-(-self.seconds // bin_s)), 1)
        return [((n + 0.5) * bin_s, counts[n] / bin_s) for n in range(bins)]


def stairs(points: Points, end: float) -> list[tuple[float, float]]:
    """What holds until the next one."""
    path: list[tuple[float, float]] = []
    for at, value in points:
        if path:
            path.append((at, path[-1][1]))
        path.append((at, value))
    return [*path, (end, path[-1][1])] if path else []


def svg(timeline: Timeline, name: str, bin_s: float = 0.25) -> str:
    """A picture that needs nothing else."""
    answered, failed = timeline.rates(bin_s, True), timeline.rates(bin_s, False)
    memory_max = timeline.total_bytes / GIB
    rate_max = max(1.0, *(rate for _, rate in (*answered, *failed))) * 1.05
    end = timeline.seconds
    above = Axes(WIDTH, HEIGHT, LEFT, RIGHT, TOP, HEIGHT - MIDDLE + 20, end, memory_max)
    below = Axes(WIDTH, HEIGHT, LEFT, RIGHT, MIDDLE + 30, BOTTOM, end, rate_max)
    used = [(at, size / GIB) for at, size in timeline.used]
    tenant = [(at, size / GIB) for at, size in timeline.tenant]
    parts = [
        title(LEFT, name),
        text(LEFT + 40, 42, "memory in use", "start", USED),
        text(LEFT + 160, 42, "of it another tenant's", "start", TENANT),
        text(LEFT + 330, 42, "answers", "start", ANSWERED),
        text(LEFT + 400, 42, f"errors ({timeline.errors})", "start", FAILED),
        *above.grid("", "GiB"),
        *below.grid("s", "1/s"),
        *_path(above, used, USED),
        *_path(above, stairs(tenant, end), TENANT),
        *_path(below, answered, ANSWERED),
    ]
    if timeline.errors:
        parts += _path(below, failed, FAILED)
    return document(WIDTH, HEIGHT, parts)


def _path(axes: Axes, points: Points, colour: str) -> list[str]:
    at = [(axes.x(x), axes.y(y)) for x, y in points]
    return [line(*a, *b, colour, 1.5) for a, b in pairwise(at)]
