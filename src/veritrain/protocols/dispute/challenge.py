"""The challenge: one party's claim that a leaf of a signed run is false. It opens a dispute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritrain.encoding import Digest, digest_value
from veritrain.errors import FieldError, TranscriptError, VerificationError
from veritrain.parties.envelope import SignedEnvelope, Signs
from veritrain.parties.roster import Roster
from veritrain.protocols.dispute.claims import Commitment, Entries
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import PARTIES, Message, MessageKind, Opening, Role
from veritrain.transcript import fields as check
from veritrain.transcript.record import MAX_STEP, check_equal
from veritrain.transcript.records import PUBLIC_KEY_BYTES, Head, Header, Leaf, SignedHead
from veritrain.transcript.signing import verify_signature

NONCE_BYTES = 16
_DOMAIN = "dispute"
_WHERE = "challenge"
_ROLES = tuple(Role)


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
class PartyMessage:
    """A message whose signature was checked. Nobody has read its content yet.

    Attributes:
        role: of the party that signed it.
        data: `signed`, encoded.
    """

    role: Role
    signed: SignedEnvelope
    data: bytes


@dataclass(frozen=True, kw_only=True)
class DisputeTerms:
    """What a valid challenge establishes: who is against whom, and over what."""

    challenge: PartyMessage
    dispute: Digest
    header: Header
    head: Head
    leaf: Leaf  # the challenger's, of the disputed step
    roster: Roster  # in the order of `Role`
    leaves: Mapping[Role, Commitment]  # of both parties

    @property
    def run(self) -> Digest:
        """Digest of the header."""
        return self.header.digest

    def key(self, role: Role) -> bytes:
        """The public key of a role."""
        return self.roster.keys[_ROLES.index(role)]

    def from_party(self, data: bytes, *, limit: int) -> PartyMessage:
        """The message in `data`, of at most `limit` bytes, if a party signed it.

        Raises:
            TranscriptError: too large, or not a signed message.
            VerificationError: not signed by a party.
        """
        signed = SignedEnvelope.read(data, limit=limit, where="message")
        number = self.roster.signer(signed, Message.type_name, map(_ROLES.index, PARTIES))
        if number is None:
            raise VerificationError("the message is not signed by a party of the dispute")
        return PartyMessage(role=_ROLES[number], signed=signed, data=data)


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
        kind=MessageKind.CHALLENGE,
        body=challenge.to_value(),
    )
    data = message.signed(signer).to_bytes()
    open_challenge(data, referee=referee)
    return data


def open_challenge(data: bytes, *, referee: bytes, run: Digest | None = None) -> DisputeTerms:
    """Check a challenge that someone sent to `referee`, about `run` if given.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: another referee or run, a wrong signature, or a claim without proof.
    """
    return read_challenge(data).open(referee=referee, run=run)


def read_challenge(data: bytes, *, max_items: int | None = None) -> ReadChallenge:
    """The challenge in these bytes, of at most `max_items` CBOR values if given.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: another kind of message.
    """
    signed = SignedEnvelope.read(data, limit=LIMITS.challenge_bytes, where=_WHERE)
    message = signed.opened(Message, where=_WHERE, max_items=max_items)
    return ReadChallenge.of(signed, message)


@dataclass(frozen=True, kw_only=True)
class ReadChallenge:
    """A challenge that is well formed. Whether it is signed and true, `open` says."""

    signed: SignedEnvelope
    message: Message
    challenge: Challenge

    @classmethod
    def of(cls, signed: SignedEnvelope, message: Message) -> ReadChallenge:
        """The challenge in a message, which was read from `signed`.

        Raises:
            TranscriptError: malformed fields.
            VerificationError: another kind of message.
        """
        place = (message.kind, message.sender, message.number)
        if place != (MessageKind.CHALLENGE, Role.CHALLENGER, 0):
            raise VerificationError(
                f"challenge: got a {message.kind.value} of the {message.sender.value}"
            )
        try:
            challenge = Challenge.from_value(message.body)
        except FieldError as error:
            raise TranscriptError(_WHERE, str(error)) from None
        return cls(signed=signed, message=message, challenge=challenge)

    def open(self, *, referee: bytes, run: Digest | None = None) -> DisputeTerms:
        """Check that it opens a dispute before `referee`, about `run` if given.

        Raises:
            TranscriptError: malformed records in it.
            VerificationError: another referee or run, a wrong signature, or a claim without proof.
        """
        challenge, message = self.challenge, self.message
        # 1. Signed by the challenger that it names, for this referee.
        self.signed.verify(challenge.challenger, Message.type_name)
        check_equal("dispute of the challenge", challenge.dispute, message.dispute)
        check_equal("referee of the challenge", referee, challenge.referee)
        # 2. About this run, and a head that its trainer signed.
        header = Header.from_bytes(challenge.header, where="header of the challenge")
        check_equal("run of the challenge", header.digest, message.run)
        if run is not None:
            check_equal("run", run, header.digest)
        head = open_head(challenge.head, header, where="head of the challenge")
        # 3. Three parties.
        keys = (header.public_key, challenge.challenger, referee)
        if len(set(keys)) != len(keys):
            raise VerificationError("challenge: trainer, challenger and referee need a key each")
        # 4. A leaf that the head covers, and that the challenger committed to.
        if challenge.size > head.size:
            raise VerificationError(
                f"challenge: leaf {challenge.size - 1} is not covered by a head over {head.size}"
            )
        own = Commitment(size=challenge.size, root=challenge.root)
        return DisputeTerms(
            challenge=PartyMessage(
                role=Role.CHALLENGER, signed=self.signed, data=self.signed.to_bytes()
            ),
            dispute=message.dispute,
            header=header,
            head=head,
            leaf=own.leaf(challenge.size - 1, challenge),
            roster=Roster(epoch=0, keys=keys),
            leaves={
                Role.TRAINER: Commitment(size=head.size, root=head.root),
                Role.CHALLENGER: own,
            },
        )


def open_head(data: bytes, header: Header, *, where: str) -> Head:
    """The head of the run of `header`, which the run's trainer signed.

    Raises:
        TranscriptError: malformed bytes.
        VerificationError: not signed by the run's key, or about another run.
    """
    signed = SignedHead.from_bytes(data, where=where)
    verify_signature(header.public_key, Head.type_name, signed.head.to_bytes(), signed.signature)
    check_equal("run of the head", header.digest, signed.head.run)
    return signed.head
