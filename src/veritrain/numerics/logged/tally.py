"""What happened to the rounded values of some steps, by class of operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_STEERED = 0.25  # of the logged decisions that are not one's own, and so many more by chance
_CHANCE = 32


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
        return self.widest > 1.0 or self.corrected > _CHANCE + _STEERED * (
            self.logged - self.padding
        )


def combined(tallies: Mapping[str, Tally], others: Mapping[str, Tally]) -> dict[str, Tally]:
    """Both together, by class."""
    names = sorted(tallies.keys() | others.keys())
    return {name: tallies.get(name, Tally()) + others.get(name, Tally()) for name in names}
