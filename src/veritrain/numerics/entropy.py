"""Randomness that no seed governs, refused where it would enter a step.

What draws on the operating system gives other values in every run, so that no audit could repeat the step.
Refused, in the thread that computes: generators made or seeded without a seed (`random.Random()`,
`numpy.random.default_rng()`, `torch.seed()`), `secrets`, `random.SystemRandom`, `os.urandom`, `uuid.uuid4`.
The clock is not watched: it is read for other ends too.
"""

from __future__ import annotations

import inspect
import os
import random
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from veritrain.errors import JobError

# Where random bytes come in. numpy's generators, `secrets` and `SystemRandom` call random._urandom.
_SOURCES: tuple[tuple[Any, str], ...] = ((os, "urandom"), (random, "_urandom"))
# Where a seed may be left out.
_SEEDS: tuple[tuple[Any, str], ...] = (
    (random, "seed"), (random.Random, "seed"), (torch, "seed"), (torch.random, "seed"),
)  # fmt: skip
_PASSED_THROUGH = {__name__, "random", "secrets", "uuid"}
# They want names that are unlike each other, not numbers for a model.
_EXEMPT = {"numba", "tempfile", "torch", "multiprocessing"}


@contextmanager
def no_entropy() -> Generator[None]:
    """Within it, in this thread, what draws on the operating system's entropy raises.

    Raises:
        JobError: from the call that draws; says what to do.
    """
    thread = threading.get_ident()
    originals = [(owner, name, getattr(owner, name)) for owner, name in (*_SOURCES, *_SEEDS)]

    def guarded(original: Callable[..., Any], seeded: Callable[[tuple[Any, ...]], bool]) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            values = (*arguments, *options.values())
            if threading.get_ident() == thread and not seeded(values) and not _is_exempt():
                raise JobError(
                    "the job draws on the operating system's entropy (a generator without a seed, "
                    "secrets, os.urandom, uuid4), which no audit can repeat; give a seed, or draw from "
                    "torch, random or numpy.random, which are keyed by the job's seed"
                )
            return original(*arguments, **options)

        return call

    try:
        for owner, name, original in originals:
            seeds = (owner, name) in _SEEDS
            setattr(owner, name, guarded(original, _is_seeded if seeds else _never))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _never(values: tuple[Any, ...]) -> bool:
    return False


def _is_seeded(values: tuple[Any, ...]) -> bool:
    return any(value is not None and not isinstance(value, random.Random) for value in values)


def _is_exempt() -> bool:
    """Asked by one of `_EXEMPT`, or while a module is imported: it then is part of the program."""
    frame, asking = inspect.currentframe(), ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name == "importlib._bootstrap":
            return True
        if not asking and name not in _PASSED_THROUGH:
            asking = name.partition(".")[0]
        frame = frame.f_back
    return asking in _EXEMPT
