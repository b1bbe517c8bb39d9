"""Numerics with someone looking on, for checking a job and never for training.

An observed profile computes as its plain twin does and tells an observer about each operator. Where
the plain one would refuse an operator, it tells the observer so and goes on with PyTorch's own
kernel: what is computed from there on has no defined bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.optim import Optimizer

from veritrain.errors import NumericsError
from veritrain.numerics.logged.rounding import Rounding
from veritrain.numerics.platform.operator_mode import OperatorMode
from veritrain.numerics.profile import Exact, Native, Scope, resolve
from veritrain.numerics.watched import Compute, Watched

_SHOWN_CHARS = 120  # of PyTorch's own message, which may list every backend


class Observer(Protocol):
    """What is told of each operator, in the order in which they run."""

    def computed(self, operator: str, seconds: float) -> None:
        """An operator ran, by its rule or not, and took so long."""

    def refused(self, operator: str, values: Sequence[object], error: NumericsError) -> None:
        """An operator (or the class of an optimiser) that the plain numerics refuse."""


class Indifferent:
    """An observer that keeps nothing: operators are told to nobody and never refused."""

    def computed(self, operator: str, seconds: float) -> None:
        """See `Observer`."""

    def refused(self, operator: str, values: Sequence[object], error: NumericsError) -> None:
        """See `Observer`."""


class _Telling:
    """The watcher that tells an observer, and never refuses."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def operator(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        """See `Watcher.operator`."""
        start = perf_counter()
        refusal: NumericsError | None = None
        result: Any = None
        try:
            result = compute(func, args, kwargs)
        except NumericsError as error:
            refusal = error
        if refusal is not None:
            self.observer.refused(str(func), (*args, *kwargs.values()), refusal)
            result = _natively(func, args, kwargs)
        self.observer.computed(str(func), perf_counter() - start)
        return result

    def round_state(
        self, tensors: Iterable[Tensor], round_state: Callable[[Iterable[Tensor]], None]
    ) -> None:
        """See `Watcher.round_state`."""
        round_state(tensors)


class ObservedExact(Watched):
    """`exact` or `logged` that tells and never refuses; `observer` may be replaced between two
    uses."""

    def __init__(self, plain: Exact, observer: Observer) -> None:
        self._telling = _Telling(observer)
        super().__init__(plain, self._telling)

    @property
    def observer(self) -> Observer:
        """Who is told."""
        return self._telling.observer

    @observer.setter
    def observer(self, observer: Observer) -> None:
        self._telling.observer = observer

    def fix_flags(self, optimizer: Optimizer) -> None:
        """As `Exact`; a refused optimiser keeps its own flags."""
        try:
            super().fix_flags(optimizer)
        except NumericsError as error:
            self.observer.refused(type(optimizer).__name__, (), error)


class ObservedNative(Native):
    """`native` that tells; `observer` may be replaced between two uses."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    @contextmanager
    def _enter(self, device: torch.device, rounding: Rounding | None) -> Generator[Scope]:
        with super()._enter(device, rounding) as scope, _ObservedNativeMode(self.observer):
            yield scope


def observed(name: str, observer: Observer) -> ObservedExact | ObservedNative:
    """The observed twin of the profile called `name`."""
    plain = resolve(name)
    return ObservedExact(plain, observer) if isinstance(plain, Exact) else ObservedNative(observer)


def _natively(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A refused operator by PyTorch's own kernel.

    Raises:
        NumericsError: there is none for these arguments, so that nothing after it can be seen.
    """
    try:
        return func(*args, **kwargs)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:_SHOWN_CHARS]}"
        raise NumericsError(
            f"the refused operator {func} cannot be computed by PyTorch either ({reason}), so what "
            "comes after it was not looked at"
        ) from error


class _ObservedNativeMode(OperatorMode):
    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `OperatorMode`."""
        start = perf_counter()
        result = func(*args, **kwargs)
        self._observer.computed(str(func), perf_counter() - start)
        return result
