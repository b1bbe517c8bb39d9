"""The order of questions in a dispute, and what follows from the answers.

The game knows nothing of signatures, deadlines or bytes on a wire. It yields a question, gets the
answers, and ends with a ruling. The numbers in comments are those of docs/disputes.md, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError
from veritrain.protocols.dispute.bisection import Search
from veritrain.protocols.dispute.challenge import DisputeTerms
from veritrain.protocols.dispute.claims import Commitment
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Loser, Ruling
from veritrain.protocols.dispute.messages import (
    PARTIES,
    Body,
    Detail,
    DetailOf,
    LeafAt,
    Opening,
    OperatorAt,
    Question,
    Role,
    Topic,
    TraceClaim,
    TraceOf,
    by_party,
)
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.records import Leaf


@dataclass(frozen=True, kw_only=True)
class Round:
    """One question, and how to check one party's answer to it by itself.

    `read` returns what the answer says, and raises a `VeritrainError` where an honest party could
    not have given it.
    """

    question: Question
    read: Callable[[Role, Body], object]


_T = TypeVar("_T")
_R = TypeVar("_R", Leaf, TraceEntry)
# Yields a round; is sent what `read` returned, in the order of `question.of`; returns its result.
Play: TypeAlias = Generator[Round, tuple[Any, ...], _T]


@dataclass(frozen=True, kw_only=True)
class _Traces:
    """Both parties' traces of the disputed step."""

    commitments: Mapping[Role, Commitment]
    lasts: tuple[TraceEntry, TraceEntry]

    @property
    def sizes(self) -> tuple[int, int]:
        trainer, challenger = (self.commitments[role].size for role in PARTIES)
        return trainer, challenger


