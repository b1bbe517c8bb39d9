"""Numerics profiles: what defines the bits of a step, and the context that puts it in force.

Inside `Profile.active(seed, purpose, step)` every torch operator follows the profile, and every
random number (torch, `random`, `numpy.random`) is a function of (seed, purpose, step, call). The
caller's own generators are as before when the context is left.
"""

from __future__ import annotations

import os
import random as python_random
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from veritrain.errors import TranscriptError, UnsupportedOperatorError, UsageError
from veritrain.numerics.keys.generators import JobStream
from veritrain.numerics.keys.stream import CALLS, KeyStream
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.numerics.patches.compilation import no_compiled_code
from veritrain.numerics.patches.distributions import exact_distributions
from veritrain.numerics.patches.entropy import no_entropy
from veritrain.numerics.patches.exact_floats import correctly_rounded_math, exact_hyperparameters
from veritrain.numerics.patches.torchscript import no_export, plain_scripts
from veritrain.numerics.platform.devices import CPU
from veritrain.numerics.surroundings import (
    callers_generators_kept,
    ieee_arithmetic,
    new_tensors_on,
    no_fused_layers,
    on_device,
)

if TYPE_CHECKING:
    from veritrain.numerics.logged.rounding import Rounding, Target
    from veritrain.numerics.rules.exact_mode import ExactMode

FLOAT32_BITS = 24  # significant ones


class Scope(ABC):
    """A profile in force. `rekey` starts a new stream of random numbers without leaving it."""

    def rekey(self, *, seed: int, purpose: str, step: int, calls: range = range(CALLS)) -> None:
        """Key all random numbers from here on by (seed, purpose, step, call).

        Args:
            seed: 0 <= seed < 2**256. purpose: what the numbers are for. step: counts from 0.
            calls: the calls that there are, from the first one on.
        """
        stream = self._stream(seed, purpose, step, calls)
        python_random.seed(stream.next_key())
        np.random.seed(stream.next_key() % 2**32)
        self._take(stream)

    def _stream(self, seed: int, purpose: str, step: int, calls: range) -> KeyStream:
        return KeyStream(seed, purpose, step, calls)

    @abstractmethod
    def _take(self, stream: KeyStream) -> None:
        """Draw the random numbers of torch operators from `stream`."""


