"""A small plot made of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median_low

_BLOCKS = " ▁▂▃▄▅▆▇█"


def plot(values: Sequence[float], width: int = 64, height: int = 6) -> list[str]:
    """Lines of text with the curve of `values`, the highest first; each column is a median.

    Values are finite; they may be as far apart as numbers can be.
    """
    if not values:
        return []
    columns = _medians(values, min(width, len(values)))
    low, high = min(columns), max(columns)
    span = high / 2 - low / 2  # of halves: the difference itself may overflow
    steps = height * (len(_BLOCKS) - 1)
    levels = [
        round((value / 2 - low / 2) / span * (steps - 1)) + 1 if span > 0 else 1
        for value in columns
    ]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, labels.values()))
    return [
        f"{labels.get(row, ''):>{margin}} │{_row(levels, height - 1 - row)}".rstrip()
        for row in range(height)
    ]


def _medians(values: Sequence[float], count: int) -> list[float]:
    edges = [len(values) * column // count for column in range(count + 1)]
    return [median_low(values[start:end]) for start, end in pairwise(edges)]


def _row(levels: Sequence[int], row: int) -> str:
    full = len(_BLOCKS) - 1
    return "".join(_BLOCKS[min(max(level - row * full, 0), full)] for level in levels)
