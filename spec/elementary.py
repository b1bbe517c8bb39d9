"""Elementary functions, correctly rounded (docs/numerics_elementary.md).

The only module of `spec` that imports the product. The product runs the slow definition itself,
where its fast kernels leave an entry undecided; written once more here, it would be a copy. The
tests hold it against mpmath's own functions and against numpy's long double.
"""

from __future__ import annotations

from typing import Any

from mpmath.ctx_mp import MPContext

from veritrain.numerics.cpu.multiprecision import FUNCTIONS, float_of, rounded_bits

Real = Any  # mpmath's real number, which has no type stubs


def rounded(name: str, x: float) -> float:
    """The binary32 number nearest to the function `name` of x, ties to even."""
    return float_of(rounded_bits(name, x))


def exact_value(name: str, x: float, precision: int = 200) -> Real:
    """The function of a finite x inside its domain, as an mpmath number that is not rounded to
    binary32."""
    context: Any = MPContext()
    with context.workprec(precision):
        return context.fsum(FUNCTIONS[name].terms(context, context.mpf(x)))
