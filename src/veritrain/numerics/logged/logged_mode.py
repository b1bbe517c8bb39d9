"""The dispatch mode of `logged` numerics: vendor kernels in higher precision, rounded to a shared
grid.

An operator of `vendor.VENDOR` runs as PyTorch's own kernel on operands of the computing precision;
its results are rounded as the step's `Rounding` decides. All others follow their exact rules, so
whatever `exact` covers is covered, and nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.errors import UsageError
from veritrain.numerics.logged.rounding import Rounding, Tensors
from veritrain.numerics.logged.vendor import VENDOR, Call, Vendor
from veritrain.numerics.platform import onednn
from veritrain.numerics.platform.devices import CPU
from veritrain.numerics.rules.exact_mode import ExactMode, refuse_recording


class LoggedMode(ExactMode):
    """Rounds what vendor operators give by `rounding`; without one, every operator is exact.

    Args:
        compute: dtype in which vendor operators run, float64 or float32.

    Raises:
        UsageError: another device than the CPU, whose kernels have no scales here.
    """

    def __init__(
        self, device: torch.device, compute: torch.dtype, rounding: Rounding | None
    ) -> None:
        if device.type != "cpu":
            raise UsageError(f"logged numerics compute on the CPU, not on {device}")
        super().__init__(device)
        self._compute = compute
        self._is_wide = compute == torch.float64
        self._rounding = rounding

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator by the vendor's kernel, or by its exact rule."""
        refuse_recording(func)
        vendor = VENDOR.get(func)
        if vendor is None or self._rounding is None or (vendor.wide and not self._is_wide):
            return super().compute(func, args, kwargs)
        arguments = _by_name(func, args, kwargs)
        if not _is_plain(vendor, arguments):
            return super().compute(func, args, kwargs)
        return self._by_vendor(func, vendor, arguments, self._rounding)

    def _by_vendor(
        self, func: OpOverload, vendor: Vendor, arguments: dict[str, Any], rounding: Rounding
    ) -> Any:
        """Run the kernel and round all that it computed."""
        wide = {name: self._wide(value, name in vendor.writes) for name, value in arguments.items()}
        if rounding.reordered and vendor.reordered is not None:
            wide = vendor.reordered(wide)
        with onednn.products():
            found = func(**wide)
        single = isinstance(found, Tensor)
        results: list[Any] = [found] if single else list(found)
        call = Call(arguments, results)
        for place, scale, growth in vendor.results(call):
            if isinstance(results[place], Tensor) and results[place].numel():
                of = str(func), f"result {place}", vendor.name
                results[place] = _round(rounding, results[place], of, scale, growth)
        for name, scale_of in vendor.writes.items():
            if (target := arguments[name]) is not None:
                growth = math.sqrt(call.size("input") // target.numel())
                of = str(func), name, vendor.name
                target.copy_(_round(rounding, wide[name], of, scale_of(call), growth))
        return results[0] if single else tuple(results)

    def _wide(self, value: Any, is_written: bool) -> Any:
        """An argument in the computing precision; what is written to is a copy."""
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            return value.to(self._compute, copy=is_written)
        return self._compute if value is torch.float32 else value


def _round(
    rounding: Rounding, values: Tensor, of: tuple[str, str, str], scale: float | None, growth: float
) -> Tensor:
    """Values of the computing precision as float32 on the grid; `of`: operator, result and class.

    In their own memory where they are float32 already: fresh memory costs more than rounding.
    """
    values = values.detach().contiguous()
    is_wide = values.dtype != torch.float32
    out = torch.empty(values.shape, dtype=torch.float32) if is_wide else values
    operator, result, kind = of
    rounding.round(
        Tensors(
            operator=operator,
            result=result,
            kind=kind,
            scale=scale,
            growth=growth,
            values=values.numpy().reshape(-1),
            out=out.numpy().reshape(-1),
        )
    )
    return out


def _by_name(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call, with the defaults of those that are not given."""
    schema = func._schema.arguments  # pyright: ignore[reportPrivateUsage]
    given = dict(zip((argument.name for argument in schema), args, strict=False))
    return {
        argument.name: given.get(argument.name, kwargs.get(argument.name, argument.default_value))
        for argument in schema
    }


def _is_plain(vendor: Vendor, arguments: dict[str, Any]) -> bool:
    """Whether the vendor's kernel is meant: float32 on the CPU, nothing empty."""
    if vendor.when is not None and not arguments[vendor.when]:
        return False
    if any(isinstance(v, torch.dtype) and v != torch.float32 for v in arguments.values()):
        return False
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return bool(floating) and all(
        tensor.dtype == torch.float32 and tensor.layout == torch.strided and tensor.numel() > 0
        and tensor.device == CPU
        for tensor in floating
    )  # fmt: skip
