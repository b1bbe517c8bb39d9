"""Who decides where rounding is ambiguous: the trainer, who writes a log, or the log, for its
auditor.

Both take the results of a step's vendor operators one by one, in the order of computing, and round
each to its grid. The trainer's decisions are recorded; the auditor's `Following` takes them from
the record, where they are possible, and compares what came out with the record's checksum, so that
a step that differs is found at its first operator that does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from veritrain.errors import InconclusiveError, VerificationError
from veritrain.numerics.logged.grid import BLOCK, Grid, Rounded, follow, round_to, turns
from veritrain.numerics.logged.log import LogReader, LogWriter
from veritrain.numerics.logged.tally import Tally, combined
from veritrain.numerics.logged.thresholds import Thresholds

_REACH = 0.498  # steps; twice what is logged, so that those who rounded alike are in reach
_TRIED = 20  # free entries of which all choices are tried
_PAIRED = 4096  # free entries of which one or two are
_NAMED = 3  # entries that are named to people


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a step computes in, and what it rounds to."""

    bits: int  # significant bits of a result: 24 for float32, 8 for bfloat16
    unit: float  # roundoff of the arithmetic: 2**-53 or 2**-24
    depth: int  # finest step of a tensor under its scale: 2**-depth

    def grid(self, scale: float | None, width: float) -> Grid:
        """The grid of a result of `scale`, with entries ambiguous up to `width` units.

        A unit is u times the scale, and as much relative to each value: no scale bounds the last
        few operations on a large one.
        """
        relative = width * self.unit * 2**self.bits
        if scale is None:
            return Grid(bits=self.bits, finest=-149, delta=0.0, relative=relative)
        if not 0.0 < scale < math.inf:  # all zero, or not finite: then so is the result
            return Grid(bits=self.bits, finest=-149, delta=0.0)
        finest = max(math.frexp(scale)[1] - self.depth, -149)
        delta = width * self.unit * scale
        return Grid(bits=self.bits, finest=finest, delta=delta, relative=relative)


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """A result before and after rounding, for people too."""

    operator: str
    result: str  # which of its results
    kind: str  # class of operators
    scale: float | None
    growth: float
    values: np.ndarray  # flat, of the arithmetic's dtype
    out: np.ndarray  # flat, float32; may be the memory of `values`, which rounding overwrites then


class Rounding(ABC):
    """Rounds the results of one step; `tally` counts by class of operators.

    `reordered`: sums run the other way round where that can be asked for, as on another machine.
    """

    reordered = False

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        self.target = target
        self.thresholds = thresholds
        self.tally: dict[str, Tally] = {}

    def count(self, kind: str, tally: Tally) -> None:
        """Add to the tally of a class."""
        self.tally = combined(self.tally, {kind: tally})

    def logged_grid(self, tensors: Tensors) -> Grid:
        """The grid, with what is logged as ambiguous."""
        width = self.thresholds.logged(tensors.kind, tensors.growth)
        return self.target.grid(tensors.scale, width)

    def possible_grid(self, tensors: Tensors) -> Grid:
        """The grid, with all that may round either way as ambiguous."""
        width = self.thresholds.possible(tensors.kind, tensors.growth)
        return replace(self.target.grid(tensors.scale, width), most=_REACH)

    @abstractmethod
    def round(self, tensors: Tensors) -> None:
        """Round `tensors.values` into `tensors.out`."""

    @abstractmethod
    def finish(self) -> bytes:
        """The log of the step, after its last operator."""


class Recording(Rounding):
    """The trainer's: decides, and logs what was ambiguous."""

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        super().__init__(target, thresholds)
        self._log = LogWriter()

    def round(self, tensors: Tensors) -> None:
        """See `Rounding.round`."""
        rounded = self.decide(tensors)
        self.write(tensors.values.size, rounded)
        self.count(tensors.kind, Tally(values=tensors.values.size, logged=rounded.places.size))

    def decide(self, tensors: Tensors) -> Rounded:
        """Round to nearest; what was ambiguous."""
        return round_to(self.logged_grid(tensors), tensors.values, tensors.out)

    def write(self, size: int, rounded: Rounded) -> None:
        """Add to the log what was decided for a result of `size` values."""
        self._log.append(size, rounded)

    def finish(self) -> bytes:
        """See `Rounding.finish`."""
        return self._log.to_bytes()


