"""How far two machines' results of one operator may lie apart: what is logged, and what is
possible.

All distances are multiples of u * S: u the unit roundoff in which a step computes, S the scale of
the operator's result, an order-free quantity of its operands (`vendor`), so that machines agree on
it.

- *Possible* is `REACH` times the growth of the result's errors. For a sum of n terms whose
  magnitudes add up to S the growth is sqrt(n). Rounding errors are independent and of mean zero to
  good accuracy. Then n additions in any order err by more than lambda sqrt(n) u S with a
  probability below 2 n exp(-lambda**2 / 2) (Higham and Mary 2019, "A new approach to probabilistic
  rounding error analysis", theorem 2.4). A decision beyond that distance was not made by
  arithmetic. Kernels of norms add rows one after another, and equal rows round alike, so their
  errors are not independent: their growth is n, which holds for any order and any numbers.
- *Logged a priori* is a thirty-second of the growth, since few sums come near their bounds.
- *Logged after calibration* is the largest gap that was seen between machines, times a safety
  factor. The job states it, so that the job's digest covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from veritrain.errors import UsageError

CLASSES = ("attention", "convolution", "embedding", "norm", "product", "sum")
REACH = 8.0
_TYPICAL = 1 / 32  # of the growth, a priori
_LEAST = 4.0  # units, a priori
_MOST = 2.0**40  # of a threshold; beyond it nothing would be decided


class Thresholds:
    """A threshold for each class of operators that was calibrated; a priori ones for the others."""

    def __init__(self, calibrated: Mapping[str, float] = MappingProxyType({})) -> None:
        """`calibrated`: class to multiple of u * S.

        Raises:
            UsageError: an unknown class, or a number that cannot be a threshold.
        """
        for name, value in calibrated.items():
            if name not in CLASSES:
                raise UsageError(f"thresholds: {name!r} is no class; choose of {list(CLASSES)}")
            if type(value) not in (int, float) or not 0 <= value <= _MOST:
                raise UsageError(f"thresholds: {name}: expected a number from 0 on, got {value!r}")
        self._calibrated = dict(calibrated)

    def logged(self, name: str, growth: float) -> float:
        """In units of u * S: up to here an entry is ambiguous."""
        return self._calibrated.get(name, max(_LEAST, growth * _TYPICAL))

    def possible(self, name: str, growth: float) -> float:
        """In the same units: up to here another machine may have decided otherwise."""
        most = growth**2 if name == "norm" else 0.0  # n terms in any order
        return self.logged(name, growth) + max(REACH * growth, most)
