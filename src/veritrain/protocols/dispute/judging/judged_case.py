"""The case that a judge looks at: the two entries as records, what the job says, and what the
parties opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar, cast

from veritrain.encoding import Value, encode
from veritrain.errors import InconclusiveError
from veritrain.job.job import Job
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Loser, Ruling
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import EntryBody, read_body
from veritrain.replay.trace.openings import FalseOpeningError, agreed_body
from veritrain.replay.trace.requests import Request
from veritrain.transcript.limits import LIMITS as TRANSCRIPT
from veritrain.transcript.records import Leaf

T = TypeVar("T")
# Of operands of one operator: what a message holds beside a rounding log.
MOST_BYTES = LIMITS.detail_bytes - TRANSCRIPT.rounding_bytes - (1 << 20)


class OpeningNeededError(Exception):
    """The judge cannot go on without an opening that nobody was asked for yet."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.ask = ask


class CaughtError(Exception):
    """A party opened something false."""

    def __init__(self, role: Role, error: FalseOpeningError) -> None:
        super().__init__()
        self.ruling = Ruling(
            loser=Loser.of(role), reason=f"what the {role.value} opened is false: {error}"
        )


class JudgedCase:
    """A case with what the parties opened of it so far. Pairs are the trainer's and the
    challenger's."""

    def __init__(self, job: Job | None, case: Case, answered: Sequence[Answered]) -> None:
        """Nothing is looked at yet.

        Args:
            job: the referee's; None where nobody has it.
            case: see `Case`.
            answered: what was asked, and opened.
        """
        self.case = case
        self._job = job
        self._answered = answered

    @property
    def job(self) -> Job:
        """The job, for what its code says.

        Raises:
            InconclusiveError: the judge has none.
        """
        if self._job is None:
            raise InconclusiveError("what differs follows from the job's code: this needs the job")
        return self._job

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """How the run's operators are computed."""
        if self._job is None:
            return Arithmetic.from_header(self.case.header)
        return Arithmetic.of(self._job)

    @cached_property
    def bodies(self) -> tuple[EntryBody, EntryBody]:
        """The two entries, of which `form.malformed` found none malformed."""
        trainer, challenger = (read_body(entry) for entry in self.case.entries)
        return trainer, challenger

    @property
    def before(self) -> Leaf:
        """The agreed leaf; step 0, which has none, was decided."""
        return cast(Leaf, self.case.before)

    @property
    def previous(self) -> TraceEntry:
        """The agreed entry; entry 0, which has none, was decided."""
        return cast(TraceEntry, self.case.previous)

    @cached_property
    def previous_body(self) -> EntryBody:
        """The body of the agreed entry.

        Raises:
            InconclusiveError: it is malformed.
        """
        return agreed_body(self.previous)

    def opened(
        self, request: Request, read: Callable[[Value], T], of: tuple[Role, ...] = (Role.TRAINER,)
    ) -> T:
        """What a party opened, as `read` checks it.

        The judge asks both parties for what not every job can give away as bytes, or in one
        message: either may have none.

        Raises:
            OpeningNeededError: the parties are to be asked.
            CaughtError: the opening is false.
            InconclusiveError: no party can give it away.
        """
        details = self._details(request, of)
        for role in of:
            if details[role] is None and len(of) > 1:
                continue
            return _read(role, read, details[role])
        kind = cast("dict[str, Value]", request.to_value())["open"]
        raise InconclusiveError(f"neither party can give away the {kind}")

    def opened_by_both(self, request: Request, read: Iterable[Callable[[Value], T]]) -> tuple[T, T]:
        """What each party opened, as its own `read` checks it.

        Raises:
            OpeningNeededError, CaughtError: as `opened`.
        """
        details = self._details(request, PARTIES)
        trainer, challenger = (
            _read(role, check, details[role]) for role, check in zip(PARTIES, read, strict=True)
        )
        return trainer, challenger

    def _details(self, request: Request, of: tuple[Role, ...]) -> Mapping[Role, Value]:
        what = request.to_value()
        for answered in self._answered:
            if encode(answered.ask.what) == encode(what):
                return answered.details
        raise OpeningNeededError(Ask(of=of, what=what))


def _read(role: Role, read: Callable[[Value], T], detail: Value) -> T:
    try:
        return read(detail)
    except FalseOpeningError as error:
        raise CaughtError(role, error) from None


def require_openable(what: str, size: int, values: int = 0) -> None:
    """Check before the judge asks: nobody can open more than a message holds, and nobody loses by
    that.

    Raises:
        InconclusiveError: so many bytes, or CBOR values, are too many.
    """
    if size > MOST_BYTES or values > LIMITS.message_items // 2:
        raise InconclusiveError(f"{what}: {size} bytes, {values} values are too many to open")


def against(claims: Iterable[T], problem: Callable[[T], str | None], what: str) -> Ruling | None:
    """The ruling against each party whose claim has a problem; None where no claim has one.

    Args:
        claims: the trainer's and the challenger's.
        problem: says what is wrong with a claim, None where nothing is.
        what: the claims are about.
    """
    found = {role: problem(claim) for role, claim in zip(PARTIES, claims, strict=True)}
    problems = {role: text for role, text in found.items() if text is not None}
    if not problems:
        return None
    text = "; ".join(f"the {role.value}'s: {problem}" for role, problem in problems.items())
    return Ruling(loser=Loser.of(*problems), reason=f"{what}: {text}")


def decided(claims: Iterable[T], problem: Callable[[T], str | None], what: str) -> Ruling:
    """`against` where one of two different claims must be false.

    Raises:
        InconclusiveError: neither was found so.
    """
    ruling = against(claims, problem, what)
    if ruling is None:
        raise InconclusiveError(f"{what}: no claim was found false")
    return ruling
