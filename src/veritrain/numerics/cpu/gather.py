"""Which values of an image make up the patches of a convolution, for any rank: plain index
arithmetic.

An image is laid into a padded plane, its places numbered in row-major order. A patch is a base
place and offsets from it. Sizes are those of the axes of space, images (S) and results (T).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

Sizes: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Kernel size, stride, padding and dilation, one number of each for every axis."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    def is_point(self, image: Sizes, result: Sizes) -> bool:
        """Whether each patch is one value, and no position is skipped or added."""
        ones = (1,) * len(self.kernel)
        return self.kernel == ones and self.stride == ones and image == result


@dataclass(frozen=True)
class Gather:
    """Which places of a padded plane make up a patch: all int64 indices into the flat plane."""

    places: int  # of the padded plane
    place: np.ndarray  # (P,) of each value of the image
    base: np.ndarray  # (T,) of each patch
    offsets: np.ndarray  # (taps,) from the base to a patch's values, ascending
    runs: np.ndarray  # (R, 2) the same: an offset, and how many follow it one by one
    taps: np.ndarray  # (taps,) index into the kernel
    result: np.ndarray  # (T,) position in the result that each patch is for
    width: int  # patches along the last axis

    @classmethod
    def of(
        cls,
        padded: Sequence[int],
        place: Sequence[np.ndarray],
        base: Sequence[np.ndarray],
        offsets: np.ndarray,
        taps: np.ndarray,
        result: np.ndarray,
    ) -> Gather:
        """From coordinates along each axis, and flat offsets, taps and results."""
        order = np.argsort(offsets, kind="stable")
        return cls(
            math.prod(padded), _flat(place, padded), _flat(base, padded), offsets[order],
            _runs(offsets[order]), taps[order], result, len(base[-1]),
        )  # fmt: skip

    def by_line(self, places: np.ndarray) -> np.ndarray:
        """(lines, width) of an array for each patch."""
        return places.reshape(-1, self.width)


def _flat(coordinates: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Row-major index of every combination of the coordinates of each axis."""
    index = np.zeros(1, np.int64)
    for places, size in zip(coordinates, sizes, strict=True):
        index = (index[:, None] * size + places[None, :]).reshape(-1)
    return index


def _runs(offsets: np.ndarray) -> np.ndarray:
    """Join offsets that follow each other."""
    if not len(offsets):
        return np.empty((0, 2), np.int64)
    starts = np.flatnonzero(np.diff(offsets, prepend=offsets[0] - 2) != 1)
    return np.stack([offsets[starts], np.diff(starts, append=len(offsets))], 1).astype(np.int64)


@lru_cache(maxsize=64)  # of one model, and not of many image sizes
def forward_gather(window: Window, size: Sizes, result: Sizes) -> Gather:
    """The patches of an image of `size` that give `result`."""
    padded = [n + 2 * p for n, p in zip(size, window.padding, strict=True)]
    place = [np.arange(n) + p for n, p in zip(size, window.padding, strict=True)]
    base = [np.arange(n) * s for n, s in zip(result, window.stride, strict=True)]
    taps = [np.arange(k) * d for k, d in zip(window.kernel, window.dilation, strict=True)]
    return Gather.of(
        padded, place, base, _flat(taps, padded), np.arange(math.prod(window.kernel)),
        np.arange(math.prod(result)),
    )  # fmt: skip


@lru_cache(maxsize=64)  # of one model, and not of many image sizes
def phases(window: Window, size: Sizes, result: Sizes) -> tuple[Gather, ...]:
    """The convolutions over a gradient of `size` that give the positions of an image `result`.

    Position i of the image is reached by tap k from output o where o * stride + k * dilation -
    padding = i, so i's remainder by the stride decides which taps do.
    """
    axes = [
        list(_axis_phases(*numbers))
        for numbers in zip(
            window.kernel, window.stride, window.padding, window.dilation, size, result, strict=True
        )
    ]
    return tuple(_phase(phase, window.kernel, size, result) for phase in itertools.product(*axes))


@dataclass(frozen=True)
class _AxisPhase:
    """Positions of one axis with the same remainder by the stride."""

    taps: np.ndarray  # that reach it
    offsets: np.ndarray  # of their outputs, relative to the position's number within the phase
    positions: np.ndarray  # of the image


def _axis_phases(
    kernel: int, stride: int, padding: int, dilation: int, size: int, result: int
) -> Iterator[_AxisPhase]:
    for remainder in range(min(stride, result)):
        taps = np.array(
            [k for k in range(kernel) if (remainder + padding - k * dilation) % stride == 0],
            np.int64,
        )
        offsets = (remainder + padding - taps * dilation) // stride
        yield _AxisPhase(taps, offsets, np.arange(remainder, result, stride))


def _phase(axes: Sequence[_AxisPhase], kernel: Sizes, size: Sizes, result: Sizes) -> Gather:
    low = [max(0, -int(min(axis.offsets, default=0))) for axis in axes]
    high = [
        max(0, len(axis.positions) - 1 + int(max(axis.offsets, default=0)) - (n - 1))
        for axis, n in zip(axes, size, strict=True)
    ]
    padded = [n + before + after for n, before, after in zip(size, low, high, strict=True)]
    place = [np.arange(n) + before for n, before in zip(size, low, strict=True)]
    base = [np.arange(len(axis.positions)) + before for axis, before in zip(axes, low, strict=True)]
    # a flat offset may be negative; base + offset never is
    offsets, taps = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for axis, n, k in zip(axes, padded, kernel, strict=True):
        offsets = (offsets[:, None] * n + axis.offsets[None, :]).reshape(-1)
        taps = (taps[:, None] * k + axis.taps[None, :]).reshape(-1)
    positions = _flat([axis.positions for axis in axes], result)
    return Gather.of(padded, place, base, offsets, taps, positions)
