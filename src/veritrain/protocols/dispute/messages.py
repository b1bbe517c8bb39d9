"""The envelope of a dispute, and the typed bodies of its questions and answers.

An object of these classes is well formed. Whether the claim that it makes is true, the game and
the judge decide.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from veritrain.encoding import Digest, Value, encode
from veritrain.errors import UsageError
from veritrain.parties.envelope import Envelope, Slot
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.replay.trace.entry import MAX_ENTRIES, TraceEntry
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP


class Role(Enum):
    """The part that somebody has in a dispute."""

    TRAINER = "trainer"
    CHALLENGER = "challenger"
    REFEREE = "referee"


PARTIES = (Role.TRAINER, Role.CHALLENGER)  # wherever there are two of something, in this order


_T = TypeVar("_T")


def by_party(pair: tuple[_T, _T]) -> tuple[tuple[Role, _T], tuple[Role, _T]]:
    """The trainer's and the challenger's of a pair, each with its role."""
    return (Role.TRAINER, pair[0]), (Role.CHALLENGER, pair[1])


class MessageKind(Enum):
    """What a message is for."""

    CHALLENGE = "challenge"
    QUESTION = "question"
    ANSWER = "answer"
    RESIGN = "resign"


_Member = TypeVar("_Member", bound=Enum)


@dataclass(frozen=True, kw_only=True)
class Message(Envelope):
    """The envelope of a dispute. Its signature alone says who sent it, `sender` is a claim."""

    type_name: ClassVar[str] = "dispute message"
    max_bytes: ClassVar[int] = LIMITS.detail_bytes
    max_items: ClassVar[int | None] = LIMITS.message_items

    run: Digest
    dispute: Digest
    sender: Role
    number: int  # of the question; 0: the challenge
    kind: MessageKind
    body: dict[str, Value]

    def __post_init__(self) -> None:
        check.check_digest("run", self.run)
        check.check_digest("dispute", self.dispute)
        check.check_integer("number", self.number, 0, LIMITS.number)
        if type(self.body) is not dict:
            raise check.wrong("body", "a map", self.body)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {**super().to_value(), "sender": self.sender.value, "kind": self.kind.value}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        taken["sender"] = _member(Role, "sender", taken["sender"])
        taken["kind"] = _member(MessageKind, "kind", taken["kind"])
        return cls(**taken)

    @property
    def slot(self) -> Slot:
        """See `Envelope.slot`: one message of each sender for each question."""
        return Slot(context=self.dispute, sender=self.sender.value, number=self.number)


@dataclass(frozen=True, kw_only=True)
class Body:
    """Typed content of a message: a map with exactly these fields."""

    def to_value(self) -> dict[str, Value]:
        """The content as a map of its fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """The content of a decoded map, which another party wrote.

        Raises:
            FieldError: not a map, or a field is missing, unknown or wrong.
        """
        with check.hostile_fields():
            return cls(**cls._take(value))

    @classmethod
    def _take(cls, value: Value) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise check.wrong("body", "a map", value)
        check.check_names(cls.__name__, value, [field.name for field in fields(cls)])
        return dict(value)


@dataclass(frozen=True, kw_only=True)
class Opening(Body):
    """One entry of a list that someone committed to, with its inclusion proof."""

    entry: bytes
    proof: tuple[Digest, ...]

    def __post_init__(self) -> None:
        if type(self.entry) is not bytes or len(self.entry) > TraceEntry.max_bytes:
            raise check.wrong("entry", f"at most {TraceEntry.max_bytes} bytes", self.entry)
        if type(self.proof) is not tuple or len(self.proof) > LIMITS.proof_nodes:
            raise check.wrong("proof", f"at most {LIMITS.proof_nodes} digests", self.proof)
        for node in self.proof:
            check.check_digest("proof", node)

    def to_value(self) -> dict[str, Value]:
        """The content as a map of its fields."""
        return {**super().to_value(), "proof": list(self.proof)}

    @classmethod
    def _take(cls, value: Value) -> dict[str, Any]:
        taken = super()._take(value)
        proof = taken["proof"]
        return {**taken, "proof": tuple(proof) if isinstance(proof, list) else proof}


@dataclass(frozen=True, kw_only=True)
class TraceClaim(Opening):
    """A commitment to a trace, with its last entry opened."""

    size: int
    root: Digest

    def __post_init__(self) -> None:
        super().__post_init__()
        check.check_integer("size", self.size, 1, MAX_ENTRIES)
        check.check_digest("root", self.root)


@dataclass(frozen=True, kw_only=True)
class Detail(Body):
    """What the judge wanted opened."""

    detail: Value


@dataclass(frozen=True, kw_only=True)
class Resignation(Body):
    """Nothing: a party that resigns says no more."""


