"""A party of one dispute, trainer or challenger: it answers the referee's questions, each once.

An answer goes through the party's journal before it leaves this module. So a question has the same
answer for ever, in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from veritrain.encoding import Value
from veritrain.errors import FieldError, TranscriptError, UsageError, VerificationError
from veritrain.parties.envelope import SignedEnvelope, Signs
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.challenge import DisputeTerms
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import (
    Body,
    Detail,
    DetailOf,
    LeafAt,
    Message,
    MessageKind,
    Opening,
    OperatorAt,
    Question,
    Resignation,
    Role,
    Topic,
    TraceClaim,
    TraceOf,
    reply_body,
)
from veritrain.transcript.record import check_equal


class Claims(Protocol):
    """What a party holds to be true, and can open. Equal calls have equal results.

    The trainer's leaves are those under the challenged head, with proofs for its size. The
    challenger's leaves are those of its challenge. An exception leaves the question unanswered.
    """

    def leaf(self, index: int) -> Opening:
        """Leaf `index` of the run."""
        ...

    def trace(self, step: int) -> TraceClaim:
        """The commitment to the trace of a step."""
        ...

    def operator(self, step: int, index: int) -> Opening:
        """Entry `index` of the trace of a step."""
        ...

    def detail(self, step: int, index: int, what: Value) -> Value:
        """What a judge wants opened of that entry."""
        ...


@dataclass(frozen=True, kw_only=True)
class OpenedQuestion:
    """A question that the referee of a dispute signed."""

    signed: SignedEnvelope
    message: Message
    question: Question


def open_question(signed: SignedEnvelope, message: Message, terms: DisputeTerms) -> OpenedQuestion:
    """Check a question of the dispute of these terms. `message` was read from `signed`.

    Raises:
        TranscriptError: malformed fields.
        VerificationError: not a question of the referee in this dispute.
    """
    signed.verify(terms.key(Role.REFEREE), Message.type_name)
    check_equal("run of the question", terms.run, message.run)
    check_equal("dispute of the question", terms.dispute, message.dispute)
    if (message.sender, message.kind) != (Role.REFEREE, MessageKind.QUESTION):
        raise VerificationError(f"expected a question, got a {message.kind.value}")
    if message.number == 0:  # the slot of the challenge, for which the challenger has signed
        raise VerificationError("a question with the number of the challenge")
    try:
        question = Question.from_value(message.body)
    except FieldError as error:
        raise TranscriptError("question", str(error)) from None
    return OpenedQuestion(signed=signed, message=message, question=question)


class DisputeParty:
    """One side of a dispute: trainer or challenger."""

    def __init__(
        self,
        *,
        role: Role,
        signer: Signs,
        terms: DisputeTerms,
        claims: Claims,
        journal: Journal,
    ) -> None:
        """One side of the dispute that `open_challenge` opened.

        Args:
            journal: of this party in this dispute.

        Raises:
            UsageError: this is not the key of `role` in the dispute.
        """
        if terms.key(role) != signer.public_key:
            raise UsageError(f"the key is not the {role.value}'s")
        self._role = role
        self._signer = signer
        self._terms = terms
        self._claims = claims
        self._journal = journal

    def answer(self, question: bytes) -> bytes:
        """The signed answer to a signed question.

        Raises:
            TranscriptError: malformed bytes.
            FieldError: the question asks for something that is not there.
            EquivocationError: the referee signed another question with this number.
            VerificationError: not a question of this referee to this party in this dispute, one
                that comes after a later one, or claims that are not about the challenged head.
            UsageError: the answer, not a detail, is more than a referee takes. Nothing was signed
                for good.
        """
        return self.answer_opened(self._opened(question))

    def answer_opened(self, asked: OpenedQuestion) -> bytes:
        """The signed answer to a question that was opened before; errors are those of `answer`."""
        return self._reply(asked, lambda: self._content(asked.question.topic))

    def resign(self, question: bytes) -> bytes:
        """Give up instead of answering. A question that was answered keeps its answer.

        Raises:
            TranscriptError, VerificationError: see `answer`.
        """
        return self._reply(self._opened(question), Resignation)

    def _opened(self, data: bytes) -> OpenedQuestion:
        signed = SignedEnvelope.read(data, limit=LIMITS.question_bytes, where="question")
        return open_question(signed, signed.opened(Message, where="question"), self._terms)

    def _reply(self, asked: OpenedQuestion, content: Callable[[], Body]) -> bytes:
        number, topic = asked.message.number, asked.question.topic
        if self._role not in asked.question.of:
            raise VerificationError(f"question {number} is not for the {self._role.value}")
        return self._journal.sign_once(
            number, asked.signed, lambda: self._readable(asked.message, topic, content())
        )

    def _readable(self, asked: Message, topic: Topic, content: Body) -> bytes:
        """The signed answer; null for a detail that is more than a referee takes."""
        try:
            answer = self._signed(asked, content)
            _require_readable(answer, topic.answer_bytes)
        except UsageError:
            if not isinstance(content, Detail):
                raise
            return self._signed(asked, Detail(detail=None))
        return answer

    def _signed(self, asked: Message, content: Body) -> bytes:
        answer = Message(
            run=self._terms.run,
            dispute=self._terms.dispute,
            sender=self._role,
            number=asked.number,
            kind=MessageKind.RESIGN if isinstance(content, Resignation) else MessageKind.ANSWER,
            body=reply_body(asked.digest, content),
        )
        return answer.signed(self._signer).to_bytes()

    def _content(self, topic: Topic) -> Body:
        match topic:
            case LeafAt():
                leaves = self._terms.leaves[self._role]
                if topic.index >= leaves.size:
                    raise FieldError(f"question: leaf {topic.index} of {leaves.size}")
                opening = self._claims.leaf(topic.index)
                leaves.leaf(topic.index, opening)
                return opening
            case TraceOf():
                return self._claims.trace(topic.step)
            case DetailOf():  # before its base
                detail = self._claims.detail(topic.step, topic.index, topic.what)
                return Detail(detail=detail)
            case OperatorAt():
                return self._claims.operator(topic.step, topic.index)


def _require_readable(answer: bytes, limit: int) -> None:
    """Check an own answer as the referee reads it: it takes an unreadable one for a fault."""
    where = "own answer"
    try:
        SignedEnvelope.read(answer, limit=limit, where=where).opened(Message, where=where)
    except TranscriptError as error:
        raise UsageError(str(error)) from None
