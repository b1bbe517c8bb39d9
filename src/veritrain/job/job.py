"""What a client specifies: model, data, loss, optimiser, schedule, steps, seed, numerics.

A `Job` holds ordinary PyTorch. A valid `Job` is all that a trainer and an auditor share; everything
that a step depends on is either in it or derived from its seed. `sources.py` says how a job is
committed to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import IterableDataset

from veritrain.encoding import Value
from veritrain.errors import JobError, UsageError, VeritrainError
from veritrain.job.loading.snapshot import Snapshot
from veritrain.job.shards import MAX_SHARDS
from veritrain.numerics import resolve
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.runtime import started as started  # before any job

SEED_BITS = 256
_MAX_COUNT = 2**53  # steps and sizes: exact in every number type that a job may meet

Source: TypeAlias = "str | PathLike[str]"


@runtime_checkable
class MapDataset(Protocol):
    """A data set whose record i is always the same record: `len(dataset)` and `dataset[i]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run, specified completely.

    Attributes:
        model: builds the model. It runs with random numbers keyed by the seed.
        dataset: a map-style data set, or a function without arguments that returns one.
        loss: `loss(model, batch)`, a scalar floating-point tensor to minimise.
        optimizer: `optimizer(model)`; it may make several parameter groups.
        batch_size: records per step.
        steps: number of optimiser steps, numbered from 1.
        seed: 0 <= seed < 2**256. All randomness of the run is keyed by it.
        numerics: what defines a step's bits: "exact", "exact14" (contractions of 14 bits),
            "logged", "logged-bf16", "logged-b23" to "logged-b31" (rounding amounts) or "native".
        thresholds: of `logged` numerics, by class of operators, as `veritrain calibrate` finds
            them; classes that are missing take their a-priori ones.
        scheduler: `scheduler(optimizer)`, stepped once after each optimiser step; None for none.
        accumulate: micro-batches per step (per shard); must divide `batch_size`. Each micro-batch
            is collated by itself, and the step's loss is the mean of theirs.
        shards: equal parts of a step's batch, 1 to 4095, whose gradients are computed each by
            itself from the state before the step, with random numbers of its own; the step takes
            their mean (`shards.py`). They are part of what a step computes, and processes may share
            them out. `accumulate` is then per shard, and shards * accumulate must divide
            `batch_size`.
        before_step: `before_step(model, step)`, called before each step (after `model.train()`) to
            set flags and plain attributes: unfreeze a part, change a dropout's probability, put a
            layer into evaluation mode. It must set them from the number of the step alone, at every
            step, since an audit may begin with any; it may be called more than once for a step, and
            may not compute with tensors.
        clip_norm: largest 2-norm of all gradients together; None for no clipping.
        collate: makes a micro-batch of a list of records; None for PyTorch's `default_collate`.
        checkpoint_every: steps between two stored states.
        sources: further files that define the run: configuration, vocabulary, modules that the text
            of the job does not show. A folder stands for the Python files in it. Relative paths
            start at the job file's folder, or at the working folder for a job made in a script.
        origin: the job file. `load_job` sets it; leave it out.
        loaded: what was loaded from it. `load_job` sets it; leave it out.

    Raises:
        JobError: a field does not hold what it must; names field, expected and got.
    """

    model: Callable[[], nn.Module]
    dataset: MapDataset | Callable[[], MapDataset]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    batch_size: int
    steps: int
    seed: int
    numerics: str = "exact"
    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    before_step: Callable[[nn.Module, int], None] | None = None
    accumulate: int = 1
    shards: int = 1
    clip_norm: float | None = None
    collate: Callable[[list[Any]], Any] | None = None
    checkpoint_every: int = 100
    sources: Sequence[Source] = ()
    origin: Path | None = None
    loaded: Loaded | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("model", "loss", "optimizer"):
            _require_callable(name, getattr(self, name))
        for name in ("scheduler", "before_step", "collate"):
            if getattr(self, name) is not None:
                _require_callable(name, getattr(self, name))
        for name in ("batch_size", "steps", "accumulate", "checkpoint_every"):
            _require_integer(name, getattr(self, name), 1, _MAX_COUNT)
        _require_integer("shards", self.shards, 1, MAX_SHARDS + 1)
        _require_integer("seed", self.seed, 0, 2**SEED_BITS)
        if self.batch_size % self.accumulate:
            raise JobError(
                f"accumulate: expected a divisor of batch_size {self.batch_size}, "
                f"got {self.accumulate}"
            )
        if self.batch_size % (self.shards * self.accumulate):
            raise JobError(
                f"shards: expected shards * accumulate to divide batch_size {self.batch_size}, "
                f"got {self.shards} * {self.accumulate}"
            )
        _require_dataset(self.dataset)
        _require_norm(self.clip_norm)
        _require_sources(self.sources)
        _require_numerics(self.numerics)
        _require_thresholds(self.numerics, self.thresholds)
        if self.shards > 1 and resolve(self.numerics).has_log:
            raise JobError(
                f"shards: {self.numerics} numerics have one rounding log for a whole step, so they "
                "compute it in one shard; choose exact or exact14"
            )

    @property
    def settings(self) -> dict[str, Value]:
        """The plain settings, as they are committed to. The seed is 32 big-endian bytes."""
        thresholds: dict[str, Value] = {
            name: float(value) for name, value in self.thresholds.items()
        }
        settings: dict[str, Value] = {
            "accumulate": self.accumulate,
            "batch_size": self.batch_size,
            "checkpoint_every": self.checkpoint_every,
            "clip_norm": None if self.clip_norm is None else float(self.clip_norm),
            "numerics": self.numerics,
            "seed": self.seed.to_bytes(SEED_BITS // 8, "big"),
            "steps": self.steps,
        }
        if self.shards > 1:  # what has none says what it said before there were shards
            settings["shards"] = self.shards
        return {**settings, "thresholds": thresholds} if thresholds else settings


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What `load_job` made a job of.

    Attributes:
        snapshot: the job's files, with the bytes that were executed.
        module: name of the job file's module.
        made: the job as `job()` returned it.
    """

    snapshot: Snapshot
    module: str
    made: Job


@contextmanager
def users_code(what: str) -> Generator[None]:
    """Run the job's own code: what it raises becomes one clear error that names the place.

    `sys.exit()` is an error too: a program that ends early must not look like one that succeeded.

    Raises:
        JobError: `what` raised something; errors of Veritrain pass unchanged.
    """
    try:
        yield
    except (VeritrainError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise JobError(f"{what} raised {type(error).__name__}: {error}") from error


def _require_callable(field: str, value: object) -> None:
    if not callable(value):
        raise JobError(f"{field}: expected a function, got {type(value).__name__}")


def _require_integer(field: str, value: object, low: int, end: int) -> None:
    wanted = f"{field}: expected an integer with {low} <= {field} < 2**{end.bit_length() - 1}"
    if type(value) is not int:
        raise JobError(f"{wanted}, got {type(value).__name__}")
    if not low <= value < end:
        raise JobError(f"{wanted}, got {value}")


def _require_dataset(value: object) -> None:
    if isinstance(value, IterableDataset):
        raise JobError(
            "dataset: expected a map-style data set (len(dataset) and dataset[i]), got "
            f"the iterable-style {type(value).__name__}; batches are chosen by the seed, so every "
            "record needs an index"
        )
    if not callable(value) and not isinstance(value, MapDataset):
        raise JobError(
            "dataset: expected a map-style data set (len(dataset) and dataset[i]) or a function "
            f"that returns one, got {type(value).__name__}"
        )


def _require_norm(value: object) -> None:
    if value is None:
        return
    if type(value) not in (int, float) or not (0 < float(value) < math.inf):  # type: ignore[arg-type]
        raise JobError(f"clip_norm: expected a positive finite number or None, got {value!r}")


def _require_sources(value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise JobError(f"sources: expected a list of paths, got {type(value).__name__}")
    for item in value:
        if not isinstance(item, str | PathLike):
            raise JobError(f"sources: expected paths, got an item of type {type(item).__name__}")


def _require_numerics(value: object) -> None:
    if not isinstance(value, str):
        raise JobError(f"numerics: expected a name, got {type(value).__name__}")
    try:
        resolve(value)
    except UsageError as error:
        raise JobError(f"numerics: {error}") from error


def _require_thresholds(numerics: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise JobError(f"thresholds: expected a map of class to number, got {type(value).__name__}")
    if value and not numerics.startswith("logged"):
        raise JobError(f"thresholds: {numerics} numerics have none")
    try:
        Thresholds(value)
    except UsageError as error:
        raise JobError(str(error)) from error