@dataclass(frozen=True, kw_only=True)
class LeafAt(Body):
    """Asks for leaf `index` of the run, as the party claims it."""

    ask: ClassVar[str] = "leaf"
    answer: ClassVar[type[Body]] = Opening
    answer_bytes: ClassVar[int] = LIMITS.leaf_bytes
    needs_replay: ClassVar[bool] = False

    index: int

    def __post_init__(self) -> None:
        check.check_integer("index", self.index, 0, MAX_STEP)


@dataclass(frozen=True, kw_only=True)
class TraceOf(Body):
    """Asks for a commitment to the trace of a step."""

    ask: ClassVar[str] = "trace"
    answer: ClassVar[type[Body]] = TraceClaim
    answer_bytes: ClassVar[int] = LIMITS.entry_bytes
    needs_replay: ClassVar[bool] = True

    step: int

    def __post_init__(self) -> None:
        check.check_integer("step", self.step, 0, MAX_STEP)


@dataclass(frozen=True, kw_only=True)
class OperatorAt(Body):
    """Asks for entry `index` of the trace of a step."""

    ask: ClassVar[str] = "operator"
    answer: ClassVar[type[Body]] = Opening
    answer_bytes: ClassVar[int] = LIMITS.entry_bytes
    needs_replay: ClassVar[bool] = False

    step: int
    index: int

    def __post_init__(self) -> None:
        check.check_integer("step", self.step, 0, MAX_STEP)
        check.check_integer("index", self.index, 0, MAX_ENTRIES - 1)


@dataclass(frozen=True, kw_only=True)
class DetailOf(OperatorAt):
    """Asks for what the judge needs to see of an entry."""

    ask: ClassVar[str] = "detail"
    answer: ClassVar[type[Body]] = Detail
    answer_bytes: ClassVar[int] = LIMITS.detail_bytes
    needs_replay: ClassVar[bool] = True

    what: Value

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            size = len(encode(self.what))
        except (TypeError, ValueError) as error:
            raise UsageError(f"field what: {error}") from error
        if size > LIMITS.what_bytes:
            raise UsageError(f"field what: expected at most {LIMITS.what_bytes} bytes, got {size}")


Topic: TypeAlias = LeafAt | TraceOf | OperatorAt | DetailOf
_TOPICS: dict[str, type[Topic]] = {
    topic.ask: topic for topic in (LeafAt, TraceOf, OperatorAt, DetailOf)
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """The body of a question: what is asked, and of whom."""

    of: tuple[Role, ...]
    topic: Topic

    def __post_init__(self) -> None:
        if not self.of or self.of != tuple(role for role in PARTIES if role in self.of):
            raise check.wrong("of", "one or both parties, the trainer first", self.of)

    def to_value(self) -> dict[str, Value]:
        """The question as a map."""
        of: list[Value] = [role.value for role in self.of]
        return {"ask": self.topic.ask, "of": of, **self.topic.to_value()}

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """The question of a decoded map, which a referee wrote.

        Raises:
            FieldError: not a map, or a field is missing, unknown or wrong.
        """
        with check.hostile_fields():
            if not isinstance(value, dict):
                raise check.wrong("body", "a map", value)
            ask, of = value.get("ask"), value.get("of")
            topic = _TOPICS.get(ask) if isinstance(ask, str) else None
            if topic is None:
                raise check.wrong("ask", f"one of {', '.join(_TOPICS)}", ask)
            if not isinstance(of, list) or len(of) > len(PARTIES):
                raise check.wrong("of", "one or both parties", of)
            rest: Value = {name: item for name, item in value.items() if name not in ("ask", "of")}
            roles = tuple(_member(Role, "of", role) for role in of)
            return cls(of=roles, topic=topic.from_value(rest))


_Content = TypeVar("_Content", bound=Body)


def reply_body(question: Digest, content: Body) -> dict[str, Value]:
    """The body of an answer or a resignation; `question` is the digest of the question's message,
    so that an answer cannot pass for one to another question."""
    return {"question": question, **content.to_value()}


def read_reply(body: dict[str, Value], content: type[_Content]) -> tuple[Digest, _Content]:
    """The digest of the question and the content that `reply_body` joined.

    Raises:
        FieldError: a field is missing, unknown or wrong.
    """
    question = body.get("question")
    with check.hostile_fields():
        if not isinstance(question, bytes):
            raise check.wrong("question", "a digest", question)
        check.check_digest("question", question)
    rest: Value = {name: item for name, item in body.items() if name != "question"}
    return question, content.from_value(rest)


def _member(kind: type[_Member], name: str, value: Value) -> _Member:
    for member in kind:
        if type(value) is str and member.value == value:
            return member
    raise check.wrong(name, f"one of {', '.join(member.value for member in kind)}", value)
