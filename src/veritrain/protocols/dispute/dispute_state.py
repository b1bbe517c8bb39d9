"""The state of an open dispute, without a clock: who is asked what, what counts, how it ends.

Two states that take the same messages in the same order end in the same verdict. So anyone can
play a dispute again from its evidence: see `offline_check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veritrain.errors import TranscriptError, UsageError, VerificationError, VeritrainError
from veritrain.parties.envelope import Signs
from veritrain.parties.evidence import Event
from veritrain.protocols.dispute.challenge import DisputeTerms, PartyMessage
from veritrain.protocols.dispute.dispute_evidence import DisputeEvidence
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.game import Game, Round
from veritrain.protocols.dispute.judge import Judge, Loser, Ruling
from veritrain.protocols.dispute.messages import (
    Message,
    MessageKind,
    Question,
    Resignation,
    Role,
    read_reply,
)
from veritrain.protocols.dispute.verdict import DisputeVerdict
from veritrain.transcript.record import check_equal


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The open question."""

    round: Round
    message: Message
    signed: bytes

    @property
    def question(self) -> Question:
        return self.round.question


class DisputeState:
    """One dispute. A state and what comes in give the next state:

    =====================  ========================================  ===========================
    question that is open  what comes in                             next
    =====================  ========================================  ===========================
    leaf, of the trainer   the challenger's own leaf                 over: the challenger loses
    leaf, of the trainer   another one                               leaf, or trace
    leaf                   both; more than one step between          leaf
    leaf                   both; the first different step is known   trace, or over: no chain
    trace                  both, equal                               detail, or over: ruling
    trace                  both, different                           operator
    operator               both; more than one entry between         operator
    operator               both; the first different entry is known  detail, or over
    detail                 of all who are asked                      detail, or over: ruling
    any                    the first of two answers                  the same
    any                    a fault, or a resignation                 over: that party loses
    any                    `expire`                                  over: who is silent loses
    any                    signed by no party; of another dispute    the same
    any                    a message that was taken before           the same
    over                   anything                                  over
    =====================  ========================================  ===========================

    A *fault* is a message that a party signed and that no honest party signs: see `_checked`. The
    first one ends the dispute. So both parties lose only by one event: a deadline that both miss, a
    chain that both break, or a ruling.
    """

    def __init__(self, *, terms: DisputeTerms, signer: Signs, judge: Judge) -> None:
        """Open the dispute of these terms."""
        self._terms = terms
        self._signer = signer
        self._game = Game(terms, judge)
        self._play = self._game.play()
        self._asked: _Asked | None = None
        self._answers: dict[Role, object] = {}
        self._taken: dict[tuple[Role, int], bytes] = {}  # messages by sender and number
        self._questions: list[bytes] = []  # signatures
        self._events: list[Event] = []
        self._bytes = 0
        self._verdict: DisputeVerdict | None = None
        self._keep(terms.challenge, 0)
        self._ask(next(self._play))

    @property
    def terms(self) -> DisputeTerms:
        """Who is against whom over what."""
        return self._terms

    @property
    def verdict(self) -> DisputeVerdict | None:
        """How it ended; None before."""
        return self._verdict

    @property
    def number(self) -> int:
        """Of the last question."""
        return len(self._questions)

    @property
    def asked(self) -> Question | None:
        """The open question; None when it is over."""
        return None if self._asked is None else self._asked.question

    @property
    def answer_bytes(self) -> int:
        """The most bytes that an answer to the open question can have; 0 when it is over."""
        return 0 if self._asked is None else self._asked.question.topic.answer_bytes

    @property
    def evidence(self) -> DisputeEvidence:
        """All that counted so far."""
        return DisputeEvidence(
            referee=self._signer.public_key,
            questions=tuple(self._questions),
            events=tuple(self._events),
        )

    def question(self, role: Role) -> bytes | None:
        """The signed question that `role` has not answered yet."""
        if self._asked is None or role in self._answers or role not in self._asked.question.of:
            return None
        return self._asked.signed

    def receive(self, data: bytes) -> None:
        """Take bytes that somebody sent. Those that no party signed have no effect."""
        if self._asked is None:
            return
        try:
            message = self._terms.from_party(data, limit=self.answer_bytes)
        except (TranscriptError, VerificationError):
            return
        self.take(message)

    def take(self, message: PartyMessage) -> None:
        """Take a message of a party."""
        asked, role = self._asked, message.role
        if asked is None or len(message.data) > self.answer_bytes:
            return
        if message.signed.message in self._taken.values():  # a repetition
            return
        number = None
        try:
            opened = message.signed.opened(Message, where="signed bytes")
            if opened.dispute != self._terms.dispute:
                return
            number = opened.number
            answer = self._checked(asked, role, opened)
        except VeritrainError as error:
            self._keep(message, number)
            which = "a message" if number is None else f"message {number}"
            reason = f"{which} of the {role.value}: {error}"
            self._end(Ruling(loser=Loser.of(role), reason=reason), timed_out=False)
            return
        self._keep(message, number)
        self._answers[role] = answer
        if len(self._answers) == len(asked.question.of):
            self._continue(tuple(self._answers[role] for role in asked.question.of))

    def expire(self) -> None:
        """End the open question as its deadline does: a party that has not answered it loses.

        Raises:
            UsageError: no question is open.
        """
        if self._asked is None:
            raise UsageError("no question is open")
        silent = [role for role in self._asked.question.of if role not in self._answers]
        self._events.append(self.number)
        whose = " and ".join(role.value for role in silent)
        self._end(
            Ruling(
                loser=Loser.of(*silent),
                reason=f"question {self.number}: no answer of the {whose} in time",
            ),
            timed_out=True,
        )

    def _checked(self, asked: _Asked, role: Role, message: Message) -> object:
        """What a message of this dispute says, signed by `role` and not taken before.

        Raises:
            VeritrainError: a fault of `role`: no honest party signs this.
        """
        # 1. One message for each number.
        if (role, message.number) in self._taken:
            raise VerificationError("there are two different ones with this number")
        # 2. By who it says, about the run.
        if message.sender is not role:
            raise VerificationError(f"sent as the {message.sender.value}")
        check_equal("run", self._terms.run, message.run)
        # 3. To the open question, by who is asked.
        if message.number != self.number or role not in asked.question.of:
            raise VerificationError("there is no such question")
        contents = {
            MessageKind.ANSWER: asked.question.topic.answer,
            MessageKind.RESIGN: Resignation,
        }
        if message.kind not in contents:
            raise VerificationError(f"expected an answer, got a {message.kind.value}")
        question, content = read_reply(message.body, contents[message.kind])
        check_equal("question", asked.message.digest, question)
        # 4. With something that an honest party could say.
        if message.kind is MessageKind.RESIGN:
            raise VerificationError("resigned")
        return asked.round.read(role, content)

    def _keep(self, message: PartyMessage, number: int | None) -> None:
        self._events.append(message.data)
        self._bytes += len(message.data)
        if number is not None:
            self._taken.setdefault((message.role, number), message.signed.message)

    def _continue(self, answers: Sequence[object]) -> None:
        try:
            round_ = self._play.send(tuple(answers))
        except StopIteration as stop:
            self._end(stop.value, timed_out=False)
        else:
            self._ask(round_)

    def _ask(self, round_: Round) -> None:
        message = Message(
            run=self._terms.run,
            dispute=self._terms.dispute,
            sender=Role.REFEREE,
            number=self.number + 1,
            kind=MessageKind.QUESTION,
            body=round_.question.to_value(),
        )
        signed = message.signed(self._signer)
        data = signed.to_bytes()
        self._questions.append(signed.signature)
        self._bytes += len(data)
        self._answers = {}
        self._asked = _Asked(round=round_, message=message, signed=data)

    def _end(self, ruling: Ruling, *, timed_out: bool) -> None:
        self._asked = None
        self._verdict = DisputeVerdict(
            loser=ruling.loser,
            reason=_plain(ruling.reason),
            timed_out=timed_out,
            run=self._terms.run,
            dispute=self._terms.dispute,
            root=self._terms.head.root,
            step=self._game.step,
            index=self._game.index,
            rounds=self.number,
            messages=self.number + sum(isinstance(event, bytes) for event in self._events),
            bytes=self._bytes,
            evidence=self.evidence.digest,
        )


def _plain(reason: str) -> str:
    """One line of ASCII: parts of a reason can stem from a party."""
    text = reason.encode("ascii", "backslashreplace").decode()
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return line[: LIMITS.reason_chars] or "no reason given"
