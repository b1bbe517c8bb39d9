"""The search between the last place where two lists agree and the first where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from veritrain.transcript.record import Record

T = TypeVar("T", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Search(Generic[T]):
    """What is known: both lists are equal at `low` and differ at `high`, and `low < high`.

    Attributes:
        low: -1 for what lies before both lists.
        agreed: the entry at `low`; None at -1.
        differing: the entries at `high`; None where one of the lists has none there.
    """

    low: int
    high: int
    agreed: T | None
    differing: tuple[T, T] | None

    @property
    def middle(self) -> int | None:
        """The place to look at next; None when `high` comes right after `low`."""
        return (self.low + self.high) // 2 if self.high - self.low > 1 else None

    def narrowed(self, place: int, pair: tuple[T, T]) -> Search[T]:
        """The search after both lists were seen at `place`, the middle."""
        if pair[0].digest == pair[1].digest:
            return Search(low=place, high=self.high, agreed=pair[0], differing=self.differing)
        return Search(low=self.low, high=place, agreed=self.agreed, differing=pair)