class Following(Rounding):
    """The auditor's: takes the log's decisions where they are possible.

    Raises (from `round` and `finish`):
        TranscriptError: the log is malformed.
        VerificationError: a decision that no arithmetic makes, or a result that none explains.
        InconclusiveError: a result that differs in an entry which may round either way and was not
            logged.
    """

    def __init__(self, target: Target, thresholds: Thresholds, log: bytes) -> None:
        super().__init__(target, thresholds)
        self._data = log
        self._log = LogReader(log)
        self._kept = np.empty(0, np.float32)

    @property
    def position(self) -> int:
        """Bytes of the log that were read."""
        return self._log.position

    def seek(self, position: int) -> None:
        """Go on reading at another byte, where a record begins."""
        self._log.position = position

    def round(self, tensors: Tensors) -> None:
        """See `Rounding.round`."""
        tensors = self._keeping(tensors)
        claimed = self._log.next(tensors.values.size)
        grid = self.logged_grid(tensors)
        own = round_to(grid, tensors.values, tensors.out)
        possible = self.possible_grid(tensors)
        followed = follow(grid, tensors.values, tensors.out, claimed.places, claimed.up, possible)
        if followed.impossible >= 0:
            raise _out_of_reach(tensors, claimed, followed.impossible, possible)
        if (own.checksum + followed.added) % 2**64 != claimed.checksum:
            raise _difference(tensors, claimed, own.checksum + followed.added, grid, possible)
        self.count(
            tensors.kind,
            Tally(
                values=tensors.values.size,
                logged=claimed.places.size,
                padding=claimed.places.size
                - int(np.isin(claimed.places, own.places, assume_unique=True).sum()),
                corrected=int((followed.ratios >= 0.0).sum()),
                widest=float(followed.ratios.max(initial=0.0)),
            ),
        )

    def finish(self) -> bytes:
        """See `Rounding.finish`."""
        self._log.finish()
        return self._data

    def _keeping(self, tensors: Tensors) -> Tensors:
        """The same with values that rounding does not overwrite, in memory that is used again."""
        size = tensors.values.size
        if not np.may_share_memory(tensors.values, tensors.out):
            return tensors
        if self._kept.size < size:
            self._kept = np.empty(size, tensors.values.dtype)
        self._kept[:size] = tensors.values
        return replace(tensors, values=self._kept[:size])


def _out_of_reach(
    tensors: Tensors, claimed: Rounded, index: int, possible: Grid
) -> VerificationError | InconclusiveError:
    """What it says that a logged entry is too far from any boundary."""
    place, way = int(claimed.places[index]), "up" if claimed.up[index] else "down"
    value = float(tensors.values[place])
    # of the binade below, where the trainer's value may be
    exponent = math.frexp(value)[1] - possible.bits - 1 if value else possible.finest
    step = 2.0 ** max(exponent, possible.finest)
    what = f"{tensors.result} of {tensors.operator}, entry {place} logged as rounded {way}"
    if math.isfinite(value) and possible.delta / step + possible.relative > _REACH / 2:
        return InconclusiveError(
            f"{what}; its value {value!r} is far from any boundary, but the thresholds are wider"
            " than the grid: calibrate them"
        )
    return VerificationError(
        f"forged decision: {what}; its value {value!r} is out of reach of any boundary"
    )


