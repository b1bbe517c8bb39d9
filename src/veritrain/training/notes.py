"""What a step does, operator by operator: what was refused, and what took time, by place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from veritrain.errors import NumericsError
from veritrain.job.loading.installed import is_installed
from veritrain.training.check_report import Cost, RefusedOperator, remedy
from veritrain.training.places import Places, forward_place

_SHOWN_COSTS = 8
_SHOWN_TENSORS = 3
_PACKAGE = Path(__file__).parents[1]
_OBSERVERS = (Path(__file__), _PACKAGE / "numerics")


class _Costs:
    """Calls and seconds by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, float]] = {}

    def add(self, name: str, seconds: float) -> None:
        calls, total = self._sums.get(name, (0, 0.0))
        self._sums[name] = (calls + 1, total + seconds)

    def largest(self) -> tuple[Cost, ...]:
        """The longest first."""
        costs = [Cost(name=name, calls=n, seconds=s) for name, (n, s) in self._sums.items()]
        return tuple(sorted(costs, key=lambda cost: -cost.seconds)[:_SHOWN_COSTS])


class Notes:
    """An observer that keeps, by operator and place, what was refused and what took time."""

    def __init__(self, places: Places) -> None:
        self.operators = _Costs()
        self.places = _Costs()
        self.refusals: dict[tuple[str, str, str], RefusedOperator] = {}
        self._where = places

    def computed(self, operator: str, seconds: float) -> None:
        self.operators.add(operator, seconds)
        self.places.add(forward_place(self._where.name), seconds)

    def refused(self, operator: str, values: Sequence[object], error: NumericsError) -> None:
        where = self._where.name
        key = (operator, where, remedy(operator, error))
        known = self.refusals.get(key)
        if known is not None:
            self.refusals[key] = replace(known, times=known.times + 1)
            return
        self.refusals[key] = RefusedOperator(
            operator=operator,
            where=where,
            line=_users_line(),
            arguments=_described(values),
            times=1,
            error=type(error)(str(error)),  # a traceback would keep every tensor of the step
        )


def merged(steps: list[Notes]) -> tuple[RefusedOperator, ...]:
    """What was refused in any step, each with its count in the first step that it was met in."""
    found: dict[tuple[str, str, str], RefusedOperator] = {}
    for notes in steps:
        for key, refusal in notes.refusals.items():
            found.setdefault(key, refusal)
    return tuple(found.values())


def _users_line() -> str | None:
    """`FILE:LINE` of the job's own code that runs now; None where Veritrain itself runs PyTorch."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and _is_within(frame, _OBSERVERS):
        frame = frame.f_back
    while frame is not None and not _is_within(frame, (_PACKAGE,)):
        name = frame.f_code.co_filename
        if not name.startswith("<") and not is_installed(Path(name)):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _is_within(frame: FrameType, places: tuple[Path, ...]) -> bool:
    file = Path(frame.f_code.co_filename)
    return any(file.is_relative_to(place) for place in places)


def _described(values: Sequence[object]) -> str:
    """dtype, shape and unusual layout of the first few tensors among the arguments."""
    flat = [x for value in values for x in (value if isinstance(value, list | tuple) else [value])]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    return ", ".join(
        f"{'' if x.layout is torch.strided else f'{x.layout} '}{x.dtype}{list(x.shape)}"
        for x in tensors[:_SHOWN_TENSORS]
    ).replace("torch.", "")
