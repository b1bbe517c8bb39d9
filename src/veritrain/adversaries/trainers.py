"""Trainers who cheat and sign properly. Each returns the job that the cheat really trains.

They attack at the boundary: they swap a part of the job that the recorder is given, and leave the
recorder, the transcript and the signature alone. What they write is a well-formed run with the
honest job's settings and sources; only recomputing it can show the lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from veritrain.job.data import Batches
from veritrain.job.job import Job, MapDataset


class PoisonedDataset:
    """Commits to the honest records, then trains on one that was changed.

    Recording reads every record once, in order, before it trains; the change begins after that.
    """

    def __init__(self, honest: MapDataset, index: int, change: Callable[[Any], Any]) -> None:
        self._honest = honest
        self._index = index
        self._change = change
        self._left = len(honest)

    def __len__(self) -> int:
        return len(self._honest)

    def __getitem__(self, index: int) -> Any:
        record = self._honest[index]
        self._left -= 1
        return self._change(record) if self._left < 0 and index == self._index else record


def poison_sample(job: Job, index: int, change: Callable[[Any], Any]) -> Job:
    """Trains on a changed record `index`: a back door, for example."""
    return replace(job, dataset=PoisonedDataset(Batches(job).dataset, index, change))


def alter_weight(job: Job, step: int, amount: float = 2.0**-20) -> Job:
    """Adds `amount` to one weight after the optimiser's work of `step`."""

    def alter(optimizer: Optimizer, honest_step: Callable[[], object]) -> None:
        honest_step()
        weight: Tensor = optimizer.param_groups[0]["params"][0]
        with torch.no_grad():
            weight.view(-1)[:1].add_(amount)

    return _at_step(job, step, alter)


def wrong_rate(job: Job, step: int, factor: float) -> Job:
    """Multiplies the learning rate by `factor` in `step` alone, and puts it back."""

    def hurry(optimizer: Optimizer, honest_step: Callable[[], object]) -> None:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= factor
        honest_step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    return _at_step(job, step, hurry)


def skip_update(job: Job, step: int) -> Job:
    """Does not update in `step`, to save the work."""

    def skip(optimizer: Optimizer, honest_step: Callable[[], object]) -> None:
        """Nothing: the honest step is never called."""

    return _at_step(job, step, skip)


def wrong_start(job: Job, amount: float = 1.0) -> Job:
    """Starts from a model with one weight chosen by the trainer."""

    def build() -> nn.Module:
        model = job.model()
        with torch.no_grad():
            next(model.parameters()).view(-1)[:1].add_(amount)
        return model

    return replace(job, model=build)


def flatter_loss(job: Job, amount: float) -> Job:
    """Trains honestly and reports losses that are lower by `amount`; gradients stay the same."""

    def lower(model: nn.Module, batch: Any) -> Tensor:
        return job.loss(model, batch) - amount

    return replace(job, loss=lower)


def _at_step(job: Job, step: int, cheat: Callable[[Optimizer, Callable[[], object]], None]) -> Job:
    """The job with `cheat` in place of the optimiser's own work in one step."""

    def build(model: nn.Module) -> Optimizer:
        optimizer = job.optimizer(model)
        honest = optimizer.step
        calls = 0

        def dishonest(self: Optimizer, *_: object, **__: object) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                cheat(self, honest)
            else:
                honest()

        optimizer.step = MethodType(dishonest, optimizer)  # schedulers wrap methods only
        return optimizer

    return replace(job, optimizer=build)
