"""The definitions of `exact` numerics, written to be read: slow, plain, obviously right.

Every rounding is done with Python integers and fractions (`binary32`), never by a floating-point
unit; elementary functions come from multiprecision arithmetic (`elementary`, which says why it is
the only one to import the product). The product does not call these modules: its kernels are tested
equal to them bit for bit, and the vectors in `vectors/numerics/` are computed by them. One module
for each chapter of docs/numerics.md. Arrays are numpy arrays of float32 unless said otherwise.
"""

from __future__ import annotations

from spec.binary32 import Array, to_float32
from spec.contraction import (
    Geometry,
    Width,
    contraction_bits,
    convolution,
    convolve,
    convolve_backward,
    narrow_bits,
    product,
)
from spec.sums import accumulate, exact_sum, integers, sum_bits, sum_over

__all__ = [
    "Array",
    "Geometry",
    "Width",
    "accumulate",
    "contraction_bits",
    "convolution",
    "convolve",
    "convolve_backward",
    "exact_sum",
    "integers",
    "narrow_bits",
    "product",
    "sum_bits",
    "sum_over",
    "to_float32",
]