class Game:
    """One dispute between two commitments.

    Attributes:
        step: the first step in which the parties differ, once it is known.
        index: the first entry of its trace in which they differ, once it is known.
    """

    def __init__(self, terms: DisputeTerms, judge: Judge) -> None:
        self._terms = terms
        self._judge = judge
        self.step: int | None = None
        self.index: int | None = None

    def play(self) -> Play[Ruling]:
        """The whole game."""
        leaves = yield from self._find_step()
        if isinstance(leaves, Ruling):
            return leaves
        self.step = leaves.high
        before = self._terms.run if leaves.agreed is None else leaves.agreed.digest
        ruling = _unchained(f"leaf {leaves.high}", before, _differing(leaves))
        if ruling is not None:
            return ruling
        traces = yield from self._trace(leaves.high)
        entries = yield from self._find_entry(leaves.high, traces)
        if entries is None:
            return (yield from self._ask_judge(self._case(leaves, traces, None)))
        self.index = entries.high
        before = before if entries.agreed is None else entries.agreed.digest
        ruling = _unchained(f"trace entry {entries.high}", before, _differing(entries))
        if ruling is not None:
            return ruling
        return (yield from self._ask_judge(self._case(leaves, traces, entries)))

    def _find_step(self) -> Play[Search[Leaf] | Ruling]:
        own = self._terms.leaf
        # 1. The disputed leaf of the trainer.
        (trainer,) = yield self._leaf(own.step, Role.TRAINER)
        if trainer.digest == own.digest:
            return Ruling(
                loser=Loser.CHALLENGER, reason=f"leaf {own.step} is the same for both parties"
            )
        # 2. Halving between the header and that leaf.
        search = Search(low=-1, high=own.step, agreed=None, differing=(trainer, own))
        while (middle := search.middle) is not None:
            left, right = yield self._leaf(middle, *PARTIES)
            search = search.narrowed(middle, (left, right))
        return search

    def _leaf(self, index: int, *of: Role) -> Round:
        def read(role: Role, answer: Body) -> Leaf:
            return self._terms.leaves[role].leaf(index, cast(Opening, answer))

        return _round(of, LeafAt(index=index), read)

    def _trace(self, step: int) -> Play[_Traces]:
        # 3. Commitments to the traces, with their last entries.
        def read(role: Role, answer: Body) -> tuple[Commitment, TraceEntry]:
            claim = cast(TraceClaim, answer)
            commitment = Commitment(size=claim.size, root=claim.root)
            return commitment, commitment.entry(claim.size - 1, claim)

        trainer, challenger = yield _round(PARTIES, TraceOf(step=step), read)
        return _Traces(
            commitments={Role.TRAINER: trainer[0], Role.CHALLENGER: challenger[0]},
            lasts=(trainer[1], challenger[1]),
        )

    def _find_entry(self, step: int, traces: _Traces) -> Play[Search[TraceEntry] | None]:
        """The first entries that differ; None where the traces are equal."""
        # 4. Halving between the step's beginning and the end. The entries are a chain, so equal
        # last ones follow equal ones. Traces of two lengths differ at latest where one has ended;
        # the entry before that is the last of only one of them, so it differs too.
        size = min(traces.sizes)
        search: Search[TraceEntry]
        if traces.sizes[0] != traces.sizes[1]:
            search = Search(low=-1, high=size, agreed=None, differing=None)
        elif traces.lasts[0].digest != traces.lasts[1].digest:
            search = Search(low=-1, high=size - 1, agreed=None, differing=traces.lasts)
        else:
            return None
        while (middle := search.middle) is not None:
            left, right = yield self._operator(step, middle, traces)
            search = search.narrowed(middle, (left, right))
        return search

    def _operator(self, step: int, index: int, traces: _Traces) -> Round:
        def read(role: Role, answer: Body) -> TraceEntry:
            return traces.commitments[role].entry(index, cast(Opening, answer))

        return _round(PARTIES, OperatorAt(step=step, index=index), read)

    def _case(
        self, leaves: Search[Leaf], traces: _Traces, entries: Search[TraceEntry] | None
    ) -> Case:
        trainer, challenger = _differing(leaves)
        return Case(
            header=self._terms.header,
            step=leaves.high,
            before=leaves.agreed,
            trainer=trainer,
            challenger=challenger,
            sizes=traces.sizes,
            index=None if entries is None else entries.high,
            previous=None if entries is None else entries.agreed,
            entries=traces.lasts if entries is None else _differing(entries),
        )

    def _ask_judge(self, case: Case) -> Play[Ruling]:
        # 5. What the judge needs.
        answered: list[Answered] = []
        while True:
            decision = self._decision(case, answered)
            if isinstance(decision, Ruling):
                return decision
            ask, round_ = decision
            details = yield round_
            opened = dict(zip(ask.of, details, strict=True))
            answered.append(Answered(ask=ask, details=opened))

    def _decision(self, case: Case, answered: list[Answered]) -> Ruling | tuple[Ask, Round]:
        """The judge's ruling or next question. A judge that does anything else decides nothing."""
        try:
            decision = self._judge.next(case, tuple(answered))
            if isinstance(decision, Ruling):
                return decision
            if len(answered) == LIMITS.details:
                reason = f"the judge asks more than {LIMITS.details} times"
                return Ruling(loser=Loser.NONE, reason=reason)
            return decision, _detail(case, decision)
        except InconclusiveError as error:
            return Ruling(loser=Loser.NONE, reason=str(error))
        except Exception as error:  # a judge is code of others, run on data of others
            return Ruling(loser=Loser.NONE, reason=f"the judge failed: {type(error).__name__}")


def _detail(case: Case, ask: Ask) -> Round:
    def read(_: Role, answer: Body) -> object:
        return cast(Detail, answer).detail

    topic = DetailOf(step=case.step, index=case.entries[0].index, what=ask.what)
    return _round(ask.of, topic, read)


def _round(of: tuple[Role, ...], topic: Topic, read: Callable[[Role, Body], object]) -> Round:
    return Round(question=Question(of=of, topic=topic), read=read)


def _differing(search: Search[_R]) -> tuple[_R, _R]:
    """The pair at the end of a search."""
    if (
        search.differing is None
    ):  # the place before a trace's end is its last entry, the other's not
        raise RuntimeError("the search ended where one list has no entry")
    return search.differing


def _unchained(what: str, before: Digest, pair: tuple[_R, _R]) -> Ruling | None:
    """The ruling against a party whose entry does not follow the agreed one before it."""
    losers = [role for role, entry in by_party(pair) if entry.previous != before]
    if not losers:
        return None
    whose = " and ".join(role.value for role in losers)
    reason = f"{what} of the {whose} does not follow the agreed one before it"
    return Ruling(loser=Loser.of(*losers), reason=reason)
