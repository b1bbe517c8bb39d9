"""Measuring how far machines lie apart: one samples the values of its results, others compare
theirs.

Both round alike, by the sampling machine's decisions, so that every operator has the same operands
on both and what differs is that operator's doing. A gap is a multiple of u times the scale, as
thresholds are.

The sample of a result is of up to 8,192 blocks of it the first value and the largest (of few
values: all). A gap between two sampled values is missed, so a threshold takes a safety factor over
the largest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from veritrain.errors import InconclusiveError, TranscriptError, VerificationError
from veritrain.numerics.logged.grid import follow, round_to
from veritrain.numerics.logged.log import LogReader, LogWriter
from veritrain.numerics.logged.rounding import Following, Recording, Target, Tensors
from veritrain.numerics.logged.tally import Tally
from veritrain.numerics.logged.thresholds import Thresholds

_TINY = 2.0**-1000  # instead of a threshold of 0
_BLOCKS = 8192  # of one result at most
_ENTRY = np.dtype([("place", "<i8"), ("value", "<f8")])


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest gap of a class of operators, and over how many values it was looked for."""

    samples: int = 0
    largest: float = 0.0  # in units of u * S
    share: float = 0.0  # of its threshold, at most: below 1, or machines may disagree unlogged
    reach: float = 0.0  # of what rounding errors explain of that result, at most
    bound: float = 0.0  # the largest that rounding errors explain of any result, in units of u * S
    operator: str = ""  # where the largest was

    def __add__(self, other: Gap) -> Gap:
        wider = max(self, other, key=lambda gap: gap.largest)
        return Gap(
            samples=self.samples + other.samples, largest=wider.largest, operator=wider.operator,
            share=max(self.share, other.share), reach=max(self.reach, other.reach),
            bound=max(self.bound, other.bound),
        )  # fmt: skip


class Sampling(Recording):
    """The trainer's rounding, which keeps samples besides, and all decisions that could be
    otherwise."""

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        super().__init__(target, thresholds)
        self._samples: list[bytes] = []
        self._decisions = LogWriter()

    def round(self, tensors: Tensors) -> None:
        """See `Rounding.round`."""
        self._samples.append(_sampled(tensors.values).tobytes())  # first: rounding may overwrite
        # so near to one boundary that another machine's value is nearest to the same
        possible = replace(self.possible_grid(tensors), most=self.logged_grid(tensors).most)
        decided = round_to(possible, tensors.values, np.empty_like(tensors.out))
        self._decisions.append(tensors.values.size, decided)
        super().round(tensors)

    def samples(self) -> bytes:
        """Places and values of all results so far."""
        return b"".join(self._samples)

    def decisions(self) -> bytes:
        """A log of all that may round either way (up to a quarter of a step), ambiguous or not."""
        return self._decisions.to_bytes()


class Comparing(Following):
    """The auditor's rounding, which compares samples besides, and goes on where results differ.

    Where an audit would end, it notes so in `disagreements` and takes the sampling machine's
    decisions for all that may round either way.

    Raises (from `round` and `finish`):
        TranscriptError: log, samples or decisions are malformed.
        VerificationError: a result that no decisions explain.
    """

    def __init__(
        self,
        target: Target,
        thresholds: Thresholds,
        log: bytes,
        decisions: bytes,
        samples: bytes,
        *,
        reordered: bool = False,
    ) -> None:
        super().__init__(target, thresholds, log)
        self.reordered = reordered
        self.gaps: dict[str, Gap] = {}
        self.disagreements: list[str] = []
        self._decisions = LogReader(decisions)
        self._samples = samples

    def round(self, tensors: Tensors) -> None:
        """See `Rounding.round`."""
        tensors = replace(tensors, values=tensors.values.copy())  # rounding may overwrite them
        self.gaps[tensors.kind] = self.gaps.get(tensors.kind, Gap()) + self._gap(tensors)
        try:
            super().round(tensors)
            self._decisions.next(tensors.values.size)
        except (InconclusiveError, VerificationError) as error:
            self.disagreements.append(str(error))
            self._adopt(tensors)

    def _adopt(self, tensors: Tensors) -> None:
        """Round as the sampling machine did, wherever that may be."""
        size = tensors.values.size
        decided = self._decisions.next(size)
        grid = self.logged_grid(tensors)
        own = round_to(grid, tensors.values, tensors.out)
        anywhere = replace(grid, delta=math.inf, most=math.inf)
        added = follow(
            grid, tensors.values, tensors.out, decided.places, decided.up, anywhere
        ).added
        if (own.checksum + added) % 2**64 != decided.checksum:
            raise VerificationError(
                f"{tensors.result} of {tensors.operator}: differs by more than rounding errors"
                " explain"
            )
        self.count(tensors.kind, Tally(values=size))

    def _gap(self, tensors: Tensors) -> Gap:
        """Between the next samples and the values of one result."""
        theirs = self._next_samples(tensors.values.size)
        largest = self._largest(tensors, tensors.values[theirs["place"]], theirs["value"])
        bound = Thresholds().possible(tensors.kind, tensors.growth)
        threshold = self.thresholds.logged(tensors.kind, tensors.growth)
        return Gap(
            samples=theirs.size, largest=largest, operator=tensors.operator, bound=bound,
            share=largest / max(threshold, _TINY), reach=largest / bound,
        )  # fmt: skip

    def _next_samples(self, size: int) -> np.ndarray:
        length = _count(size) * _ENTRY.itemsize
        data, self._samples = self._samples[:length], self._samples[length:]
        if len(data) < length:
            raise TranscriptError("samples", "end early")
        found = np.frombuffer(data, _ENTRY)
        if not ((found["place"] >= 0) & (found["place"] < size)).all():
            raise TranscriptError("samples", f"expected places below {size}")
        return found

    def _largest(self, tensors: Tensors, own: np.ndarray, theirs: np.ndarray) -> float:
        own = own.astype(np.float64)
        scale = 0.0 if tensors.scale is None else tensors.scale
        if tensors.scale is not None and not 0.0 < scale < math.inf:
            return 0.0
        units = scale + np.ldexp(1.0, np.frexp(own)[1])  # as `Target.grid` has it
        with np.errstate(invalid="ignore"):
            gaps = abs(own - theirs) / (self.target.unit * units)
        return float(np.nan_to_num(gaps, nan=0.0, posinf=0.0).max(initial=0.0))


def _count(size: int) -> int:
    """Samples of a result of `size` values."""
    return 2 * min(size, _BLOCKS)


def _sampled(values: np.ndarray) -> np.ndarray:
    """The first value of each block and the largest; blocks are of one length, and the rest is left
    out."""
    blocks = min(values.size, _BLOCKS)
    length = values.size // blocks
    first = np.arange(blocks) * length
    largest = first + abs(values[: blocks * length].reshape(blocks, length)).argmax(1)
    samples = np.empty(2 * blocks, _ENTRY)
    samples["place"] = np.concatenate([first, largest])
    samples["value"] = values[samples["place"]]
    return samples
