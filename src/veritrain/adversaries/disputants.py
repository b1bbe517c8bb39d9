"""Parties of a dispute who cheat: in the claims that they make, and in the messages that they send.

They attack at the boundary. `AlteredTrace` and its changes wrap the claims of an honest
`DisputeParty`; the functions below wrap what it sends. An adversary signs with the party's own key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from veritrain.encoding import Digest, Value
from veritrain.parties.envelope import SignedEnvelope
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.messages import (
    Message,
    MessageKind,
    Opening,
    TraceClaim,
)
from veritrain.protocols.dispute.party import Claims, DisputeParty
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.signing import Signer

Trace: TypeAlias = list[TraceEntry]
Change: TypeAlias = Callable[[Trace], Trace]
Disputant: TypeAlias = Callable[[bytes], list[bytes]]  # from a question to what is sent


class AlteredTrace:
    """Claims with another trace of every step; leaves and details stay."""

    def __init__(self, claims: Claims, change: Change) -> None:
        self._claims = claims
        self._change = change
        self._altered: dict[int, Entries] = {}

    def leaf(self, index: int) -> Opening:
        return self._claims.leaf(index)

    def trace(self, step: int) -> TraceClaim:
        return self._entries(step).claim()

    def operator(self, step: int, index: int) -> Opening:
        return self._entries(step).opening(index)

    def detail(self, step: int, index: int, what: Value) -> Value:
        return self._claims.detail(step, index, what)

    def _entries(self, step: int) -> Entries:
        if step not in self._altered:
            size = self._claims.trace(step).size
            openings = [self._claims.operator(step, index) for index in range(size)]
            honest = [TraceEntry.from_bytes(one.entry, where="own trace") for one in openings]
            self._altered[step] = Entries([entry.to_bytes() for entry in self._change(honest)])
        return self._altered[step]


class FalseDetail:
    """Claims that open something else than was asked for."""

    def __init__(self, claims: Claims, detail: Value) -> None:
        self._claims = claims
        self._detail = detail
        self.leaf, self.trace, self.operator = claims.leaf, claims.trace, claims.operator

    def detail(self, step: int, index: int, what: Value) -> Value:
        return self._detail


def chained(trace: Trace) -> Trace:
    """The same entries, numbered and linked anew from the first one's `previous`."""
    previous: Digest = trace[0].previous
    linked: Trace = []
    for index, entry in enumerate(trace):
        final = index == len(trace) - 1
        linked.append(replace(entry, index=index, previous=previous, final=final))
        previous = linked[-1].digest
    return linked


def alter_body(at: int, body: dict[str, Value]) -> Change:
    """Says something else happened at one place; what comes after is linked to that."""

    def change(trace: Trace) -> Trace:
        place = at % len(trace)
        return chained([*trace[:place], replace(trace[place], body=body), *trace[place + 1 :]])

    return change


def break_link(at: int) -> Change:
    """One entry does not follow the one before; those after it follow it."""

    def change(trace: Trace) -> Trace:
        place = at % len(trace)
        linked = [*trace[:place], replace(trace[place], previous=bytes(32))]
        for entry in trace[place + 1 :]:
            linked.append(replace(entry, previous=linked[-1].digest))
        return linked

    return change


def shorten(by: int) -> Change:
    """Ends the trace early, at its first entry at the earliest."""
    return lambda trace: chained(trace[: max(1, len(trace) - by)])


def lengthen(by: int) -> Change:
    """Goes on after the end."""
    return lambda trace: chained([*trace, *trace[-1:] * by])


def misnumber(at: int) -> Change:
    """One entry has another's number."""
    return lambda trace: [
        replace(entry, index=entry.index + (entry.index == at % len(trace))) for entry in trace
    ]


def end_twice(at: int) -> Change:
    """One entry says the opposite of the truth about being the last one."""
    return lambda trace: [
        replace(entry, final=entry.final != (entry.index == at % len(trace))) for entry in trace
    ]


def honest(party: DisputeParty) -> Disputant:
    """Sends the answer."""
    return lambda question: [party.answer(question)]


def from_question(number: int, before: Disputant, after: Disputant) -> Disputant:
    """One behaviour up to a question, another from it on."""

    def send(question: bytes) -> list[bytes]:
        return (after if message_in(question).number >= number else before)(question)

    return send


def silent(_: bytes) -> list[bytes]:
    """Sends nothing."""
    return []


def garbage(data: bytes) -> Disputant:
    """Sends bytes that are no message."""
    return lambda _: [data]


def signed_garbage(signer: Signer, data: bytes) -> Disputant:
    """Signs bytes that are no message."""
    signature = signer.sign(Message.type_name, data)
    return lambda _: [SignedEnvelope(message=data, signature=signature).to_bytes()]


def resigning(party: DisputeParty) -> Disputant:
    """Gives up."""
    return lambda question: [party.resign(question)]


def replaying(party: DisputeParty) -> Disputant:
    """Sends its first answer again, whatever it is asked."""
    sent: list[bytes] = []

    def send(question: bytes) -> list[bytes]:
        sent.append(party.answer(question))
        return sent[:1]

    return send


@dataclass(frozen=True)
class Altered:
    """Sends its answer with a change, properly signed; with `also`, the true answer before it."""

    party: DisputeParty
    signer: Signer
    change: Callable[[Message], Message]
    also: bool = False

    def __call__(self, question: bytes) -> list[bytes]:
        true = self.party.answer(question)
        false = self.change(message_in(true)).signed(self.signer).to_bytes()
        return [true, false] if self.also else [false]


def wrong_proof(message: Message) -> Message:
    """One node more than there is."""
    proof = message.body.get("proof")
    extended: list[Value] = [*(proof if isinstance(proof, list) else []), bytes(32)]
    return replace(message, body={**message.body, "proof": extended})


def wrong_size(message: Message) -> Message:
    """A tree of another size: a trace's, else a field that should not be there."""
    size = message.body.get("size")
    return replace(message, body={**message.body, "size": size + 1 if isinstance(size, int) else 1})


def wrong_number(message: Message) -> Message:
    """An answer to a question that was not asked yet."""
    return replace(message, number=message.number + 1)


def wrong_question(message: Message) -> Message:
    """An answer to another question of that number."""
    return replace(message, body={**message.body, "question": bytes(32)})


def wrong_kind(message: Message) -> Message:
    """A question, as only the referee asks them."""
    return replace(message, kind=MessageKind.QUESTION)


def other_dispute(message: Message) -> Message:
    """A message of a dispute that nobody has; it counts for nothing here."""
    return replace(message, dispute=bytes(32))


def other_content(message: Message) -> Message:
    """An answer without content."""
    question = message.body["question"]
    return replace(message, body={"question": question})


def message_in(signed: bytes) -> Message:
    """The message in signed bytes."""
    return SignedEnvelope.from_bytes(signed, where="own message").opened(
        Message, where="own message"
    )
