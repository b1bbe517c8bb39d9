"""Signs of life: each rank tells all others, about once a second, that it is there.

A rank may compute for minutes between two exchanges of tensors, so the time that an exchange takes
says nothing. A thread of each rank therefore sends one small message after another to every other
rank, over connections of their own. A rank whose connection closes is lost at once, and one that is
silent for the deadline is lost then. A rank that ends by itself says so first, with its reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any, Self

import torch
from torch import Tensor

from veritrain.runtime.progress import duration

_MESSAGE_BYTES = 512
_PAUSE = 1.0  # seconds between two messages, or less under a short deadline
_GOODBYE = 5.0  # seconds that a leaving rank waits until all others have heard it


class SignKind(IntEnum):
    """What a rank says of itself."""

    ALIVE = 0
    DONE = 1  # it leaves, its work is done
    FAILED = 2  # it leaves for the reason that follows
    BEREFT = 3  # it leaves because of another rank; what follows names that one


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One message. On the wire: kind, length of the text, the text in UTF-8, zeros."""

    kind: SignKind = SignKind.ALIVE
    text: str = ""

    def to_tensor(self) -> Tensor:
        """The message's bytes; a text that is too long is cut."""
        text = self.text.encode()[: _MESSAGE_BYTES - 3]
        data = bytes([self.kind]) + len(text).to_bytes(2, "little") + text
        return torch.frombuffer(bytearray(data.ljust(_MESSAGE_BYTES, b"\0")), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Self:
        """Read any bytes: a kind that is unknown is a failure that nobody can explain."""
        data = bytes(tensor.tolist())
        length = min(int.from_bytes(data[1:3], "little"), len(data) - 3)
        text = data[3 : 3 + length].decode(errors="replace")
        if data[0] not in set(SignKind):
            return cls(kind=SignKind.FAILED, text="it sent a message that is unknown here")
        return cls(kind=SignKind(data[0]), text=text)


class Watch:
    """Sends this rank's signs of life and hears those of the others, in a thread.

    Args:
        channel: a gloo process group for these messages alone.
        deadline: seconds of silence after which a rank is lost.
        on_loss: called once, in the thread, when a rank is lost.
    """

    def __init__(self, channel: Any, deadline: float, on_loss: Callable[[int], None]) -> None:
        self._channel = channel
        self._deadline = deadline
        self._on_loss = on_loss
        self._own = Sign()
        self._hurry = threading.Event()
        self._known = threading.Event()
        self._loss: Sign | None = None
        self.lost: int | None = None  # the rank that is gone without a word
        self._thread = threading.Thread(target=self._run, name="veritrain-signs", daemon=True)
        self._thread.start()

    def loss(self) -> Sign | None:
        """Why the group cannot go on, as a rank that leaves says it; None if nobody is missed.

        It waits a moment, since a connection that closes is seen before its reason is."""
        self._known.wait(2 * self._pause + 1)
        return self._loss

    def leave(self, sign: Sign) -> None:
        """Say goodbye to those who are left, and end the thread."""
        self._own = sign
        self._hurry.set()
        self._thread.join(_GOODBYE)

    @property
    def _pause(self) -> float:
        return min(_PAUSE, self._deadline / 4)

    def _run(self) -> None:
        rank = self._channel.rank()
        present = [other for other in range(self._channel.size()) if other != rank]
        while present:
            own = self._own
            heard = self._exchanged(own.to_tensor(), present)
            for other, sign in heard.items():
                if sign.kind is SignKind.FAILED:
                    sign = Sign(kind=SignKind.BEREFT, text=f"rank {other} ended: {sign.text}")
                if sign.kind is SignKind.BEREFT and self._loss is None:
                    self._loss = sign
                    self._known.set()
                    self._on_loss(other)
            if own.kind is not SignKind.ALIVE:
                return
            # Those who are left go on: whoever leaves because of the loss still says so.
            present = [other for other in present if heard[other].kind is SignKind.ALIVE]
            self._hurry.wait(self._pause)

    def _exchanged(self, own: Tensor, present: Sequence[int]) -> dict[int, Sign]:
        """What each present rank says now. All ranks take part in the same rounds, in order."""
        limit = timedelta(seconds=self._deadline)
        heard = {other: torch.empty(_MESSAGE_BYTES, dtype=torch.uint8) for other in present}
        works: dict[int, list[Any]] = {other: [] for other in present}
        signs: dict[int, Sign] = {}
        for begin in (True, False):
            for other in present:
                try:
                    if begin:
                        works[other].append(self._channel.recv([heard[other]], other, 0))
                        works[other].append(self._channel.send([own], other, 0))
                    elif other not in signs:
                        for work in works[other]:
                            work.wait(limit)
                        signs[other] = Sign.from_tensor(heard[other])
                except RuntimeError as error:
                    if self.lost is None and self._loss is None:
                        self.lost = other
                    why = f"rank {other} is lost: {self._reason(str(error))}"
                    signs[other] = Sign(kind=SignKind.BEREFT, text=why)
        return signs

    def _reason(self, error: str) -> str:
        """What gloo's error means."""
        if "timed out" in error.lower() or "timeout" in error.lower():
            return f"no sign of life for {duration(self._deadline)}"
        return "its connection closed"
