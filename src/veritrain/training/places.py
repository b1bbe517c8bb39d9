"""Where in a job the code that runs now belongs: a module's path, or the name of a part.

Modules are followed by PyTorch's global forward hooks, which leave the model itself as it is. An
operator of the backward pass belongs to the module in which the forward pass made its autograd
node: nodes are numbered as they are made, so the numbers at which modules were entered and left
    tell which.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.optim import Optimizer

BACKWARD = "backward"
_OF = f"{BACKWARD} of "


class Places:
    """Follows one job; `name` gives the present place.

    The place is the path of the innermost module that runs ("encoder.layers.3.self_attn", "model"
    for the model itself, its class for a module that is not part of the model), else "backward of"
    such a place, else the part of the job that was set last.
    """

    def __init__(self) -> None:
        self._part = "job"
        self._after_loss = "step"
        self._model: nn.Module | None = None
        self._paths: dict[int, str] = {}
        self._running: list[str] = []  # modules, the outermost first
        self._numbers: list[int] = []  # autograd numbers at which the place changed
        self._places: list[str] = []  # and what it was from there on

    @property
    def name(self) -> str:
        """The present place."""
        if self._running:
            return self._running[-1]
        number = _backward_number()
        return self._part if number is None else self._backward(number)

    def enter(self, part: str) -> None:
        """From here on, what runs outside of modules belongs to `part`."""
        self._part = part
        self._running.clear()
        self._mark()

    def follow(self, model: nn.Module, optimizer: Optimizer, *, clips: bool) -> None:
        """Name the modules of a model by their paths, and notice when the optimiser runs."""
        self._model = model  # keeps the identities below alive
        self._paths = {id(part): path or "model" for path, part in model.named_modules()}
        self._after_loss = "gradient clipping" if clips else "step"
        optimizer.register_step_pre_hook(self._before_optimizer)
        optimizer.register_step_post_hook(self._after_optimizer)

    def watching(self, loss: Callable[[nn.Module, Any], Tensor]) -> Callable[..., Tensor]:
        """The loss function of the job, with its place noticed."""

        def watched(model: nn.Module, batch: Any) -> Tensor:
            self.enter("loss")
            value = loss(model, batch)
            self.enter(self._after_loss)
            return value

        return watched

    @contextmanager
    def hooked(self) -> Generator[None]:
        """Follow the modules that run inside of the context."""
        before = hooks.register_module_forward_pre_hook(self._push)
        after = hooks.register_module_forward_hook(self._pop, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before_optimizer(self, *_: object) -> None:
        self.enter("optimizer")

    def _after_optimizer(self, *_: object) -> None:
        self.enter("scheduler")

    def _push(self, module: nn.Module, *_: object) -> None:
        self._running.append(self._paths.get(id(module), type(module).__name__))
        self._mark()

    def _pop(self, *_: object) -> None:
        del self._running[-1:]  # nothing, where another hook refused the module before ours ran
        self._mark()

    def _mark(self) -> None:
        self._numbers.append(_next_number())
        self._places.append(self._running[-1] if self._running else self._part)

    def _backward(self, number: int) -> str:
        if number >= _next_number():  # a node that adds to a gradient has no number of its own
            return BACKWARD
        index = bisect_right(self._numbers, number) - 1
        return f"{_OF}{self._places[index]}" if index >= 0 else BACKWARD


def forward_place(name: str) -> str:
    """The place whose backward pass `name` is; any other place itself."""
    return name.removeprefix(_OF)


def _next_number() -> int:
    """The number of the next autograd node that this thread makes."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore


def _backward_number() -> int | None:
    """The number of the autograd node that is being evaluated, None outside of a backward pass."""
    node: Any = torch._C._current_autograd_node()  # pyright: ignore
    return None if node is None else int(node._sequence_nr())
