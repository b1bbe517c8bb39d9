"""The verdict of a dispute, as an in-toto statement that the referee signs in a DSSE envelope.

in-toto Statement v1 and DSSE are formats that supply-chain tools read. `seal` writes one byte form,
and `unseal` reads that form alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NoReturn

from veritrain.encoding import DIGEST_BYTES, Digest
from veritrain.errors import TranscriptError, UsageError
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.judge import Loser
from veritrain.replay.trace.entry import MAX_ENTRIES
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP
from veritrain.transcript.signing import Signer, fingerprint, verify_dsse

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:veritrain:dispute-verdict:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_WHERE = "verdict"


class Conclusion(Enum):
    """What a dispute says of the run."""

    REJECTED = "rejected"  # the trainer loses: the run is not what it claims
    REFUTED = "challenge refuted"  # this challenge failed; the run is not accepted by that
    INCONCLUSIVE = "inconclusive"


_CONCLUSIONS = {
    Loser.TRAINER: Conclusion.REJECTED,
    Loser.BOTH: Conclusion.REJECTED,
    Loser.CHALLENGER: Conclusion.REFUTED,
    Loser.NONE: Conclusion.INCONCLUSIVE,
}


@dataclass(frozen=True, kw_only=True)
class DisputeVerdict:
    """How a dispute ended.

    Attributes:
        reason: for people, one line.
        timed_out: it ended by a deadline. That is the referee's word; nobody can check it.
        run, dispute: which.
        root: Merkle root of the leaves that the challenged head covers.
        step, index: the first step, and the first entry of its trace, in which the parties differ;
            None where the dispute ended before that was known, or where the traces are equal.
        rounds: questions asked.
        messages, bytes: signed messages sent and kept, by all three.
        evidence: digest of the evidence.
    """

    loser: Loser
    reason: str
    timed_out: bool
    run: Digest
    dispute: Digest
    root: Digest
    step: int | None
    index: int | None
    rounds: int
    messages: int
    bytes: int
    evidence: Digest

    def __post_init__(self) -> None:
        if type(self.loser) is not Loser:
            raise check.wrong("loser", "a loser", self.loser)
        check.check_text("reason", self.reason, LIMITS.reason_chars)
        if type(self.timed_out) is not bool:
            raise check.wrong("timed_out", "true or false", self.timed_out)
        for name in ("run", "dispute", "root", "evidence"):
            check.check_digest(name, getattr(self, name))
        if self.step is not None:
            check.check_integer("step", self.step, 0, MAX_STEP)
        if self.index is not None:
            check.check_integer("index", self.index, 0, MAX_ENTRIES - 1)
        for name in ("rounds", "messages", "bytes"):
            check.check_integer(name, getattr(self, name), 0, 2**53)

    def __bool__(self) -> NoReturn:
        raise TypeError("a verdict has no truth value; use .conclusion")

    @property
    def conclusion(self) -> Conclusion:
        """What the dispute says of the run."""
        return _CONCLUSIONS[self.loser]

    def to_json(self) -> bytes:
        """The statement."""
        predicate = {
            "conclusion": self.conclusion.value,
            "loser": self.loser.value,
            "reason": self.reason,
            "timedOut": self.timed_out,
            "dispute": self.dispute.hex(),
            "step": self.step,
            "index": self.index,
            "rounds": self.rounds,
            "messages": self.messages,
            "bytes": self.bytes,
            "evidence": {"veritrainEvidence": self.evidence.hex()},
        }
        subject = [
            {"name": "run", "digest": {"veritrainHeader": self.run.hex()}},
            {"name": "leaves", "digest": {"rfc9162Sha256Root": self.root.hex()}},
        ]
        return _render(
            {
                "_type": STATEMENT_TYPE,
                "subject": subject,
                "predicateType": PREDICATE_TYPE,
                "predicate": predicate,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> DisputeVerdict:
        """Read the statement that `to_json` wrote.

        Raises:
            TranscriptError: anything else.
        """
        value = _parse(data)
        try:
            verdict = _read(value)
        except (KeyError, IndexError, TypeError, ValueError, UsageError) as error:
            raise TranscriptError(_WHERE, f"not a statement of a verdict: {error}") from None
        if verdict.to_json() != data:  # so there is nothing in it that was not looked at
            raise TranscriptError(_WHERE, "not the one form of its statement")
        return verdict

    def seal(self, signer: Signer) -> bytes:
        """The statement in a DSSE envelope, signed by the referee."""
        payload = self.to_json()
        return _envelope(payload, signer.public_key, signer.sign_dsse(PAYLOAD_TYPE, payload))


def unseal(envelope: bytes, referee: bytes) -> DisputeVerdict:
    """The verdict that `referee` signed.

    Raises:
        TranscriptError: not an envelope as `DisputeVerdict.seal` writes it.
        VerificationError: not signed by that key.
    """
    value = _parse(envelope)
    try:
        payload, signature = _decoded(value["payload"]), _decoded(value["signatures"][0]["sig"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise TranscriptError(_WHERE, "not a DSSE envelope with one signature") from None
    verify_dsse(referee, PAYLOAD_TYPE, payload, signature)
    if _envelope(payload, referee, signature) != envelope:
        raise TranscriptError(_WHERE, "not the one form of its envelope")
    return DisputeVerdict.from_json(payload)


def _envelope(payload: bytes, public_key: bytes, signature: bytes) -> bytes:
    return _render(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"keyid": fingerprint(public_key), "sig": base64.b64encode(signature).decode()}
            ],
        }
    )


def _read(value: dict[str, Any]) -> DisputeVerdict:
    predicate, subject = value["predicate"], value["subject"]
    taken = {
        field.name: predicate[field.name]
        for field in fields(DisputeVerdict)
        if field.name in ("reason", "step", "index", "rounds", "messages", "bytes")
    }
    return DisputeVerdict(
        **taken,
        loser=Loser(predicate["loser"]),
        timed_out=predicate["timedOut"],
        run=_digest(subject[0]["digest"]["veritrainHeader"]),
        dispute=_digest(predicate["dispute"]),
        root=_digest(subject[1]["digest"]["rfc9162Sha256Root"]),
        evidence=_digest(predicate["evidence"]["veritrainEvidence"]),
    )


def _digest(text: Any) -> Digest:
    check.check_text("digest", text, 2 * DIGEST_BYTES)
    return bytes.fromhex(text)


def _decoded(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def _render(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _parse(data: bytes) -> dict[str, Any]:
    """A JSON object. Unknown fields, other spaces and other spellings are left to a comparison
    with the one form; what a parser could trip over is refused here."""
    if len(data) > LIMITS.verdict_bytes:
        raise TranscriptError(_WHERE, f"expected at most {LIMITS.verdict_bytes} bytes")
    try:
        value = json.loads(data.decode("ascii"), object_pairs_hook=_unique)
    except (ValueError, RecursionError, binascii.Error) as error:
        raise TranscriptError(_WHERE, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TranscriptError(_WHERE, "expected a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name twice")
    return value
