"""How many values of some steps were rounded, logged and corrected, by class of operators: an
auditor sees from that whether the trainer steered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# An honest machine whose values are a quarter of the threshold away decides this share otherwise.
_FOREIGN = 1 / 8
_DOUBT = 40.0  # bits: at most one honest run in 2**40 is called steered
_CHANCE = 32  # so many corrections prove nothing: equal values in many entries are decided alike


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts of values in the results of one class of operators, and the widest correction."""

    values: int = 0
    logged: int = 0  # values whose rounding the trainer wrote down
    padding: int = 0  # logged values that the auditor finds unambiguous: they would hide steering
    corrected: int = 0  # logged values that the auditor's own machine would have rounded otherwise
    widest: float = (
        0.0  # the largest distance of a corrected value from its boundary, in thresholds
    )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            values=self.values + other.values,
            logged=self.logged + other.logged,
            padding=self.padding + other.padding,
            corrected=self.corrected + other.corrected,
            widest=max(self.widest, other.widest),
        )

    @property
    def is_steered(self) -> bool:
        """Whether the trainer chose roundings that no honest machine would have chosen.

        Two honest machines compute values that differ by at most a quarter of the threshold. So
        they round at most one in eight of the ambiguous values differently, if these lie evenly
        around their boundaries. They never differ about a value farther than the threshold from its
        boundary.
        """
        if self.widest > 1.0:
            return True
        doubt = _surprise(self.corrected, self.logged - self.padding)
        return self.corrected > _CHANCE and doubt > _DOUBT


def _surprise(count: int, of: int) -> float:
    """How unlikely it is that honest machines differ in `count` of `of` decisions, in bits.

    The probability is at most 2 to the power of minus the result.
    Source: Chernoff's bound for binomial tails (Hoeffding 1963, theorem 1).
    """
    if count >= of:
        return of * -math.log2(_FOREIGN) if count == of else math.inf
    share = count / of
    if share <= _FOREIGN:
        return 0.0
    rest = (1.0 - share) * math.log2((1.0 - share) / (1.0 - _FOREIGN))
    return of * (share * math.log2(share / _FOREIGN) + rest)


def combined(tallies: Mapping[str, Tally], others: Mapping[str, Tally]) -> dict[str, Tally]:
    """The sums of two tallies of the same steps' classes, by class."""
    names = sorted(tallies.keys() | others.keys())
    return {name: tallies.get(name, Tally()) + others.get(name, Tally()) for name in names}
