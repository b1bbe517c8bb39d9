"""Learning-rate schedules that give every machine the same rates.

Schedulers compute in Python floats (numerics/patches/exact_floats.py says why these differ). Two
remedies, both in `rounded_rates`:

1. While a scheduler runs, the functions of `math` are correctly rounded.
2. `**`, and functions that a job imported by name, cannot be reached. So what a scheduler may
   change (learning rate, momentum, betas) is rounded to 32 significant bits after it ran: two
   values that differ in their 53rd bit become one, but for one pair in 2**20.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from veritrain.numerics.patches.exact_floats import correctly_rounded_math

_RATE_BITS = 32
_LARGEST_RATE = 2.0**1000  # no rate; rounding what is near the largest double could overflow
_SCHEDULED = {"lr", "momentum", "betas"}


@contextmanager
def rounded_rates(optimizer: Optimizer) -> Generator[None]:
    """Within it a scheduler may change the optimiser's hyper-parameters. They are rounded at its
    end."""
    with correctly_rounded_math():
        yield
    for group in optimizer.param_groups:
        for key in _SCHEDULED & group.keys():
            group[key] = round_rate(group[key])


def round_records(scheduler: LRScheduler) -> None:
    """Round the last rates that a scheduler, and those it is made of, remember."""
    rates = getattr(scheduler, "_last_lr", None)
    if rates is not None:
        scheduler._last_lr = [round_rate(rate) for rate in rates]  # pyright: ignore[reportPrivateUsage]
    for part in getattr(scheduler, "_schedulers", ()):
        round_records(part)


def round_group(group: dict[str, Any]) -> None:
    """Round every float among an optimiser group's hyper-parameters, as it is built: they too may
    have been computed with `**`."""
    for key in group.keys() - {"params"}:
        group[key] = round_rate(group[key])


def round_rate(value: Any) -> Any:
    """A float, or the floats of a tuple or list (Adam's betas), rounded half to even to 32 bits."""
    if isinstance(value, (tuple, list)):
        return type(value)(round_rate(item) for item in value)
    if not isinstance(value, float) or not abs(value) < _LARGEST_RATE:
        return value
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, _RATE_BITS)), exponent - _RATE_BITS)
