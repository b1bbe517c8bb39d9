"""The published method (Optimistic Verifiable Training), for comparison: float64 with rounding
hooks.

The model trains in float64. The output of every leaf module, and the gradient of its input, is
rounded to the float32 grid (rounding amount 32) and goes on in float64; for each value the trainer
logs whether it lies near a rounding boundary and to which side it went, five such decisions to the
byte. What follows of the method (the auditor's copying of decisions, the adaptive threshold) is not
part of a training step's cost. Source: the paper's Algorithm 1, with its sample threshold for
convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# of a float32 unit in the last place: closer to a boundary than 0.5 - THRESHOLD is logged
THRESHOLD = 0.295
_POWERS = (1, 3, 9, 27, 81)


class Log:
    """The rounding log of one step: packed decisions, one array for each rounded tensor."""

    def __init__(self) -> None:
        self.packed: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Of the whole log."""
        return sum(part.numel() for part in self.packed)

    def round(self, x: Tensor) -> Tensor:
        """`x` rounded to float32 and back, with its decisions logged."""
        rounded = x.float().double()
        unit = _units(rounded)
        error = x - rounded
        near = error.abs() > THRESHOLD * unit
        decision = torch.where(near, torch.where(error > 0, 2, 1), 0).to(torch.uint8).view(-1)
        self.packed.append(_pack(decision))
        return rounded


def _units(x: Tensor) -> Tensor:
    """2**(exponent - 23) of float64 values, from their exponent bits."""
    exponent = x.view(torch.int64) & 0x7FF0000000000000
    return exponent.view(torch.float64) * 2.0**-23


def _pack(decision: Tensor) -> Tensor:
    """Five decisions of three kinds in each byte."""
    padded = nn.functional.pad(decision, (0, -len(decision) % 5)).view(-1, 5)
    packed = torch.zeros(len(padded), dtype=torch.uint8)
    for place, power in enumerate(_POWERS):
        packed += padded[:, place] * power
    return packed


def hooked(model: nn.Module) -> tuple[nn.Module, Log]:
    """The model in float64 with hooks on every leaf module, and the log that they write."""
    model, log = model.double(), Log()

    def forward(module: nn.Module, inputs: Any, output: Any) -> Any:
        return log.round(output) if _is_float64(output) else output

    def backward(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        return tuple(log.round(g) if _is_float64(g) else g for g in inputs)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(forward)
            module.register_full_backward_hook(backward)
    return model, log


def _is_float64(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64
