"""What happened to the rounded values of some steps, by class of operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_FOREIGN = 1 / 8  # of the logged decisions, on a machine that is a quarter of the threshold off
_DOUBT = 40.0  # bits; honest machines are held to steer in one run of 2**40 at most
_CHANCE = 32  # decisions that show nothing: equal values, in many entries at once, decide alike


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts, and the widest correction."""

    values: int = 0
    logged: int = 0
    padding: int = 0  # logged, and not ambiguous for the auditor: it would hide steering
    corrected: int = 0  # decisions that the auditor's own machine would not have made
    widest: float = 0.0  # how far such a value was from its boundary, over the threshold

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
        """More decisions are foreign than differences of arithmetic within the threshold make.

        A value within the threshold of its boundary, drawn evenly, falls on the other side on a machine
        that is a quarter of the threshold off in one case of eight; never beyond the threshold.
        """
        if self.widest > 1.0:
            return True
        doubt = _surprise(self.corrected, self.logged - self.padding)
        return self.corrected > _CHANCE and doubt > _DOUBT


def _surprise(count: int, of: int) -> float:
    """Bits: 2 to minus that bounds the probability that so many of `of` decisions are foreign.

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
    """Both together, by class."""
    names = sorted(tallies.keys() | others.keys())
    return {name: tallies.get(name, Tally()) + others.get(name, Tally()) for name in names}
