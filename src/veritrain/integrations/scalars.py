"""What every writer says of a step, and how it finds its library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from veritrain.errors import UsageError

if TYPE_CHECKING:
    from veritrain.training.callbacks import StepReport


def scalars(report: StepReport) -> dict[str, float]:
    """The numbers of one step by name: `loss`, `rate` (`rate/0`, `rate/1`, … of several parameter
    groups), and the seconds that it took."""
    rates = {f"rate/{index}": rate for index, rate in enumerate(report.rates)}
    if len(report.rates) == 1:
        rates = {"rate": report.rates[0]}
    return {
        "loss": report.loss,
        **rates,
        "seconds/batch": report.batch_seconds,
        "seconds/step": report.step_seconds,
        "seconds/record": report.record_seconds,
    }


def library(name: str, extra: str) -> Any:
    """A library that is an optional extra of this package.

    Raises:
        UsageError: it cannot be loaded; says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{extra} cannot be loaded ({error}); install it: pip install 'veritrain[{extra}]'"
        ) from None
