"""Where a random operator takes its keys: from the job's stream, or from a generator that the job
seeded.

The job's stream (`JobStream`) serves operators that have no generator, or PyTorch's default one. It
keeps its call number as the seed of the default generator, in a range of its own, so that code that
saves and restores that generator gets the same numbers again: activation checkpointing computes a
forward pass a second time and needs the same dropout. Where the default generator has another seed,
the job gave it that one.

A generator that the job seeded gives each operator 64 bits, K: two words of its Mersenne twister,
which are integers and the same on every machine. The operator's keys then are those of the seed K.
So its numbers are a function of the generator's state, and saving, cloning or sending the generator
means what it means elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.errors import NumericsError
from veritrain.numerics.keys.stream import CALLS, KeyStream

# The seed of the default generator before call c is FIRST_CALL + c. Its upper half is the first 4
# bytes of the digest of nothing in the domain "random calls": no seed that people choose.
FIRST_CALL = 0x213DA9F4 << 32
CALLS_OF_SHARD = 1 << 20
SEED_BYTES = 8  # K

State = int | bytes
"""What an operator's keys follow from, beside the job's stream: the number of its next call, or
K; nothing (b"") where the job seeded the default generator and the operator draws nothing."""


class _Drawing:
    """What is known while one step, or one record, is computed."""

    def __init__(self) -> None:
        self.given: bytes | None = None  # to the operator that runs
        self.seeded: set[int] = set()  # generators that got a seed since a stream began
        self.count = 0  # keys that do not follow from such a seed


_drawing = _Drawing()


def calls_of_shard(shard: int | None) -> range:
    """The calls of a step's stream that a shard has; None: those of what the step does once."""
    part = 0 if shard is None else shard + 1
    return range(part * CALLS_OF_SHARD, (part + 1) * CALLS_OF_SHARD)


class JobStream(KeyStream):
    """The keys of one (seed, purpose, step), in the order of calls."""

    def __init__(self, seed: int, purpose: str, step: int, calls: range = range(CALLS)) -> None:
        super().__init__(seed, purpose, step, calls)
        _drawing.seeded.clear()
        set_state(calls.start)

    def next_key(self) -> int:
        """See `KeyStream.next_key`.

        Raises:
            NumericsError: the stream's calls are used up.
        """
        self.call = _call()
        if self.call not in self.calls:
            raise NumericsError(f"random call {self.call}: the stream has {len(self.calls)} calls")
        key = super().next_key()
        set_state(self.call)
        _drawing.count += 1
        return key


def count() -> int:
    """Keys so far that are other ones under another (seed, purpose, step), or after other draws."""
    return _drawing.count


def note_seed(generator: torch.Generator) -> None:
    """Remember that a generator got its seed since the stream began."""
    _drawing.seeded.add(_identity(generator))


def is_keyed() -> bool:
    """Whether the default generator is the job's stream."""
    return 0 <= torch.default_generator.initial_seed() - FIRST_CALL < CALLS


def stream_for_operator(stream: KeyStream) -> KeyStream:
    """What the operator that runs takes its keys from: `stream`, or what it was given.

    Raises:
        ValueError: it was said to draw nothing.
    """
    if _drawing.given is None:
        return stream
    if len(_drawing.given) != SEED_BYTES:
        raise ValueError("a random operator without a key")
    return KeyStream(int.from_bytes(_drawing.given, "little"), "generator", 0)


@contextmanager
def keys_of(generator: torch.Generator | None) -> Generator[None]:
    """Within it, the keys of one operator are those of `generator`, a CPU one; None is the default
    one."""
    default = torch.default_generator
    given = default if generator is None else generator
    is_default = _identity(given) == _identity(default)
    if _drawing.given is not None or (is_default and is_keyed()):
        yield
        return
    if not is_default and _identity(given) not in _drawing.seeded:
        _drawing.count += 1
    with _given(_draw_seed(given)):
        yield


def _identity(generator: torch.Generator) -> int:
    """Operators hand on a generator in another Python object."""
    return cast("Any", generator)._cdata


def state() -> State:
    """What the keys of the operator that runs follow from."""
    if _drawing.given is not None:
        return _drawing.given
    return _call() if is_keyed() else b""


def set_state(state: int) -> None:
    """Go on at a call of the job's stream.

    Raises:
        NumericsError: it has no call of that number.
    """
    if not 0 <= state < CALLS:
        raise NumericsError(f"random call: expected 0 <= call < 2**32, got {state}")
    torch.default_generator.manual_seed(FIRST_CALL + state)


@contextmanager
def resumed(state: State) -> Generator[None]:
    """Within it, the next operator has the keys that it had in that state.

    Raises:
        NumericsError: there is no such state.
    """
    if isinstance(state, int):
        set_state(state)
        yield
    elif len(state) in (0, SEED_BYTES):
        with _given(state):
            yield
    else:
        raise NumericsError(f"random key: expected 0 or 8 bytes, got {len(state)}")


@contextmanager
def _given(seed: bytes) -> Generator[None]:
    _drawing.given = seed
    try:
        yield
    finally:
        _drawing.given = None


def _draw_seed(generator: torch.Generator) -> bytes:
    """64 bits of a generator: its next word times 2^32 plus the word after that, little-endian."""
    with _disable_current_modes():
        word = torch.empty((), dtype=torch.int64, device="cpu")
        word.random_(-(2**63), None, generator=generator)
        return int(word.item()).to_bytes(SEED_BYTES, "little", signed=True)


def _call() -> int:
    return torch.default_generator.initial_seed() - FIRST_CALL