def _difference(
    tensors: Tensors, claimed: Rounded, checksum: int, grid: Grid, possible: Grid
) -> VerificationError | InconclusiveError:
    """What it says that a result is not the recorded one, although its operands were.

    `checksum`: of what came out here. Entries that may go either way and were not logged are
    *free*. If some of them explain the difference, honest machines differ; if there are too many to
    try, blocks of results must at least not have moved farther than their free entries can take
    them.
    """
    where = f"{tensors.result} of {tensors.operator}"
    entries = round_to(possible, tensors.values, np.empty_like(tensors.out)).places
    free = entries[~np.isin(entries, claimed.places)]
    difference = (claimed.checksum - checksum) % 2**64
    turned = _explanation(turns(grid, tensors.values, tensors.out, free), difference)
    if turned is not None:
        return InconclusiveError(_text_of(tensors, where, grid, free[turned]))
    gains = turns(grid, tensors.values, tensors.out, claimed.places)
    denied = claimed.places[gains == np.uint64(difference)]
    if denied.size:
        return VerificationError(
            f"{where}: entry {denied[0]} is logged as rounded one way and recorded as rounded the"
            " other"
        )
    if free.size > _TRIED and _is_in_reach(tensors, claimed, grid, free):
        return InconclusiveError(
            f"{where}: differs, perhaps in some of {free.size} entries that may round either way"
            " and were not logged: calibrate the thresholds over more machines"
        )
    return VerificationError(
        f"{where}: the recorded results are not what its operands give on any machine"
    )


def _explanation(gains: np.ndarray, difference: int) -> np.ndarray | None:
    """Indices of gains that add up to the difference, modulo 2**64: one or two, or of a few any
    number.

    Turns of single steps gain numbers of 32 bits: 2**20 choices, or 2**23 pairs, explain one in a
    thousand other differences of that size by chance, and hardly any of the larger ones. More would
    explain anything.
    """
    if gains.size > _PAIRED:
        return None
    wanted = np.uint64(difference)
    alone = np.flatnonzero(gains == wanted)
    if alone.size:
        return alone[:1]
    for one, other in _adding_up(gains, gains, wanted):
        if one != other:
            return np.array([one, other])
    if gains.size > _TRIED:
        return None
    half = gains.size // 2
    low, high = _all_sums(gains[:half]), _all_sums(gains[half:])
    for one, other in _adding_up(low, high, wanted):
        chosen = one | other << half  # a bit for each gain
        return np.flatnonzero([chosen >> i & 1 for i in range(gains.size)])
    return None


def _all_sums(gains: np.ndarray) -> np.ndarray:
    """Of every choice of the gains: bit i of an index says whether gain i is in it."""
    sums = np.zeros(1, np.uint64)
    for gain in gains:
        sums = np.concatenate([sums, sums + gain])
    return sums


def _adding_up(left: np.ndarray, right: np.ndarray, wanted: np.uint64) -> Iterator[tuple[int, int]]:
    """Indices of pairs that add up to `wanted`, modulo 2**64: for each on the left one on the
    right."""
    if not right.size:
        return
    order = np.argsort(right)
    rest = wanted - left
    at = np.minimum(np.searchsorted(right[order], rest), right.size - 1)
    for index in np.flatnonzero(right[order[at]] == rest).tolist():
        yield index, int(order[at[index]])


def _is_in_reach(tensors: Tensors, claimed: Rounded, grid: Grid, free: np.ndarray) -> bool:
    """Whether no block moved by more steps than it has free entries."""
    nothing = replace(grid, delta=-math.inf)
    own = round_to(nothing, tensors.out.copy(), np.empty_like(tensors.out))
    moved = (claimed.sketch - own.sketch).view(np.int16).astype(np.int64)
    return not (abs(moved) > np.bincount(free // BLOCK, minlength=moved.size)).any()


def _text_of(tensors: Tensors, where: str, grid: Grid, places: np.ndarray) -> str:
    """How far some entries are from their boundaries, in words."""
    anywhere = replace(grid, delta=math.inf, most=math.inf)
    up = round_to(anywhere, tensors.values[places], tensors.out[places]).up
    ratios = follow(grid, tensors.values, tensors.out.copy(), places, ~up, anywhere).ratios
    which = " and ".join(
        f"entry {place}, {ratio:.3g} times the threshold from its boundary here"
        for place, ratio in sorted(zip(places.tolist(), ratios.tolist(), strict=True))[:_NAMED]
    )
    if places.size > _NAMED:
        which += f" and {places.size - _NAMED} more"
    return (
        f"{where}: rounded the other way and not logged: {which}; that is arithmetic's doing or the"
        " trainer's: calibrate the thresholds over more machines"
    )
