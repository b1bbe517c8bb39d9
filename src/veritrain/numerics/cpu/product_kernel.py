"""What an kernel of exact products can do; `products` has the layout of operands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Sums of 3 * K products of two digits, each product at most 2**14, stay below 2**31.
MAX_INNER = 32_768


class Strides(NamedTuple):
    """Rows of values and where their integers go, in elements: value i of row r, plane d."""

    rows: int
    width: int  # values in a row
    source: int  # of the first row
    source_step: int  # from row to row
    target: int
    target_step: int
    plane_step: int  # from plane to plane

    def part(self, start: int, stop: int) -> Strides:
        """Of the rows [start, stop)."""
        return self._replace(
            rows=stop - start,
            source=self.source + start * self.source_step,
            target=self.target + start * self.target_step,
        )


class ProductKernel(ABC):
    """One way to multiply integer matrices exactly."""

    planes: int
    dtype: torch.dtype
    result_bytes: int  # of each entry of a product, with all that is needed on the way

    @abstractmethod
    def by_row(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        """Write the integers of rows of `x`, row r times `factors[r]`.

        Args:
            x: float32, flat. factors: float64 (rows,), powers of two or 0.
            out: planes of `dtype`, contiguous. left: highest digit first.
        """

    @abstractmethod
    def by_column(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, strides: Strides, *, left: bool
    ) -> None:
        """The same with one factor for each place in a row: float64 (width,)."""

    @abstractmethod
    def transposed(
        self, x: np.ndarray, factors: np.ndarray, out: Tensor, place: np.ndarray, source: int
    ) -> None:
        """Write the integers of an image (C, P) as `out[plane, place[p], c]`, lowest digit first.

        Args:
            x: float32, flat; the image starts at `source`. factors: float64 (C,).
            out: `dtype` (planes, places, C), zero where no place points.
        """

    @abstractmethod
    def product(self, left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
        """The product of two operands, added to `total` where there is one: float64 (M, N).

        Args:
            left: `dtype` (M, planes * K). right: (planes * K, N). K <= MAX_INNER.
            total: float64 (M, N), contiguous; written to.
        """

    def sum_of_products(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum of the products of one or more pairs of operands: float64 (M, N)."""
        total = None
        for left, right in pairs:
            total = self.product(left, right, total)
        if total is None:
            raise ValueError("a sum of no products has no shape")
        return total
