"""Speed of contractions: each grade and kernel against PyTorch's float32 and float64 products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import interleaved, milliseconds, ratio
from veritrain.numerics.cpu import convolution, matmul, products
from veritrain.numerics.cpu.gather import Window
from veritrain.numerics.cpu.integers import FULL_GRADE, NARROW_GRADE, contraction_bits
from veritrain.numerics.cpu.product_kernel import ProductKernel

Row = dict[str, Any]

_PRODUCTS = (
    (4096, 576, 256), (512, 768, 3072), (512, 3072, 768), (2048, 768, 3072), (1024, 4608, 512),
    (512, 768, 50_257), (512, 50_257, 768),
)  # fmt: skip
_CONVOLUTIONS = (  # channels, outputs, size, kernel; batch 64
    (64, 64, 32, 3), (128, 128, 16, 3), (256, 256, 8, 3), (512, 512, 4, 3), (64, 256, 32, 1),
    (256, 64, 32, 1), (1024, 256, 8, 1),
)  # fmt: skip


def contraction() -> list[Row]:
    """Matrix products, then convolutions forward and backward."""
    return [_product_row(*shape) for shape in _PRODUCTS] + [
        _convolution_row(*shape) for shape in _CONVOLUTIONS
    ]


def _ways(
    inner: int, run: Callable[[int, ProductKernel | None], object]
) -> dict[str, Callable[[], object]]:
    """Both grades by the kernel that is chosen, and the full grade by each."""
    full, narrow = (contraction_bits(inner, grade) for grade in (FULL_GRADE, NARROW_GRADE))
    return {
        "exact": lambda: run(full, None),
        "exact14": lambda: run(narrow, None),
        "by float64": lambda: run(full, products.float64),
        "by bytes": lambda: run(full, products.ByteProducts.of(full)),
    }


def _row(name: str, functions: dict[str, Callable[[], object]]) -> Row:
    times = interleaved(functions, warmup=2, runs=9)
    return {
        "contraction": name,
        "fp32 ms": milliseconds(times["fp32"]),
        "fp64 / fp32": ratio(times, "fp64", "fp32")["median"],
        "exact / fp64": ratio(times, "exact", "fp64")["median"],
        "by float64 / fp64": ratio(times, "by float64", "fp64")["median"],
        "by bytes / fp64": ratio(times, "by bytes", "fp64")["median"],
        "exact / fp32": ratio(times, "exact", "fp32")["median"],
        "exact14 / fp32": ratio(times, "exact14", "fp32")["median"],
    }


def _product_row(m: int, k: int, n: int) -> Row:
    a, b = torch.randn(m, k), torch.randn(k, n)
    wide = a.double(), b.double()
    return _row(f"mm {m} x {k} x {n}", {
        "fp32": lambda: torch.mm(a, b),
        "fp64": lambda: torch.mm(*wide),
        **_ways(k, lambda bits, kernel: matmul.product(a, b, bits, kernel)),
    })  # fmt: skip


def _convolution_row(channels: int, outputs: int, size: int, kernel: int) -> Row:
    """All three products of a convolution and its gradients."""
    x, w = torch.randn(64, channels, size, size), torch.randn(outputs, channels, kernel, kernel)
    grad = torch.randn(64, outputs, size, size)
    pad = kernel // 2
    window = Window(kernel=(kernel, kernel), stride=(1, 1), padding=(pad, pad), dilation=(1, 1))

    def plain(x: Tensor, w: Tensor, grad: Tensor) -> None:
        x, w = x.requires_grad_(), w.requires_grad_()
        torch.autograd.grad(F.conv2d(x, w, padding=pad), (x, w), grad)

    def scaled(bits: int, kernel: ProductKernel | None) -> None:
        convolution.forward(x, w, window, 1, (size, size), bits, kernel)
        convolution.input_gradient(grad, w, window, 1, (size, size), bits, kernel)
        convolution.weight_gradient(grad, x, window, 1, bits, kernel)

    wide = x.double(), w.double(), grad.double()
    name = f"conv {kernel}x{kernel} {channels} to {outputs} at {size}x{size}"
    return _row(name, {
        "fp32": lambda: plain(x.detach(), w.detach(), grad),
        "fp64": lambda: plain(*wide),
        **_ways(64 * size * size, scaled),
    })  # fmt: skip
