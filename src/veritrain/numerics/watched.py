"""Numerics with a watcher between the step and its operators: for traces, and for checking a job.

The watcher gets each operator with what computes it. It may look at the operands before and at the
results after, or give results of its own and compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.numerics.logged.logged_mode import LoggedMode
from veritrain.numerics.logged.rounding import Rounding
from veritrain.numerics.profile import Exact, Logged
from veritrain.numerics.rules.exact_mode import ExactMode

Compute = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]


class Watcher(Protocol):
    """What stands between a step and its operators."""

    def operator(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Compute
    ) -> Any:
        """The results of an operator, by `compute(func, args, kwargs)` or otherwise."""

    def round_state(
        self, tensors: Iterable[Tensor], round_state: Callable[[Iterable[Tensor]], None]
    ) -> None:
        """The end of a step: `round_state(tensors)` brings the state to the numbers of the
        numerics."""


class Watched(Exact):
    """`exact` or `logged` whose operators pass through a watcher."""

    def __init__(self, plain: Exact, watcher: Watcher) -> None:
        super().__init__(plain.name, plain.grade)
        self.version = plain.version
        self.attention = plain.attention
        self._plain = plain
        self._watcher = watcher

    def make_mode(self, device: torch.device, rounding: Rounding | None) -> ExactMode:
        """See `Exact.make_mode`."""
        if isinstance(self._plain, Logged):
            mode: _WatchedExactMode = _WatchedLoggedMode(device, self._plain.compute, rounding)
        else:
            mode = _WatchedExactMode(device)
        mode.watcher = self._watcher
        return mode

    def recording(self, thresholds: Mapping[str, float]) -> Rounding | None:
        """See `Profile.recording`."""
        return self._plain.recording(thresholds)

    def following(self, thresholds: Mapping[str, float], log: bytes | None) -> Rounding | None:
        """See `Profile.following`."""
        return self._plain.following(thresholds, log)

    def round_state(self, tensors: Iterable[Tensor]) -> None:
        """See `Profile.round_state`."""
        changing = [x for x in tensors if x.dtype == torch.float32]
        with _disable_current_modes():
            self._watcher.round_state(changing, self._plain.round_state)


class _WatchedExactMode(ExactMode):
    watcher: Watcher

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `ExactMode.compute`."""
        return self.watcher.operator(func, args, kwargs, super().compute)


class _WatchedLoggedMode(_WatchedExactMode, LoggedMode):
    """The same for `logged`."""
