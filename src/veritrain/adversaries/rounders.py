"""Trainers who cheat in their rounding log and sign properly.

Each is a `Recording` that decides or writes otherwise than arithmetic does; `rounding_by` lets it
take the honest one's place while a run is recorded. Nothing else of the run is touched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias
from unittest.mock import patch

import numpy as np

from veritrain.numerics.logged.grid import Rounded, follow, round_to
from veritrain.numerics.logged.rounding import Recording, Rounding, Target, Tensors
from veritrain.numerics.logged.tally import Tally
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.numerics.profile import Logged
from veritrain.transcript.limits import LIMITS

ACCEPTED = (
    1 / 8
)  # of a class's logged decisions: what honest machines may differ in (`Tally.is_steered`)
MakeRecording: TypeAlias = Callable[[Target, Thresholds], Recording]


@contextmanager
def rounding_by(make: MakeRecording) -> Generator[None]:
    """Record with `make`'s decisions."""

    def recording(profile: Logged, thresholds: dict[str, float]) -> Rounding:
        return make(profile.target, Thresholds(thresholds))

    with patch.object(Logged, "recording", recording):
        yield


class _Cheating(Recording):
    """Decides otherwise, looking at the values again when they were rounded already."""

    def round(self, tensors: Tensors) -> None:
        """See `Rounding.round`."""
        super().round(replace(tensors, values=tensors.values.copy()))


class Steering(_Cheating):
    """Decides every ambiguous entry one way."""

    up = False

    def decide(self, tensors: Tensors) -> Rounded:
        """See `Recording.decide`."""
        honest = super().decide(tensors)
        return _redecided(self, tensors, honest, np.full(honest.places.size, self.up))


class SteeringUp(Steering):
    """The other way."""

    up = True


class Greedy(Steering):
    """Steers whatever it can without being impossible, logged by honest trainers or not."""

    def decide(self, tensors: Tensors) -> Rounded:
        """See `Recording.decide`."""
        wider = round_to(self.possible_grid(tensors), tensors.values, tensors.out)
        return _redecided(self, tensors, wider, np.full(wider.places.size, self.up))


class Diluting(_Cheating):
    """Steers every ambiguous entry. To hide it, logs all others that are possible as they are."""

    def decide(self, tensors: Tensors) -> Rounded:
        """See `Recording.decide`."""
        wider = round_to(self.possible_grid(tensors), tensors.values, tensors.out)
        near = super().decide(tensors)
        up = np.where(np.isin(wider.places, near.places), False, wider.up)
        return _redecided(self, tensors, wider, up)


class Concentrating(_Cheating):
    """Decides no more otherwise than audits accept, and all of it in results of one size.

    These are the gradient of one parameter, say. It steers the largest ambiguous values in them,
    which move farthest.
    """

    def __init__(self, target: Target, thresholds: Thresholds, *, size: int) -> None:
        super().__init__(target, thresholds)
        self.size = size
        self.steered = 0

    def decide(self, tensors: Tensors) -> Rounded:
        """See `Recording.decide`."""
        honest = super().decide(tensors)
        if tensors.values.size != self.size:
            return honest
        logged = self.tally.get(tensors.kind, Tally()).logged + honest.places.size
        room = max(0, int(logged * ACCEPTED) - self.steered)
        chosen = np.argsort(-abs(tensors.values[honest.places]), kind="stable")[:room]
        self.steered += chosen.size
        up = honest.up.copy()
        up[chosen] = ~up[chosen]
        return _redecided(self, tensors, honest, up)


class _AtLast(Recording):
    """Changes the whole log once all is computed."""

    def finish(self) -> bytes:
        """See `Rounding.finish`."""
        return self.changed(super().finish())

    @abstractmethod
    def changed(self, log: bytes) -> bytes:
        """What to write instead."""


class Dropping(_AtLast):
    """Writes an empty log."""

    def changed(self, log: bytes) -> bytes:
        """See `_AtLast.changed`."""
        return b""


class Huge(_AtLast):
    """Writes all that a log may be long, behind an honest one."""

    def changed(self, log: bytes) -> bytes:
        """See `_AtLast.changed`."""
        return log + bytes(LIMITS.rounding_bytes - len(log))


class Repeating(_AtLast):
    """Writes the log of its first step for every step."""

    first: bytes | None = None

    def changed(self, log: bytes) -> bytes:
        """See `_AtLast.changed`."""
        if type(self).first is None:
            type(self).first = log
        return type(self).first or log


class _AtOne(_Cheating):
    """Changes the record of the first result that has a suitable entry; the results stay honest."""

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        super().__init__(target, thresholds)
        self._done = False

    def decide(self, tensors: Tensors) -> Rounded:
        """See `Recording.decide`."""
        honest = super().decide(tensors)
        changed = None if self._done else self.changed(tensors, honest)
        self._done = self._done or changed is not None
        return honest if changed is None else changed

    @abstractmethod
    def changed(self, tensors: Tensors, honest: Rounded) -> Rounded | None:
        """What to record instead; None where it does not suit."""


class Flipping(_AtOne):
    """Logs one decision the other way round than it was made."""

    def changed(self, tensors: Tensors, honest: Rounded) -> Rounded | None:
        """See `_AtOne.changed`."""
        if not honest.places.size:
            return None
        up = honest.up.copy()
        up[0] = not up[0]
        return replace(honest, up=up)


class Inventing(_AtOne):
    """Makes and logs a decision for a value that is far from any boundary."""

    def changed(self, tensors: Tensors, honest: Rounded) -> Rounded | None:
        """See `_AtOne.changed`."""
        near = round_to(self.possible_grid(tensors), tensors.values, np.empty_like(tensors.out))
        far = np.setdiff1d(np.arange(min(tensors.values.size, 4096)), near.places)
        if not far.size:
            return None
        places = np.union1d(honest.places, far[:1])
        up = np.zeros(places.size, np.bool_)
        up[np.isin(places, honest.places)] = honest.up
        return _redecided(self, tensors, replace(honest, places=places), up)


class Swapping(Recording):
    """Writes the records of two neighbouring results of one size in each other's place."""

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        super().__init__(target, thresholds)
        self._held: tuple[int, Rounded] | None = None

    def write(self, size: int, rounded: Rounded) -> None:
        """See `Recording.write`."""
        held, self._held = self._held, (size, rounded)
        if held is not None and held[0] == size:
            super().write(size, rounded)
            self._held = None
        if held is not None:
            super().write(*held)

    def finish(self) -> bytes:
        """See `Rounding.finish`."""
        if self._held is not None:
            super().write(*self._held)
        return super().finish()


def _redecided(rounding: Rounding, tensors: Tensors, rounded: Rounded, up: np.ndarray) -> Rounded:
    """Give the entries at `rounded.places` the directions `up`, with a checksum that fits."""
    grid = rounding.logged_grid(tensors)
    anywhere = replace(grid, delta=float("inf"), most=float("inf"))
    follow(grid, tensors.values, tensors.out, rounded.places, up, anywhere)
    own = round_to(replace(grid, delta=-float("inf")), tensors.out.copy(), tensors.out)
    return Rounded(places=rounded.places, up=up, checksum=own.checksum, sketch=own.sketch)
