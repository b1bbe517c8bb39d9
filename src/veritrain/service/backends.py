"""What the HTTP paths of disputes call: a trainer who answers, and a referee who asks.

Messages are opaque bytes for the paths, signed by their senders (docs/disputes.md). A digest names
a message or a dispute that is fetched later.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol


class StoppedError(Exception):
    """An error ended a dispute without a verdict. It goes on when the referee starts again."""


class TrainerBackend(Protocol):
    """A trainer who answers the questions of referees. Several threads call it; it may block."""

    def submit(self, question: bytes) -> bytes:
        """Take a signed question; again, if it was taken before.

        Returns:
            The digest, 32 bytes, under which its answer will be found.

        Raises:
            VeritrainError: not a question to this trainer.
        """
        ...

    def get(self, digest: bytes) -> bytes | None:
        """The signed answer, or None while it is being computed.

        Raises:
            LookupError: no such question was taken.
        """
        ...

    def conclude(self, dispute: bytes, verdict: bytes) -> None:
        """Take the verdict of a dispute, a DSSE envelope in JSON; again, if it was taken before.

        Raises:
            LookupError: no question of that dispute was taken.
            VeritrainError: not its verdict.
        """
        ...


class RefereeBackend(Protocol):
    """A referee. Several threads call it; it may block.

    Each method with a dispute raises `LookupError` where there is no such dispute, and
    `StoppedError` where an error stopped it.
    """

    def about(self) -> tuple[bytes, bytes]:
        """The referee's public key, and the digest of the header of its run."""
        ...

    def open(self, challenge: bytes) -> bytes:
        """Take a signed challenge; again, if it was taken before.

        Returns:
            The digest, 32 bytes, that identifies the dispute.

        Raises:
            VeritrainError: not a challenge that this referee takes.
        """
        ...

    def question(self, dispute: bytes, role: str) -> bytes | None:
        """The signed question that `role` has to answer next, if any: "challenger" or "trainer"."""
        ...

    def at_most(self, dispute: bytes) -> int:
        """The most bytes that a message of a party may have now."""
        ...

    def receive(self, dispute: bytes, message: bytes) -> None:
        """Take a signed message of a party.

        Raises:
            VeritrainError: not a message of this dispute.
        """
        ...

    def verdict(self, dispute: bytes) -> bytes | None:
        """The verdict, a DSSE envelope in JSON, once there is one."""
        ...

    def evidence(self, dispute: bytes) -> BinaryIO | None:
        """The file that proves the verdict, once there is one. The caller closes it."""
        ...

    def collected(self, dispute: bytes) -> None:
        """Somebody was sent all of the evidence."""
        ...
