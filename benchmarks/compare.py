"""`python -m benchmarks.compare OLD NEW`: two result files, figure by figure.

Those of `python -m benchmarks`, of `benchmarks.goodput` or of `benchmarks.noise`.

Exit status 0: no figure got worse by more than the tolerance, 3: one did, or is not verified any
more, 2: a file cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results import Figure, read_results

TOLERANCE = 0.1


def change(old: Figure, new: Figure) -> float:
    """By which share the figure got better (positive) or worse (negative)."""
    if not (old.verified and new.verified):
        return 0.0
    ratio = new.value / old.value
    return ratio - 1 if new.better == "higher" else 1 / ratio - 1


def verdict(old: Figure | None, new: Figure | None, tolerance: float = TOLERANCE) -> str:
    """One word for the reader: better, worse, same, new, gone, unverified."""
    if new is None:
        return "gone"
    if not new.verified:
        return "unverified"
    if old is None or not old.verified:
        return "new"
    by = change(old, new)
    if by > tolerance:
        return "better"
    # 1/(1+t)-1 is what +t of a "lower" figure or -t of the ratio turned round looks like.
    return "worse" if by < 1 / (1 + tolerance) - 1 else "same"


def compare(
    old: dict[str, Figure], new: dict[str, Figure], tolerance: float = TOLERANCE
) -> tuple[list[str], bool]:
    """Lines for the reader and whether nothing is worse, gone or unverified."""
    lines = [f"{'figure':32} {'old':>10} {'new':>10} {'change':>8}  verdict"]
    sound = True
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        word = verdict(before, after, tolerance)
        sound = sound and word not in ("worse", "gone", "unverified")
        by = f"{change(before, after):+.1%}" if before and after else "-"
        shown = [f"{figure.value:g}" if figure else "-" for figure in (before, after)]
        lines.append(f"{name:32} {shown[0]:>10} {shown[1]:>10} {by:>8}  {word}")
    return lines, sound


def main() -> int:
    parser = argparse.ArgumentParser(prog="compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="SHARE")
    options = parser.parse_args()
    try:
        (old_head, old), (new_head, new) = read_results(options.old), read_results(options.new)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if old_head.get("benchmark") != new_head.get("benchmark"):
        print("compare: the files are of different benchmarks", file=sys.stderr)
        return 2
    for word, head in (("old", old_head), ("new", new_head)):
        print(f"{word}: {head.get('commit', '?')} {head.get('date', '')} {head.get('machine', '')}")
    if old_head.get("machine") != new_head.get("machine"):
        print("the machines differ: only ratios may be compared")
    lines, sound = compare(old, new, options.tolerance)
    print("\n".join(lines))
    return 0 if sound else 3


if __name__ == "__main__":
    sys.exit(main())
