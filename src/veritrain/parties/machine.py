"""The form of a protocol's state machine: bytes and times come in, envelopes go out.

A machine does no I/O and reads no clock. So one simulator drives the machines of every protocol
over a network with faults, and a process drives the same machine over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """Signed bytes for one party.

    Attributes:
        to: the party's public key.
    """

    to: bytes
    data: bytes


class Machine(Protocol):
    """One party's part in a protocol.

    Times are seconds that never go back, all of one clock.
    """

    @property
    def outgoing(self) -> Sequence[Outgoing]:
        """What other parties have to get now. The driver sends it again until it is gone from here:
        a network loses messages."""
        ...

    @property
    def deadline(self) -> float | None:
        """When `tick` has to be called at the latest; None where time changes nothing."""
        ...

    @property
    def is_over(self) -> bool:
        """Nothing that comes in can change anything any more."""
        ...

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes that somebody sent. Bytes of strangers have no effect.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        ...

    def tick(self, now: float) -> None:
        """Let time pass.

        Raises:
            UsageError: `now` is before an earlier time.
        """
        ...
