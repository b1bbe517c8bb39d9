"""Learning-rate schedules that give every machine the same rates.

Schedulers compute in Python floats. Their `math.cos` and the like, and `**`, go to the C library, whose
last bit depends on its version and on the processor (it picks kernels with or without fused
multiply-add when it loads). Two remedies, both in `settled_rates`:

1. While a scheduler runs, `math.exp`, `log`, `pow`, `sin` and `cos` are correctly rounded.
   `math.sqrt` is so already (IEEE 754).
2. `**`, and functions that a job imported by name, cannot be reached. So what a scheduler may change
   (learning rate, momentum, betas) is rounded to 32 significant bits after it ran: two values that
   differ in their 53rd bit become one, but for one pair in 2**20.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import mpmath
import mpmath.libmp
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Far more than any double needs to decide how exp, log, sin, cos or pow rounds (about 120 bits).
_PRECISION_BITS = 400
_RATE_BITS = 32
_LARGEST_RATE = 2.0**1000  # no rate; rounding what is near the largest double could overflow
_SCHEDULED = {"lr", "momentum", "betas"}


@contextmanager
def settled_rates(optimizer: Optimizer) -> Generator[None]:
    """Within it a scheduler may change the optimiser's hyper-parameters; they settle at its end."""
    with correctly_rounded_math():
        yield
    for group in optimizer.param_groups:
        for key in _SCHEDULED & group.keys():
            group[key] = settle(group[key])


def settle_records(scheduler: LRScheduler) -> None:
    """Settle the last rates that a scheduler, and those it is made of, remember."""
    rates = getattr(scheduler, "_last_lr", None)
    if rates is not None:
        scheduler._last_lr = [settle(rate) for rate in rates]  # pyright: ignore[reportPrivateUsage]
    for part in getattr(scheduler, "_schedulers", ()):
        settle_records(part)


def settle_group(group: dict[str, Any]) -> None:
    """Settle every float among an optimiser group's hyper-parameters, as it is built: they too may
    have been computed with `**`."""
    for key in group.keys() - {"params"}:
        group[key] = settle(group[key])


def settle(value: Any) -> Any:
    """A float, or the floats of a tuple (Adam's betas), rounded half to even to 32 bits."""
    if isinstance(value, tuple):
        return tuple(settle(item) for item in value)
    if not isinstance(value, float) or not abs(value) < _LARGEST_RATE:
        return value
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, _RATE_BITS)), exponent - _RATE_BITS)


@contextmanager
def correctly_rounded_math() -> Generator[None]:
    """Within it, `math.exp`, `log`, `pow`, `sin` and `cos` round correctly.

    Schedulers compute learning rates in Python floats with `math.cos` and the like. These go to
    the C library, whose last bit depends on its version and on the processor (it picks kernels
    with or without fused multiply-add when it loads). The correctly rounded value is the one that
    every machine can agree on. `math.sqrt` is correctly rounded already (IEEE 754).
    """
    originals: dict[str, Callable[..., float]] = {
        name: getattr(math, name) for name in ("exp", "log", "pow", "sin", "cos")
    }
    refining: list[str] = []  # mpmath itself calls `math`: to it, the originals answer
    try:
        for name, original in originals.items():
            setattr(math, name, _rounded(name, original, refining))
        yield
    finally:
        for name, original in originals.items():
            setattr(math, name, original)


def _rounded(
    name: str, original: Callable[..., float], refining: list[str]
) -> Callable[..., float]:
    exact: Callable[..., Any] = getattr(mpmath, "power" if name == "pow" else name)

    def compute(*arguments: float) -> float:
        rough = original(*arguments)  # also raises what it raises, and settles 0, inf and NaN
        if refining or rough == 0 or not math.isfinite(rough):
            return rough
        if name == "log" and len(arguments) == 2:
            return compute(arguments[0]) / compute(arguments[1])  # as CPython defines log(x, base)
        refining.append(name)
        try:
            with mpmath.workprec(_PRECISION_BITS):
                value = exact(*(mpmath.mpf(argument) for argument in arguments))
                return mpmath.libmp.to_float(value._mpf_, rnd="n")
        finally:
            refining.pop()

    return compute
