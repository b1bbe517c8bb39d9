"""The referee of one dispute: a `Machine` that adds deadlines to `DisputeState`.

Bytes and times come in by `receive` and `tick`. The caller fetches and sends the questions, the
verdict and the evidence.

A referee that was interrupted takes the messages that it had kept once more, in their order. It
then asks the same questions in the same bytes. The caller opens each dispute once.
"""

from __future__ import annotations

from dataclasses import dataclass

from veritrain.encoding import Digest
from veritrain.errors import UsageError, VeritrainError
from veritrain.parties.evidence import Event
from veritrain.parties.machine import Outgoing
from veritrain.protocols.dispute.challenge import DisputeTerms, PartyMessage, open_challenge
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.dispute_state import DisputeState
from veritrain.protocols.dispute.judge import Judge
from veritrain.protocols.dispute.messages import PARTIES, Question, Role
from veritrain.protocols.dispute.verdict import DisputeVerdict
from veritrain.transcript.signing import Signer


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a party may take to answer, in seconds."""

    memory: float = 300.0  # with something that it has at hand: leaves, entries of a trace
    replay: float = 86_400.0  # with something that takes a replay of the step: a trace, a detail

    def __post_init__(self) -> None:
        for name, value in (("memory", self.memory), ("replay", self.replay)):
            if not value > 0:
                raise UsageError(f"deadline {name}: expected more than 0 seconds, got {value}")

    def of(self, question: Question) -> float:
        """The one for this question."""
        return self.replay if question.topic.needs_replay else self.memory


class Referee:
    """Waits for a challenge, then leads the dispute to its verdict:

    ==============  =========================  ==================================================
    state           what comes in              next
    ==============  =========================  ==================================================
    no dispute      a valid challenge          a question is open; its deadline begins
    no dispute      anything else              no dispute: `open_challenge` says why
    question open   bytes before the deadline  as `DisputeState` says; a new question has a new one
    question open   `shown`                    the same; its deadline begins, at the first call
    question open   the deadline               over: a party that has not answered loses
    over            anything                   over
    ==============  =========================  ==================================================
    """

    def __init__(
        self,
        *,
        signer: Signer,
        judge: Judge,
        deadlines: Deadlines,
        now: float,
        run: Digest | None = None,
    ) -> None:
        """A referee of the run with this digest, or of any run. `now` is of the same clock as the
        times of all later calls."""
        self._signer = signer
        self._judge = judge
        self._deadlines = deadlines
        self._run = run
        self._now = now
        self._state: DisputeState | None = None
        self._deadline: float | None = None
        self._shown = 0  # number of the last question that was

    @property
    def verdict(self) -> DisputeVerdict | None:
        """How it ended; None before."""
        return None if self._state is None else self._state.verdict

    @property
    def deadline(self) -> float | None:
        """When the open question has to be answered; None where there is none."""
        return self._deadline

    def question(self, role: Role) -> bytes | None:
        """The signed question that `role` has not answered yet; to be sent as often as needed."""
        return None if self._state is None else self._state.question(role)

    @property
    def outgoing(self) -> tuple[Outgoing, ...]:
        """See `Machine.outgoing`: the open question, for each party that has not answered it."""
        if self._state is None:
            return ()
        asked = {self._state.terms.key(role): self.question(role) for role in PARTIES}
        return tuple(Outgoing(to=key, data=data) for key, data in asked.items() if data is not None)

    @property
    def is_over(self) -> bool:
        """See `Machine.is_over`."""
        return self.verdict is not None

    @property
    def answer_bytes(self) -> int:
        """The most bytes that an answer to the open question can have; 0 where none is open."""
        return 0 if self._state is None else self._state.answer_bytes

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes that somebody sent. Bytes that come at the deadline come too late.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        self.tick(now)
        if self._state is not None:
            number = self._state.number
            self._state.receive(data)
            self._after(self._state, number)
            return
        try:
            terms = open_challenge(data, referee=self._signer.public_key, run=self._run)
        except VeritrainError:  # not a challenge before this referee
            return
        self.open(terms, now)

    def open(self, terms: DisputeTerms, now: float) -> None:
        """Begin the dispute of a challenge that `open_challenge` opened before this referee.

        Raises:
            UsageError: `now` is before an earlier time, or a dispute has begun.
        """
        self.tick(now)
        if self._state is not None:
            raise UsageError("a referee decides one dispute")
        self._state = DisputeState(terms=terms, signer=self._signer, judge=self._judge)
        self._set_deadline(self._state, now)

    def take(self, message: PartyMessage, now: float) -> None:
        """Take a message whose signature was checked, as `receive` does.

        Raises:
            UsageError: `now` is before an earlier time, or no dispute has begun.
        """
        self.tick(now)
        if self._state is None:
            raise UsageError("no dispute has begun")
        number = self._state.number
        self._state.take(message)
        self._after(self._state, number)

    def tick(self, now: float) -> None:
        """Let time pass.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        self._require_later(now)
        self._now = now
        if self._state is not None and self._deadline is not None and now >= self._deadline:
            self._state.expire()
            self._set_deadline(self._state, now)

    def shown(self, now: float) -> None:
        """The parties can see the open question from `now` on. Its deadline counts from then: the
        time in which the referee computed the question is not taken from the parties' time. Later
        calls may still bring messages that came before `now`.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        self._require_later(now)
        if self._state is not None and self._shown != self._state.number:
            self._shown = self._state.number
            self._set_deadline(self._state, now)

    @property
    def events(self) -> tuple[Event, ...]:
        """What counted so far: signed messages, and the number of a question that timed out."""
        return () if self._state is None else self._state.evidence.events

    def bundle(self) -> bytes:
        """The evidence with the signed verdict: for everyone, see `check_bundle`.

        Raises:
            UsageError: the dispute is not over.
        """
        if self._state is None or self._state.verdict is None:
            raise UsageError("the dispute is not over")
        sealed = self._state.verdict.seal(self._signer)
        return Bundle(evidence=self._state.evidence, verdict=sealed).to_bytes()

    def _require_later(self, now: float) -> None:
        if not now >= self._now:
            raise UsageError(f"time: expected {self._now} or later, got {now}")

    def _after(self, state: DisputeState, number: int) -> None:
        """Set the deadline anew where another question than `number` is open now, or none."""
        if state.asked is None or state.number != number:
            self._set_deadline(state, self._now)

    def _set_deadline(self, state: DisputeState, now: float) -> None:
        asked = state.asked
        self._deadline = None if asked is None else now + self._deadlines.of(asked)
