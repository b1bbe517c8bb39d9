"""Randomness that no seed governs, refused where it would enter a step.

What draws on the operating system gives other values in every run, so that no audit could repeat
the step. Refused, in the thread that computes: generators made or seeded without a seed
(`random.Random()`, `numpy.random.default_rng()`, `torch.seed()`), `secrets`, `random.SystemRandom`,
`os.urandom`, `uuid.uuid4`. Not reached: `torch.default_generator.seed()`, and names that were
imported before. The clock is not watched: it is read for other ends too.
"""

from __future__ import annotations

import inspect
import os
import random
import threading
from abc import ABCMeta
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import MT19937

from veritrain.errors import JobError
from veritrain.numerics.keys import generators
from veritrain.numerics.patches.replaced import Replacement, replaced

# Where random bytes come in. numpy's generators, `secrets` and `SystemRandom` call random._urandom.
_SOURCES: tuple[tuple[Any, str], ...] = (
    (os, "urandom"), (random, "_urandom"), *[(os, "getrandom")] * hasattr(os, "getrandom"),
)  # fmt: skip
# Where a seed may be left out.
_SEEDS: tuple[tuple[Any, str], ...] = (
    (random, "seed"), (random.Random, "seed"), (torch, "seed"), (torch.random, "seed"),
)  # fmt: skip
_PASSED_THROUGH = {__name__, "random", "secrets", "uuid"}
# They want names that are unlike each other, not numbers for a model.
_EXEMPT = {"numba", "tempfile", "torch", "multiprocessing"}

_within: list[int] = []  # threads, once for each context
_numpy_legacy: Any = np.random.mtrand


@contextmanager
def no_entropy() -> Generator[None]:
    """Within it, in this thread, what draws on the operating system's entropy raises.

    Raises:
        JobError: from the call that draws; says what to do.
    """
    thread = threading.get_ident()

    def draws(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == thread and not _is_exempt():
                raise _refusal()
            return original(*arguments, **options)

        return call

    def draws_unless_seeded(original: Callable[..., Any]) -> Callable[..., Any]:
        refusing = draws(original)

        def call(*arguments: Any, **options: Any) -> Any:
            is_seeded = _holds_seed((*arguments, *options.values()))
            return (original if is_seeded else refusing)(*arguments, **options)

        return call

    table = [
        Replacement.by(_numpy_legacy, "_MT19937", _SeededNext),
        Replacement.by(torch, "Generator", _SeededGenerator),
        *(Replacement(*source, draws) for source in _SOURCES),
        *(Replacement(*seeding, draws_unless_seeded) for seeding in _SEEDS),
    ]
    _within.append(thread)
    try:
        with replaced(table):
            yield
    finally:
        _within.remove(thread)


class _Standing(ABCMeta):
    """Its classes stand for numpy's own in the tests of `numpy.random.mtrand`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, MT19937)


class _SeededNext(MT19937, metaclass=_Standing):
    """What `numpy.random.RandomState(seed)` makes without a seed and seeds before its first use."""

    def __init__(self) -> None:
        self._waiting = threading.get_ident() in _within and not _is_exempt()
        super().__init__(0 if self._waiting else None)

    def _legacy_seeding(self, seed: Any) -> None:
        super()._legacy_seeding(seed)  # type: ignore[misc]  # pyright: ignore
        self._waiting = False

    @property
    def capsule(self) -> Any:
        """numpy's way in; asked for when a `RandomState` is built on this."""
        if self._waiting:
            raise _refusal()
        return super().capsule


_SeededNext.__name__ = "MT19937"  # numpy names it in a state, and compares


class _AnyGenerator(type(torch.Generator)):
    """Its class stands for that of all generators of torch."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)  # pyright: ignore[reportPrivateUsage]


class _SeededGenerator(torch.Generator, metaclass=_AnyGenerator):
    """A generator of torch's that takes no seed from the system within a context, and knows when it
    got its own."""

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()
        generators.note_seed(self)

    def manual_seed(self, seed: int) -> torch.Generator:
        generators.note_seed(self)
        return super().manual_seed(seed)

    def seed(self) -> int:
        if threading.get_ident() in _within and not _is_exempt():
            raise _refusal()
        return super().seed()


def _refusal() -> JobError:
    return JobError(
        "the job draws on the operating system's entropy (a generator without a seed, secrets, "
        "os.urandom, uuid4), which no audit can repeat; give a seed, or draw from torch, random or "
        "numpy.random, which are keyed by the job's seed"
    )


def _holds_seed(values: tuple[Any, ...]) -> bool:
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