class _OneThread:
    """The lock of the thread in which a profile is in force; it may enter again."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def after_fork(self) -> None:
        """A child has the forking thread alone: what another one held is never released."""
        if not self.lock.acquire(blocking=False):
            self.lock = threading.RLock()
        else:
            self.lock.release()


_one_thread = _OneThread()
os.register_at_fork(after_in_child=_one_thread.after_fork)


class Profile(ABC):
    """One way to define a step's bits. `name` and `version` are written in a transcript's
    header."""

    name: str
    version: int
    has_log = False  # whether each step has a rounding log

    @contextmanager
    def active(
        self,
        *,
        seed: int,
        purpose: str,
        step: int,
        device: torch.device = CPU,
        rounding: Rounding | None = None,
    ) -> Generator[Scope]:
        """Put the profile in force, with random numbers keyed by (seed, purpose, step, call).

        It replaces what belongs to the whole process, so another thread that asks for one waits.

        Args:
            device: where new tensors lie; those on the CPU stay usable. It never shows in a bit
                under `exact`.
            rounding: decides for profiles that have a rounding log; others take no notice.
        """
        with (
            _one_thread.lock,
            callers_generators_kept(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            self._enter(device, rounding) as scope,
            no_entropy(),
        ):
            scope.rekey(seed=seed, purpose=purpose, step=step)
            yield scope

    @abstractmethod
    def _enter(
        self, device: torch.device, rounding: Rounding | None
    ) -> AbstractContextManager[Scope]:
        """Compute torch operators as the profile says."""

    @abstractmethod
    def fix_flags(self, optimizer: Optimizer) -> None:
        """Bring the optimiser's implementation flags to the profile's one canonical sequence."""

    def stepping(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Where the optimiser takes its step."""
        return nullcontext()

    def recording(self, thresholds: Mapping[str, float]) -> Rounding | None:
        """The trainer's decisions for one step, if the profile has any."""
        return None

    def following(self, thresholds: Mapping[str, float], log: bytes | None) -> Rounding | None:
        """The decisions of a step's log.

        Raises:
            TranscriptError: there is a log and should be none, or the other way round.
        """
        if log is not None:
            raise TranscriptError("rounding log", f"{self.name} numerics have none")
        return None

    def round_state(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027
        """Bring a state to the profile's own numbers, in place; for most it has them."""


class _NativeScope(Scope):
    def _take(self, stream: KeyStream) -> None:
        torch.manual_seed(stream.next_key())


class Native(Profile):
    """The machine's own kernels: no promise beyond the same machine and software."""

    name = "native"
    version = 1

    @contextmanager
    def _enter(self, device: torch.device, rounding: Rounding | None) -> Generator[Scope]:
        with new_tensors_on(device):
            yield _NativeScope()

    def fix_flags(self, optimizer: Optimizer) -> None:
        """The user's flags stand."""


class _ExactScope(Scope):
    def __init__(self, mode: ExactMode) -> None:
        self._mode = mode

    def _stream(self, seed: int, purpose: str, step: int, calls: range) -> KeyStream:
        return JobStream(seed, purpose, step, calls)

    def _take(self, stream: KeyStream) -> None:
        self._mode.stream = stream


class Exact(Profile):
    """Arithmetic without an order: the same bits on every machine.

    `exact` gives the operands of contractions up to 22 bits, `exact14` up to 14: faster where the
    processor multiplies bytes, and more accurate than TF32.
    """

    version = 2
    attention: Sequence[SDPBackend] = (SDPBackend.MATH,)

    def __init__(self, name: str, grade: int = 22) -> None:
        self.name = name
        self.grade = grade  # bits

    def make_mode(self, device: torch.device, rounding: Rounding | None) -> ExactMode:
        """The mode that computes every operator, on the CPU and on `device`."""
        from veritrain.numerics.rules.exact_mode import ExactMode  # loads numba

        return ExactMode(device)

    @contextmanager
    def _enter(self, device: torch.device, rounding: Rounding | None) -> Generator[Scope]:
        from veritrain.numerics.patches.threads import no_operators_in_new_threads
        from veritrain.numerics.rules.contraction import grade

        mode = self.make_mode(device, rounding)
        # Fused kernels hide their operators; the composite forms show them.
        with (
            ieee_arithmetic(), sdpa_kernel(list(self.attention)), no_fused_layers(),
            no_compiled_code(), plain_scripts(), no_export(), correctly_rounded_math(),
            exact_distributions(), no_operators_in_new_threads(), grade(self.grade),
            on_device(device), mode,
        ):  # fmt: skip
            yield _ExactScope(mode)

    def fix_flags(self, optimizer: Optimizer) -> None:
        """SGD, Adam and AdamW take the fused update; others their plain loop.

        Raises:
            UnsupportedOperatorError: the plain loop computes powers through the C library.
        """
        if isinstance(optimizer, Adafactor):
            raise UnsupportedOperatorError(
                "optimizer Adafactor computes powers of numbers that are not its hyper-parameters"
                " in Python, through the C library, which differs between machines; use Adam,"
                " AdamW, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Rprop, SGD or ASGD"
            )
        fused = isinstance(optimizer, (SGD, Adam, AdamW))
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False
            if "fused" in group:
                group["fused"] = fused and not group["differentiable"]
        if isinstance(optimizer, SGD):
            optimizer.register_step_pre_hook(_choose_sgd_path)

    def stepping(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Powers of hyper-parameters round correctly."""
        return exact_hyperparameters(optimizer)


class Logged(Exact):
    """Vendor kernels in higher precision, rounded to a grid; where that is ambiguous, logged.

    Operators outside `logged.vendor` follow their exact rules. See docs/numerics_logged.md.
    """

    version = 1
    has_log = True

    def __init__(self, name: str, *, bits: int, compute: torch.dtype) -> None:
        """`bits`: significant bits of the target; `compute`: float64 or float32."""
        super().__init__(name)
        self.bits = bits
        self.compute = compute
        if compute == torch.float64:  # a fused kernel's errors are too large for less
            self.attention = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)

    @property
    def target(self) -> Target:
        """What a step computes in, and what it rounds to."""
        from veritrain.numerics.logged.rounding import Target  # loads numba

        if self.compute == torch.float64:
            return Target(bits=self.bits, unit=2.0**-53, depth=self.bits + 14)
        return Target(bits=self.bits, unit=2.0**-24, depth=self.bits + 9)

    def make_mode(self, device: torch.device, rounding: Rounding | None) -> ExactMode:
        """See `Exact.make_mode`."""
        from veritrain.numerics.logged.logged_mode import LoggedMode

        return LoggedMode(device, self.compute, rounding)

    def recording(self, thresholds: Mapping[str, float]) -> Rounding:
        """See `Profile.recording`."""
        from veritrain.numerics.logged.rounding import Recording

        return Recording(self.target, Thresholds(thresholds))

    def following(self, thresholds: Mapping[str, float], log: bytes | None) -> Rounding:
        """See `Profile.following`."""
        from veritrain.numerics.logged.rounding import Following

        if log is None:
            raise TranscriptError("rounding log", f"missing: {self.name} numerics have one")
        return Following(self.target, Thresholds(thresholds), log)

    def round_state(self, tensors: Iterable[Tensor]) -> None:
        """Round float32 tensors to the target."""
        from veritrain.numerics.logged.grid import round_in_place

        if self.bits < FLOAT32_BITS:
            for tensor in tensors:
                if tensor.dtype == torch.float32:
                    round_in_place(tensor, self.bits)


def _choose_sgd_path(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Leave the fused update for a step in which only some parameters have a momentum buffer.

    Its one flag "first step" is for all parameters; a parameter whose first gradient comes later
    than the others' takes the plain loop, which is the same sequence of operations.
    """
    for group in optimizer.param_groups:
        known = {
            optimizer.state[p].get("momentum_buffer") is not None if p in optimizer.state else False
            for p in group["params"]
            if p.grad is not None
        }
        mixed = group["momentum"] != 0 and len(known) > 1
        group["fused"] = not mixed and not group["differentiable"]


_PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Native(),
        Exact("exact", 22),
        Exact("exact14", 14),
        Logged("logged", bits=FLOAT32_BITS, compute=torch.float64),
        Logged("logged-bf16", bits=8, compute=torch.float32),
        # the published rounding amounts b_r: 32 - b_r bits fewer
        *(Logged(f"logged-b{b}", bits=b - 8, compute=torch.float64) for b in range(23, 32)),
    )
}


def resolve(name: str) -> Profile:
    """The profile called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in _PROFILES:
        raise UsageError(f"numerics {name!r} is unknown; choose one of {sorted(_PROFILES)}")
    return _PROFILES[name]
