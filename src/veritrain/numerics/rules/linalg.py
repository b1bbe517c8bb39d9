"""Factorisations: the QR that orthogonal initialisation needs (docs/numerics.md, "QR")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veritrain.numerics.cpu import elementary
from veritrain.numerics.rules.sums import reduce_sum
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule

_LARGEST_SHIFT = 120  # its power of two is a float32 number


@rule(Kind.COMPOSITE, aten.linalg_qr.default)
def _qr(a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    require_float32("linalg_qr", a)
    rows, columns = a.shape[-2:]
    kept = rows if mode == "complete" else min(rows, columns)
    count = math.prod(a.shape[:-2])
    factors = [_qr_of_one(part, kept) for part in a.reshape(count, rows, columns)]
    q = torch.stack([q for q, _ in factors]) if factors else a.new_empty(0, rows, kept)
    r = torch.stack([r for _, r in factors]) if factors else a.new_empty(0, kept, columns)
    q, r = q.view(*a.shape[:-2], rows, kept), r.view(*a.shape[:-2], kept, columns)
    return (q.new_empty(0), r) if mode == "r" else (q, r)


def _qr_of_one(a: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Householder's reflections of a (M, N): q (M, kept), r (kept, N)."""
    shift = _shift(a)
    r = a * 2.0**-shift
    reflections: list[tuple[Tensor, Tensor]] = []
    for j in range(min(a.shape)):
        normal = r[j:, j].clone()
        first = normal[0].clone()
        length = elementary.apply("sqrt", reduce_sum(normal * normal, None))
        done = (normal[1:] == 0).all()  # below the diagonal nothing is left
        corner = torch.where(done, first, torch.where(first < 0, length, -length))
        normal[0] = first - corner
        square = reduce_sum(normal * normal, None)
        scaled = torch.where(done, 0.0, normal * (2 / square))
        reflections.append((normal, scaled))
        _reflect(r[j:, j + 1 :], normal, scaled)
        r[j, j] = corner
        r[j + 1 :, j] = 0.0
    q = torch.eye(a.shape[0], kept, dtype=torch.float32)
    for j, (normal, scaled) in reversed(list(enumerate(reflections))):
        _reflect(q[j:, j:], normal, scaled)
    return q, r[:kept] * 2.0**shift


def _reflect(x: Tensor, normal: Tensor, scaled: Tensor) -> None:
    """x - scaled * (normal^T x), in place."""
    x -= scaled[:, None] * reduce_sum(normal[:, None] * x, [0])


def _shift(a: Tensor) -> int:
    """The exponent of the largest magnitude, so that squares stay in range."""
    top = float(a.abs().max()) if a.numel() else 0.0
    if not math.isfinite(top):
        return 0
    return min(max(math.frexp(top)[1], -_LARGEST_SHIFT), _LARGEST_SHIFT)
