"""Whether code drew from the keyed generators of torch, `random` and `numpy.random`.

Of torch's, keys are counted where the job's stream gives them: numbers that follow from a seed that
the code itself gave a generator, `torch.manual_seed(index)` say, are the same under every key.
Under native numerics, and of the others, a generator whose state is another than before was drawn
from. One of `random` or numpy whose state was read may have been, and been set back: that counts
too, so that what did not draw is the same under every key. Not reached: names that were imported
before, as by `from random import getstate`.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from veritrain.numerics.keys import generators
from veritrain.numerics.patches.replaced import Replacement, replaced

_READERS: tuple[tuple[Any, str], ...] = ((random, "getstate"), (np.random, "get_state"))
_TWISTER_BYTES = 625 * 4
_python_state = random.getstate
_numpy_legacy: Any = np.random.mtrand


class Draws:
    """What was drawn since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was drawn until here."""
        self.was_read = False
        self._is_native = not generators.is_keyed()
        self._before = _states(self._is_native)

    def happened(self) -> bool:
        """Whether anything was drawn."""
        return self.was_read or _states(self._is_native) != self._before


@contextmanager
def watched_generators() -> Generator[Draws]:
    """Within it, draws are seen."""
    draws = Draws()

    def seen(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any, **options: Any) -> Any:
            draws.was_read = True
            return original(*arguments, **options)

        return read

    with replaced(Replacement(owner, name, seen) for owner, name in _READERS):
        yield draws


def _states(is_native: bool) -> list[object]:
    """What each draw changes. All words of a state of the Mersenne twister change at once, or only
    the place in it."""
    _, words, gauss = _python_state()
    native = torch.default_generator.get_state().numpy().tobytes() if is_native else b""
    return [words[0], words[-1], gauss, _numpy_words(), native, generators.count()]


def _numpy_words() -> bytes:
    """The state of numpy's global generator: 624 words and the place, where it keeps them. Asking
    it takes longer than most records do."""
    twister: Any = _numpy_legacy._rand._bit_generator
    return ctypes.string_at(twister.ctypes.state_address, _TWISTER_BYTES)
