"""The judge recomputes one operator and says which party's entry is false. This is its interface.

A judge sees the entries that the parties are bound to, and the values that they opened. It may ask
twice. A value is a party's word until the judge has checked its digest against the entries, and the
result against its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from veritrain.encoding import Value
from veritrain.errors import UsageError
from veritrain.protocols.dispute.messages import Role
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.records import Header, Leaf


class Loser(Enum):
    """Who loses. BOTH: each is false. NONE: it could not be decided."""

    TRAINER = "trainer"
    CHALLENGER = "challenger"
    BOTH = "both"
    NONE = "none"

    @classmethod
    def of(cls, *roles: Role) -> Loser:
        """The loser where these parties lose."""
        if not roles:
            return cls.NONE
        return cls(roles[0].value) if len(roles) == 1 else cls.BOTH


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is agreed and what is not. Pairs are the trainer's and the challenger's.

    Records are the same when their digests are; `==` takes 0.0 and -0.0 for equal.

    Attributes:
        before: the agreed leaf of the step before; None at step 0, which follows from the header.
        trainer, challenger: the leaves of `step`. They differ; both follow `before` in the chain.
        sizes: of the two traces.
        index: the first entry that differs; None where the traces are equal and the leaves differ.
        previous: the agreed entry before it; None for entry 0. Both entries follow it in the chain.
        entries: at `index`; where that is None, the last entry of both, which is the same.
    """

    header: Header
    step: int
    before: Leaf | None
    trainer: Leaf
    challenger: Leaf
    sizes: tuple[int, int]
    index: int | None
    previous: TraceEntry | None
    entries: tuple[TraceEntry, TraceEntry]


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The end: who loses, and why, for people."""

    loser: Loser
    reason: str

    def __post_init__(self) -> None:
        if type(self.loser) is not Loser or type(self.reason) is not str:
            raise UsageError("a ruling needs a loser and a reason")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the judge wants opened, and by whom (the trainer first)."""

    of: tuple[Role, ...]
    what: Value


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The values that the asked parties opened, to be checked against their entries."""

    ask: Ask
    details: Mapping[Role, Value]


class Judge(Protocol):
    """Recomputes one operator, or compares the end of a trace with a leaf."""

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        """Decide, or ask for something, at most twice. A pure function: others will call it again.

        A party whose detail is false or useless loses by a ruling. An exception decides nothing:
        the dispute is then inconclusive.
        """
        ...
