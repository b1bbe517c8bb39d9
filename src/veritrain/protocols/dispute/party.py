"""A party of one dispute, trainer or challenger: answers the referee's questions, each once.

Two different answers with one number convict whoever signed them, even by mistake. So an answer is
put into a store before it leaves this module, and the same question has the same bytes for ever.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Protocol

from veritrain.encoding import Value
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.protocols.dispute.challenge import Contest
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import (
    Body,
    Detail,
    DetailOf,
    Kind,
    LeafAt,
    Message,
    Opening,
    OperatorAt,
    Question,
    Resignation,
    Role,
    SignedMessage,
    Signs,
    Topic,
    TraceClaim,
    TraceOf,
    reply_body,
)
from veritrain.transcript.record import check_equal


class Claims(Protocol):
    """What a party holds to be true, and can open. Each call for the same gives the same.

    The trainer's leaves are those under the challenged head, with proofs for its size; the
    challenger's those of its challenge. An exception leaves the question unanswered.
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
class Reply:
    """A question and the answer to it, both signed."""

    question: bytes
    answer: bytes


class Party:
    """Answers questions.

    Attributes:
        conflicts: pairs of different questions that the referee signed with one number: proof
            against it, see `check_equivocation`.
    """

    def __init__(
        self,
        *,
        role: Role,
        signer: Signs,
        contest: Contest,
        claims: Claims,
        replies: MutableMapping[int, Reply],
    ) -> None:
        """One side of the dispute that `open_challenge` opened.

        Args:
            replies: what was answered before, by number. An entry must be durable when its
                assignment returns; whoever starts again hands in the same. A dict will do for a
                party that never starts again.

        Raises:
            UsageError: this is not the key of `role` in the dispute.
        """
        if contest.keys[role] != signer.public_key:
            raise UsageError(f"the key is not the {role.value}'s")
        self._role = role
        self._signer = signer
        self._contest = contest
        self._claims = claims
        self._replies = replies
        self.conflicts: list[tuple[bytes, bytes]] = []

    def answer(self, question: bytes) -> bytes:
        """The signed answer to a signed question.

        Raises:
            TranscriptError: malformed bytes.
            VerificationError: not a question of this referee to this party in this dispute, one
                with a number that another question had, or claims that are not about the
                challenged head.
            UsageError: the answer, not a detail, is more than a referee takes; nothing was signed for good.
        """
        return self._reply(question, resign=False)

    def resign(self, question: bytes) -> bytes:
        """Give up instead of answering; where the question was answered, the answer stays.

        Raises:
            TranscriptError, VerificationError: see `answer`.
        """
        return self._reply(question, resign=True)

    def _reply(self, data: bytes, *, resign: bool) -> bytes:
        signed = SignedMessage.read(data, limit=LIMITS.question_bytes, where="question")
        message, question = self._checked(signed)
        earlier = self._replies.get(message.number)
        if earlier is not None:
            self._require_same(earlier, data, signed)
            return earlier.answer
        if message.number <= max(self._replies, default=0):
            raise VerificationError(f"question {message.number} comes after a later one")
        content = Resignation() if resign else self._content(question.topic)
        reply = Reply(question=data, answer=self._readable(message, question.topic, content))
        self._replies[message.number] = reply
        return reply.answer

    def _checked(self, signed: SignedMessage) -> tuple[Message, Question]:
        signed.verify(self._contest.keys[Role.REFEREE])
        message = signed.opened(where="question")
        check_equal("run of the question", self._contest.run, message.run)
        check_equal("dispute of the question", self._contest.dispute, message.dispute)
        if (message.sender, message.kind) != (Role.REFEREE, Kind.QUESTION):
            raise VerificationError(f"expected a question, got a {message.kind.value}")
        question = Question.from_value(message.body)
        if self._role not in question.of:
            raise VerificationError(f"question {message.number} is not for the {self._role.value}")
        return message, question

    def _require_same(self, earlier: Reply, data: bytes, signed: SignedMessage) -> None:
        before = SignedMessage.from_bytes(earlier.question, where="stored question")
        if before.message != signed.message:
            self.conflicts.append((earlier.question, data))
            raise VerificationError("the referee signed two different questions with one number")

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
            run=self._contest.run,
            dispute=self._contest.dispute,
            sender=self._role,
            number=asked.number,
            kind=Kind.RESIGN if isinstance(content, Resignation) else Kind.ANSWER,
            body=reply_body(asked.digest, content),
        )
        return answer.signed(self._signer).to_bytes()

    def _content(self, topic: Topic) -> Body:
        match topic:
            case LeafAt():
                opening = self._claims.leaf(topic.index)
                self._contest.leaves[self._role].leaf(topic.index, opening)
                return opening
            case TraceOf():
                return self._claims.trace(topic.step)
            case DetailOf():  # before its base
                detail = self._claims.detail(topic.step, topic.index, topic.what)
                return Detail(detail=detail)
            case OperatorAt():
                return self._claims.operator(topic.step, topic.index)


def _require_readable(answer: bytes, limit: int) -> None:
    """The referee takes what it cannot read for a fault."""
    where = "own answer"
    try:
        SignedMessage.read(answer, limit=limit, where=where).opened(where=where)
    except TranscriptError as error:
        raise UsageError(str(error)) from None
