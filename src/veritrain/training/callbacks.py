"""What a callback of `veritrain.train` is told after each step.

A callback looks on: it may print, plot, write to a log or evaluate the model. It must not change
the model; the recorder refuses the next step where one did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One recorded step.

    Attributes:
        step: its number, counted from 1.
        steps: how many the job has.
        loss: the mean of the micro-batches' losses, before the step.
        rates: the learning rate of each parameter group in this step.
        batch_seconds: waiting for the batch.
        step_seconds: computing the step.
        record_seconds: hashing and committing the state.
        model: the model after the step, to look at.
    """

    step: int
    steps: int
    loss: float
    rates: tuple[float, ...]
    batch_seconds: float
    step_seconds: float
    record_seconds: float
    model: nn.Module = field(repr=False)


Callback: TypeAlias = Callable[[StepReport], None]
