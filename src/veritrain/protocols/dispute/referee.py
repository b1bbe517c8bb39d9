"""The referee of one dispute: a hearing with a clock.

A state machine without I/O: bytes and the time come in by `receive` and `tick`; questions, the
verdict and the evidence are there to be fetched and sent. The rules are those of `Hearing`.

A referee that was interrupted takes the messages that it had kept once more, in their order: it then
asks the same questions in the same bytes. It opens each dispute once; the caller sees to that.
"""

from __future__ import annotations

from dataclasses import dataclass

from veritrain.encoding import Digest
from veritrain.errors import UsageError, VeritrainError
from veritrain.protocols.dispute.challenge import open_challenge
from veritrain.protocols.dispute.evidence import Bundle, Event
from veritrain.protocols.dispute.hearing import Hearing
from veritrain.protocols.dispute.judge import Judge
from veritrain.protocols.dispute.messages import Question, Role
from veritrain.protocols.dispute.verdict import Verdict
from veritrain.transcript.signing import Signer


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long a party may take to answer, in seconds."""

    memory: float = 300.0  # what it has at hand: leaves, entries of a trace
    replay: float = 86_400.0  # what it has to run the step again for: a trace, a detail

    def __post_init__(self) -> None:
        for name, value in (("memory", self.memory), ("replay", self.replay)):
            if not value > 0:
                raise UsageError(f"deadline {name}: expected more than 0 seconds, got {value}")

    def of(self, question: Question) -> float:
        """The one for this question."""
        return self.replay if question.topic.needs_replay else self.memory


class Referee:
    """Waits for a challenge, then leads the dispute to its verdict. Legal orders:

    ==============  =========================  ==================================================
    state           what comes in              next
    ==============  =========================  ==================================================
    no dispute      a valid challenge          a question is open; its deadline begins
    no dispute      anything else              no dispute: `open_challenge` says why
    question open   before the deadline: bytes what `Hearing` says; with a new question its deadline begins
    question open   `shown`                    the same; its deadline begins, if it was not shown before
    question open   the deadline               over: whoever has not answered loses
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
        """A referee of the run with this digest, or of any. `now`: a time in seconds that never
        goes back, the same clock as for all later calls."""
        self._signer = signer
        self._judge = judge
        self._deadlines = deadlines
        self._run = run
        self._now = now
        self._hearing: Hearing | None = None
        self._deadline: float | None = None
        self._shown = 0  # number of the last question that was

    @property
    def verdict(self) -> Verdict | None:
        """How it ended; None before."""
        return None if self._hearing is None else self._hearing.verdict

    @property
    def deadline(self) -> float | None:
        """When the open question has to be answered; None where there is none."""
        return self._deadline

    def question(self, role: Role) -> bytes | None:
        """The signed question that `role` has not answered yet; to be sent as often as needed."""
        return None if self._hearing is None else self._hearing.question(role)

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes that someone sent. What comes at the deadline comes too late.

        Raises:
            UsageError: `now` is before an earlier one.
        """
        self.tick(now)
        if self._hearing is None:
            self._open(data)
        else:
            number = self._hearing.number
            self._hearing.hear(data)
            if self._hearing.asked is None or self._hearing.number != number:
                self._set_deadline(self._hearing, now)

    def tick(self, now: float) -> None:
        """Let time pass.

        Raises:
            UsageError: `now` is before an earlier one.
        """
        self._require_later(now)
        self._now = now
        if self._hearing is not None and self._deadline is not None and now >= self._deadline:
            self._hearing.expire()
            self._set_deadline(self._hearing, now)

    def shown(self, now: float) -> None:
        """The open question can be seen from `now` on: what the referee computed before it is not taken from the
        parties' time. Later calls may still bring what came before `now`.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        self._require_later(now)
        if self._hearing is not None and self._shown != self._hearing.number:
            self._shown = self._hearing.number
            self._set_deadline(self._hearing, now)

    @property
    def events(self) -> tuple[Event, ...]:
        """What counted so far: signed messages, and the number of a question that timed out."""
        return () if self._hearing is None else self._hearing.evidence.events

    def bundle(self) -> bytes:
        """The evidence with the signed verdict: for everyone, see `check`.

        Raises:
            UsageError: the dispute is not over.
        """
        if self._hearing is None or self._hearing.verdict is None:
            raise UsageError("the dispute is not over")
        sealed = self._hearing.verdict.seal(self._signer)
        return Bundle(evidence=self._hearing.evidence, verdict=sealed).to_bytes()

    def _open(self, data: bytes) -> None:
        try:
            contest = open_challenge(data, referee=self._signer.public_key, run=self._run)
        except VeritrainError:
            return
        self._hearing = Hearing(
            challenge=data, contest=contest, signer=self._signer, judge=self._judge
        )
        self._set_deadline(self._hearing, self._now)

    def _require_later(self, now: float) -> None:
        if not now >= self._now:
            raise UsageError(f"time: expected {self._now} or later, got {now}")

    def _set_deadline(self, hearing: Hearing, now: float) -> None:
        asked = hearing.asked
        self._deadline = None if asked is None else now + self._deadlines.of(asked)
