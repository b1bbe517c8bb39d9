"""Measuring how far machines lie apart: one samples the values of its results, others compare theirs.

Both round alike, by the sampling machine's log, so that every operator has the same operands on both and
what differs is that operator's doing. A gap is a multiple of u times the scale, as thresholds are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from veritrain.errors import TranscriptError
from veritrain.numerics.logged.rounding import Following, Recording, Target, Tensors
from veritrain.numerics.logged.thresholds import Thresholds

_TINY = 2.0**-1000  # instead of a threshold of 0
_SAMPLES = 4096  # of one result at most, evenly spread


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest gap of a class of operators, and over how many values it was looked for."""

    samples: int = 0
    largest: float = 0.0  # in units of u * S
    share: float = 0.0  # of its threshold, at most: below 1, or machines may disagree unlogged
    operator: str = ""  # where it was

    def __add__(self, other: Gap) -> Gap:
        wider = max(self, other, key=lambda gap: gap.largest)
        return Gap(
            samples=self.samples + other.samples, largest=wider.largest, operator=wider.operator,
            share=max(self.share, other.share),
        )  # fmt: skip


class Sampling(Recording):
    """The trainer's rounding, which keeps samples besides."""

    def __init__(self, target: Target, thresholds: Thresholds) -> None:
        super().__init__(target, thresholds)
        self._samples: list[bytes] = []

    def settle(self, tensors: Tensors) -> None:
        """See `Rounding.settle`."""
        self._samples.append(_sampled(tensors.values).tobytes())  # first: rounding may overwrite
        super().settle(tensors)

    def samples(self) -> bytes:
        """float64 values of all results so far."""
        return b"".join(self._samples)


class Comparing(Following):
    """The auditor's rounding, which compares samples besides."""

    def __init__(
        self,
        target: Target,
        thresholds: Thresholds,
        log: bytes,
        samples: bytes,
        *,
        reordered: bool = False,
    ) -> None:
        super().__init__(target, thresholds, log)
        self.reordered = reordered
        self._samples = samples
        self.gaps: dict[str, Gap] = {}

    def settle(self, tensors: Tensors) -> None:
        """See `Rounding.settle`."""
        own = _sampled(tensors.values)
        if len(self._samples) < own.nbytes:
            raise TranscriptError("samples", "end early")
        theirs = np.frombuffer(self._samples[: own.nbytes], np.float64)
        self._samples = self._samples[own.nbytes :]
        largest = self._largest(tensors, own, theirs)
        threshold = self.thresholds.logged(tensors.kind, tensors.growth)
        gap = Gap(
            samples=own.size, largest=largest, operator=tensors.operator,
            share=largest / max(threshold, _TINY),
        )  # fmt: skip
        self.gaps[tensors.kind] = self.gaps.get(tensors.kind, Gap()) + gap
        super().settle(tensors)

    def _largest(self, tensors: Tensors, own: np.ndarray, theirs: np.ndarray) -> float:
        scale = 0.0 if tensors.scale is None else tensors.scale
        if tensors.scale is not None and not 0.0 < scale < math.inf:
            return 0.0
        units = scale + np.ldexp(1.0, np.frexp(own)[1])  # as `Target.grid` has it
        with np.errstate(invalid="ignore"):
            gaps = abs(own - theirs) / (self.target.unit * units)
        return float(np.nan_to_num(gaps, nan=0.0, posinf=0.0).max(initial=0.0))


def _sampled(values: np.ndarray) -> np.ndarray:
    """Evenly spread values of a result, float64."""
    places = np.arange(min(values.size, _SAMPLES)) * values.size // min(values.size, _SAMPLES)
    return values[places].astype(np.float64)
