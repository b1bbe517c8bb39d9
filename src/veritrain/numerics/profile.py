"""Numerics profiles: what defines the bits of a step, and the context that puts it in force.

Inside `Profile.active(seed, purpose, step)` every torch operator follows the profile, and every random
number (torch, `random`, `numpy.random`) is a function of (seed, purpose, step, call). The caller's own
generators are as before when the context is left.
"""

from __future__ import annotations

import os
import random as python_random
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.backends import mha, nnpack
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from veritrain.errors import NumericsError, TranscriptError, UnsupportedOperatorError, UsageError
from veritrain.numerics import onednn
from veritrain.numerics.distributions import exact_distributions
from veritrain.numerics.entropy import no_entropy
from veritrain.numerics.generators import JobStream
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.numerics.random import Stream
from veritrain.numerics.scalars import correctly_rounded_math, exact_hyperparameters
from veritrain.numerics.scripts import no_export, plain_scripts

if TYPE_CHECKING:
    from veritrain.numerics.logged.rounding import Rounding, Target
    from veritrain.numerics.mode import ExactMode

CPU = torch.device("cpu")
FLOAT32_BITS = 24  # significant ones


class Scope(ABC):
    """A profile in force. `rekey` starts a new stream of random numbers without leaving it."""

    def rekey(self, *, seed: int, purpose: str, step: int) -> None:
        """Key all random numbers from here on by (seed, purpose, step, call).

        Args:
            seed: 0 <= seed < 2**256. purpose: what the numbers are for. step: counts from 0.
        """
        stream = self._stream(seed, purpose, step)
        python_random.seed(stream.next_key())
        np.random.seed(stream.next_key() % 2**32)
        self._take(stream)

    def _stream(self, seed: int, purpose: str, step: int) -> Stream:
        return Stream(seed, purpose, step)

    @abstractmethod
    def _take(self, stream: Stream) -> None:
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
    """One way to define a step's bits. `name` and `version` are written in a transcript's header."""

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
            _callers_generators_kept(),
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
    def canonicalise(self, optimizer: Optimizer) -> None:
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

    def settle(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027
        """Bring a state to the profile's own numbers, in place; for most it has them."""


class _NativeScope(Scope):
    def _take(self, stream: Stream) -> None:
        torch.manual_seed(stream.next_key())


class Native(Profile):
    """The machine's own kernels: no promise beyond the same machine and software."""

    name = "native"
    version = 1

    @contextmanager
    def _enter(self, device: torch.device, rounding: Rounding | None) -> Generator[Scope]:
        with _new_tensors_on(device):
            yield _NativeScope()

    def canonicalise(self, optimizer: Optimizer) -> None:
        """The user's flags stand."""


class _ExactScope(Scope):
    def __init__(self, mode: ExactMode) -> None:
        self._mode = mode

    def _stream(self, seed: int, purpose: str, step: int) -> Stream:
        return JobStream(seed, purpose, step)

    def _take(self, stream: Stream) -> None:
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
        from veritrain.numerics.mode import ExactMode  # loads numba

        return ExactMode(device)

    @contextmanager
    def _enter(self, device: torch.device, rounding: Rounding | None) -> Generator[Scope]:
        from veritrain.numerics.rules.contraction import grade
        from veritrain.numerics.threads import no_operators_in_new_threads

        mode = self.make_mode(device, rounding)
        # Fused kernels hide their operators; the composite forms show them.
        with (
            _ieee_arithmetic(), sdpa_kernel(list(self.attention)), _no_fused_layers(),
            _no_compiled_code(), plain_scripts(), no_export(), correctly_rounded_math(),
            exact_distributions(), no_operators_in_new_threads(), grade(self.grade),
            _on_device(device), mode,
        ):  # fmt: skip
            yield _ExactScope(mode)

    def canonicalise(self, optimizer: Optimizer) -> None:
        """SGD, Adam and AdamW take the fused update; others their plain loop.

        Raises:
            UnsupportedOperatorError: the plain loop computes powers through the C library.
        """
        if isinstance(optimizer, Adafactor):
            raise UnsupportedOperatorError(
                "optimizer Adafactor computes powers of numbers that are not its hyper-parameters in "
                "Python, through the C library, which differs between machines; use Adam, AdamW, "
                "NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop, Rprop, SGD or ASGD"
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
        from veritrain.numerics.logged.mode import LoggedMode

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

    def settle(self, tensors: Iterable[Tensor]) -> None:
        """Round float32 tensors to the target."""
        from veritrain.numerics.logged.grid import settle

        if self.bits < FLOAT32_BITS:
            for tensor in tensors:
                if tensor.dtype == torch.float32:
                    settle(tensor, self.bits)


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


@contextmanager
def _ieee_arithmetic() -> Generator[None]:
    """Refuse arithmetic that is not IEEE, before and after: `torch.set_flush_denormal(True)` makes it so.

    A thread takes the setting from the one that starts it and keeps it, so that PyTorch's are tried too,
    once for each number of them that this thread computes with.

    Raises:
        NumericsError: subnormal numbers are flushed to zero.
    """
    _require_subnormals(float(np.float32(2.0**-126) * np.float32(0.5)))
    threads = torch.get_num_threads()
    if getattr(_tried, "threads", None) != threads:
        smallest = torch.full((threads * _GRAIN,), 2.0**-126, dtype=torch.float32, device="cpu")
        _require_subnormals((smallest * 0.5).amin().item())
        _tried.threads = threads
    yield
    _require_subnormals(float(np.float32(2.0**-126) * np.float32(0.5)))


_GRAIN = 32_768  # values for which PyTorch takes one more thread
_tried = threading.local()


def _require_subnormals(value: float) -> None:
    if value == 0:
        raise NumericsError(
            "subnormal numbers are flushed to zero, by torch.set_flush_denormal(True) perhaps, and "
            "threads that were started meanwhile keep that: start a fresh process without it"
        )


@contextmanager
def _on_device(device: torch.device) -> Generator[None]:
    """What a step on a device needs besides the rules.

    Raises:
        UsageError: float64 products are emulated there.
    """
    if device.type == "cpu":
        yield
        return
    from veritrain.numerics.device.gate import Gate

    for name in _EMULATION:
        if os.environ.get(name, "0") != "0":
            raise UsageError(f"{name} makes float64 products inexact; unset it")
    with (
        _new_tensors_on(device),
        # cuDNN's operators have other names and no rules; without it PyTorch calls its own
        torch.backends.cudnn.flags(enabled=False),
        # one thread walks the graph, so that gradients of two places meet in the order of the CPU
        torch.autograd.set_multithreading_enabled(False),
        Gate(),
    ):
        yield


# cuBLAS: float64 products from narrower ones, with as many bits as it finds enough
_EMULATION = ("CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT")


def _new_tensors_on(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if device.type == "cpu" else device


@contextmanager
def _no_compiled_code() -> Generator[None]:
    """Run what `torch.compile` compiled as plain Python: its kernels hide their operators.

    Building an optimiser loads the compiler's front end, so it is loaded in every step that trains;
    where it is not, nothing can be compiled before `torch.compile` loads it, which takes seconds.
    """
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
            return
        original = torch.compile

        def compile_plain(*args: Any, **kwargs: Any) -> Any:
            torch.compile = original
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            return original(*args, **kwargs)

        torch.compile = compile_plain
        try:
            yield
        finally:
            torch.compile = original


@contextmanager
def _no_fused_layers() -> Generator[None]:
    """No LSTM of oneDNN's; no whole attention layer in one kernel, as in evaluation; no convolution of
    NNPACK's, whose sums are those of Winograd's algorithm: their errors have other bounds."""
    attention = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with onednn.without_layers(), nnpack.flags(enabled=False):
            yield
    finally:
        mha.set_fastpath_enabled(attention)


@contextmanager
def _callers_generators_kept() -> Generator[None]:
    """Give the caller's Python and numpy generators back afterwards, as they were."""
    python_state, numpy_state = python_random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        python_random.setstate(python_state)
        np.random.set_state(numpy_state)
