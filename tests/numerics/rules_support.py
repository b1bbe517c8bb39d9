"""What the tests of the operator rules share: the profile, bit patterns, the float64 oracle.

`check` runs a function of tensors under exact numerics, with its gradient, and asks four things:
float64 PyTorch agrees within the error that the definitions imply; other memory layouts of the same
values give the same bits; the pretended device, and a GPU where there is one, gives the same bits
or refuses an operator; no input was changed.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress

import numpy as np
import torch
from pretend_device import PLACE, Moving, here, pretended
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics import CPU, resolve
from veritrain.numerics.cpu import products

# Inputs are at most 3 in magnitude and inner lengths at most 128, so operands of a contraction have
# at least 23 bits: an error of 2**-23 of the slice's largest value each, 128 * 2 * 3 * 3 * 2**-23 =
# 2.7e-4 in the very worst case of all errors alike; sums and elementwise operations are far better.
TOLERANCE = 3e-4

DEVICES = [PLACE] + [torch.device("cuda", 0)] * torch.cuda.is_available()


def exact(step: int = 0, device: torch.device = CPU):
    return resolve("exact").active(seed=0, purpose="test", step=step, device=device)


def byte_products(bits: int):
    """The kernel of bytes, or float64's where this processor does not multiply bytes exactly."""
    return products.ByteProducts.of(bits) if products.bytes_are_exact() else products.float64


def pattern(x: Tensor) -> np.ndarray:
    """Bits of a tensor; NaNs are all alike (their payload is not defined)."""
    values = x.detach().contiguous().numpy()
    if not x.is_floating_point():
        return values
    words = values.view({4: np.uint32, 8: np.uint64}[values.itemsize])
    return np.where(np.isnan(values), words.dtype.type(0x7FC00000), words)


def same(x, y) -> None:
    """Equal in shape, type and every bit, also within tuples."""
    if isinstance(x, (list, tuple)):
        assert len(x) == len(y)
        for a, b in zip(x, y, strict=True):
            same(a, b)
    elif x is None or y is None:
        assert x is y
    else:
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_array_equal(pattern(x), pattern(y))


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal values of magnitude at most 3 * scale, float32."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).clip(-3, 3) * scale
    return torch.from_numpy(np.asarray(values, np.float32).reshape(shape))


def layouts(x: Tensor) -> list[Tensor]:
    """The same values in other memory layouts."""
    if not x.ndim or not x.is_floating_point():
        return []
    wide = torch.full((*x.shape[:-1], x.shape[-1] * 2 + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    found = [wide[..., 1::2]]
    if x.ndim > 1:
        found.append(x.transpose(0, -1).contiguous().transpose(0, -1))
    if x.ndim == 4:
        found.append(x.contiguous(memory_format=torch.channels_last))
    return found


def _outputs(result) -> list[Tensor]:
    results = result if isinstance(result, (list, tuple)) else [result]
    return [part for part in results if isinstance(part, Tensor)]


def evaluate(f, inputs) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs of f, and the gradient of a fixed linear function of them for each float input."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = _outputs(f(*leaves))
    rooted = [y for y in outputs if y.requires_grad]
    if not rooted:
        return outputs, []
    weights = [numbers(i, *y.shape).to(y.dtype) for i, y in enumerate(rooted)]
    wanted = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad(rooted, wanted, weights, allow_unused=True)
    return [y.detach() for y in outputs], list(grads)


def close(got: list, want: list, tolerance: float) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert a.shape == b.shape
        a, b = a.double(), b.double()
        assert torch.equal(a.isnan(), b.isnan())
        finite = b.isfinite()
        assert torch.equal(a[~finite & ~b.isnan()], b[~finite & ~b.isnan()])
        if finite.any():
            scale = max(1.0, float(b[finite].abs().max()))
            error = float((a[finite] - b[finite]).abs().max())
            assert error <= tolerance * scale, f"error {error} at scale {scale}"


def check(f, *inputs: Tensor, tolerance: float = TOLERANCE, devices=DEVICES) -> None:
    """See the module's docstring."""
    before = [x.clone() for x in inputs]
    with exact():
        got = evaluate(f, inputs)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    outputs, grads = evaluate(f, wide)
    close(got[0], outputs, tolerance)
    close(got[1], grads, tolerance)
    for variant in range(3):
        choices = [layouts(x) for x in inputs]
        if not any(len(choice) > variant for choice in choices):
            break
        other = [
            choice[variant] if len(choice) > variant else x
            for x, choice in zip(inputs, choices, strict=True)
        ]
        with exact():
            same(got, evaluate(f, other))
    for device in devices:
        with suppress(UnsupportedOperatorError):
            same(got, evaluate_on_device(f, inputs, device))
    same(before, list(inputs))


def evaluate_on_device(
    f, inputs, device: torch.device = PLACE
) -> tuple[list[Tensor], list[Tensor | None]]:
    """As `evaluate`, under exact numerics on a device, the pretended one unless another is given;
    results are on the CPU.

    Raises:
        UnsupportedOperatorError: an operator that the device refuses.
    """
    with pretended() if device == PLACE else nullcontext(), exact(device=device), Moving(device):
        outputs, grads = evaluate(f, [x.to(device) for x in inputs])
    return [here(y) for y in outputs], [y if y is None else here(y) for y in grads]
