"""The challenge: one party's claim that a leaf of a signed run is false. It opens a dispute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritrain.encoding import Digest, digest_value
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.protocols.dispute.claims import Commitment, Entries
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import Kind, Message, Opening, Role, SignedMessage, Signs
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP, check_equal
from veritrain.transcript.records import PUBLIC_KEY_BYTES, Head, Header, Leaf, SignedHead
from veritrain.transcript.signing import verify_signature

NONCE_BYTES = 16
_DOMAIN = "dispute"
_WHERE = "challenge"


@dataclass(frozen=True, kw_only=True)
class Challenge(Opening):
    """The body: the run, the parties, and the challenger's own leaf t with its tree over 0 to t."""

    header: bytes
    head: bytes  # signed
    challenger: bytes  # public key
    referee: bytes  # public key
    nonce: bytes
    size: int  # t + 1
    root: Digest

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("header", "head"):
            if type(getattr(self, name)) is not bytes:
                raise check.wrong(name, "a byte string", getattr(self, name))
        check.check_bytes("challenger", self.challenger, PUBLIC_KEY_BYTES)
        check.check_bytes("referee", self.referee, PUBLIC_KEY_BYTES)
        check.check_bytes("nonce", self.nonce, NONCE_BYTES)
        check.check_integer("size", self.size, 1, MAX_STEP + 1)
        check.check_digest("root", self.root)

    @property
    def dispute(self) -> Digest:
        """What identifies the dispute."""
        return digest_value(_DOMAIN, self.to_value())


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What a valid challenge establishes: who is against whom, and over what."""

    dispute: Digest
    header: Header
    head: Head
    leaf: Leaf  # the challenger's, of the disputed step
    keys: Mapping[Role, bytes]
    leaves: Mapping[Role, Commitment]  # of both parties

    @property
    def run(self) -> Digest:
        """Digest of the header."""
        return self.header.digest


def make_challenge(
    *, signer: Signs, header: bytes, head: bytes, referee: bytes, nonce: bytes, leaves: Entries
) -> bytes:
    """The signed bytes of a challenge; the challenger's `leaves` 0 to t end with the disputed one.

    Raises:
        TranscriptError, VerificationError: a reader would not accept it.
        UsageError: a value is wrong, or the challenge too large.
    """
    claim = leaves.claim()
    challenge = Challenge(
        header=header,
        head=head,
        challenger=signer.public_key,
        referee=referee,
        nonce=nonce,
        size=claim.size,
        root=claim.root,
        entry=claim.entry,
        proof=claim.proof,
    )
    message = Message(
        run=Header.from_bytes(header, where="header").digest,
        dispute=challenge.dispute,
        sender=Role.CHALLENGER,
        number=0,
        kind=Kind.CHALLENGE,
        body=challenge.to_value(),
    )
    data = message.signed(signer).to_bytes()
    open_challenge(data, referee=referee)
    return data


def open_challenge(data: bytes, *, referee: bytes, run: Digest | None = None) -> Contest:
    """Check a challenge that someone sent to `referee`, about `run` if given.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: another referee or run, a wrong signature, or a claim without proof.
    """
    # 1. Well formed, and of the right kind.
    signed = SignedMessage.read(data, limit=LIMITS.challenge_bytes, where=_WHERE)
    message = signed.opened(where=_WHERE)
    if (message.kind, message.sender, message.number) != (Kind.CHALLENGE, Role.CHALLENGER, 0):
        raise VerificationError(
            f"challenge: got a {message.kind.value} of the {message.sender.value}"
        )
    try:
        challenge = Challenge.from_value(message.body)
    except UsageError as error:
        raise TranscriptError(_WHERE, str(error)) from None
    # 2. Signed by the challenger that it names, for this referee.
    signed.verify(challenge.challenger)
    check_equal("dispute of the challenge", challenge.dispute, message.dispute)
    check_equal("referee of the challenge", referee, challenge.referee)
    # 3. About this run, and a head that its trainer signed.
    header = Header.from_bytes(challenge.header, where="header of the challenge")
    check_equal("run of the challenge", header.digest, message.run)
    if run is not None:
        check_equal("run", run, header.digest)
    head = _opened_head(challenge.head, header)
    # 4. Three parties.
    keys = {
        Role.TRAINER: header.public_key,
        Role.CHALLENGER: challenge.challenger,
        Role.REFEREE: referee,
    }
    if len(set(keys.values())) != len(keys):
        raise VerificationError("challenge: trainer, challenger and referee need a key each")
    # 5. A leaf that the head covers, and that the challenger committed to.
    if challenge.size > head.size:
        raise VerificationError(
            f"challenge: leaf {challenge.size - 1} is not covered by a head over {head.size}"
        )
    own = Commitment(size=challenge.size, root=challenge.root)
    return Contest(
        dispute=message.dispute,
        header=header,
        head=head,
        leaf=own.leaf(challenge.size - 1, challenge),
        keys=keys,
        leaves={
            Role.TRAINER: Commitment(size=head.size, root=head.root),
            Role.CHALLENGER: own,
        },
    )


def _opened_head(data: bytes, header: Header) -> Head:
    signed = SignedHead.from_bytes(data, where="head of the challenge")
    verify_signature(header.public_key, Head.type_name, signed.head.to_bytes(), signed.signature)
    check_equal("run of the head", header.digest, signed.head.run)
    return signed.head
