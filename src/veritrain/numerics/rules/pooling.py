"""Pooling: averages are exact window sums; gradients that overlap are added exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics import pooling
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule


@rule(Kind.SUM, aten.max_pool2d_with_indices_backward.default)
def _max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    require_float32("max_pool2d_backward", grad)
    planes = math.prod(x.shape[:-2])
    area = x.shape[-2] * x.shape[-1]
    if not planes:
        return torch.zeros_like(x)
    places = indices.reshape(planes, -1)
    if list(stride or kernel_size) == list(kernel_size) and set(dilation) == {1}:
        # windows do not overlap: each input receives at most one gradient
        spread = torch.zeros((planes, area), dtype=torch.float32).scatter_(
            1, places, grad.reshape(planes, -1)
        )
        return spread.view(x.shape)
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= area):
        raise IndexError(f"max_pool2d_backward: index outside [0, {area})")
    added = pooling.scatter(
        grad.reshape(planes, -1).contiguous(), places.contiguous(), (x.shape[-2], x.shape[-1])
    )
    return added.view(x.shape)


def _check_average(
    padding: tuple[int, int], ceil_mode: bool, count_include_pad: bool, divisor_override: int | None
) -> None:
    if ceil_mode or divisor_override is not None or (any(padding) and not count_include_pad):
        raise UnsupportedOperatorError(
            "avg_pool2d with ceil_mode, divisor_override or count_include_pad=False has no exact rule"
        )


def _pair(values: list[int]) -> tuple[int, int]:
    return (values[0], values[-1])


@rule(Kind.SUM, aten.avg_pool2d.default)
def _avg_pool2d(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: list[int] | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    require_float32("avg_pool2d", x)
    kernel, zeros = _pair(kernel_size), _pair(padding or [0])
    _check_average(zeros, ceil_mode, count_include_pad, divisor_override)
    planes = x.reshape(-1, *x.shape[-2:]).contiguous()
    result = pooling.average(planes, kernel, _pair(stride or kernel_size), zeros)
    return result.view(*x.shape[:-2], *result.shape[1:])


@rule(Kind.SUM, aten.avg_pool2d_backward.default)
def _avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    require_float32("avg_pool2d_backward", grad)
    kernel, zeros = _pair(kernel_size), _pair(padding)
    _check_average(zeros, ceil_mode, count_include_pad, divisor_override)
    shares = (grad / math.prod(kernel)).reshape(-1, *grad.shape[-2:]).contiguous()
    extent = x.shape[-2], x.shape[-1]
    added = pooling.spread(shares, extent, kernel, _pair(stride or kernel_size), zeros)
    return added.view(x.shape)


def _adaptive_kernel(x: Tensor, output_size: list[int]) -> list[int]:
    kernel = [size // out for size, out in zip(x.shape[-2:], output_size, strict=True)]
    if any(k * out != size for k, out, size in zip(kernel, output_size, x.shape[-2:], strict=True)):
        raise UnsupportedOperatorError(
            f"adaptive_avg_pool2d from {tuple(x.shape[-2:])} to {tuple(output_size)}: exact numerics "
            "needs sizes that divide"
        )
    return kernel


@rule(Kind.SUM, aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(x: Tensor, output_size: list[int]) -> Tensor:
    kernel = _adaptive_kernel(x, output_size)
    return _avg_pool2d(x, kernel, kernel)


@rule(Kind.SUM, aten._adaptive_avg_pool2d_backward.default)
def _adaptive_avg_pool2d_backward(grad: Tensor, x: Tensor) -> Tensor:
    kernel = _adaptive_kernel(x, list(grad.shape[-2:]))
    return _avg_pool2d_backward(grad, x, kernel, kernel, [0, 0], False, True, None)
