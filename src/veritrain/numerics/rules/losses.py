"""Losses: differences and selections in float32, sums exact (docs/numerics.md, "Losses")."""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.errors import NumericsError
from veritrain.numerics.cpu import elementary
from veritrain.numerics.rules.sums import reduce_sum
from veritrain.numerics.rules.table import Kind, aten, refuse, require_float32, rule

_NONE, _MEAN, _SUM = 0, 1, 2  # PyTorch's reduction codes


def _reduce(losses: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return losses
    summed = reduce_sum(losses, None)
    return summed / losses.numel() if reduction == _MEAN else summed


def _reduced_grad(grad: Tensor, count: int, reduction: int) -> Tensor:
    return grad / count if reduction == _MEAN else grad


@rule(Kind.COMPOSITE, aten.mse_loss.default)
def _mse_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    require_float32("mse_loss", x, target)
    difference = x - target
    return _reduce(difference * difference, reduction)


@rule(Kind.COMPOSITE, aten.mse_loss_backward.default)
def _mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    require_float32("mse_loss_backward", grad, x, target)
    return _reduced_grad(grad, x.numel(), reduction) * ((x - target) * 2)


def _class_weights(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Valid class indices (ignored ones replaced by 0) and the weight of each position."""
    kept = target != ignore_index
    safe = torch.where(kept, target, 0).long()
    if safe.numel() and (int(safe.min()) < 0 or int(safe.max()) >= x.shape[1]):
        raise IndexError(f"class index outside [0, {x.shape[1]})")
    each = torch.ones(safe.shape, dtype=torch.float32) if weight is None else weight[safe]
    return safe, torch.where(kept, each, 0.0)


def _batched(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return (x[None], target[None]) if x.ndim == 1 else (x, target)


@rule(Kind.COMPOSITE, aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def _nll_loss_forward(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    require_float32("nll_loss", x, weight)
    scores, classes = _batched(x, target)
    safe, weights = _class_weights(scores, classes, weight, ignore_index)
    picked = scores.gather(1, safe.unsqueeze(1)).squeeze(1)
    # an ignored position has weight 0 and adds 0 even where its score is infinite
    losses = torch.where(weights == 0, 0.0, -(picked * weights))
    if reduction == _NONE:
        return losses.view(target.shape), torch.zeros((), dtype=torch.float32)
    total_weight = reduce_sum(weights, None)
    summed = reduce_sum(losses, None)
    return (summed / total_weight if reduction == _MEAN else summed), total_weight


@rule(Kind.COMPOSITE, aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def _nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    require_float32("nll_loss_backward", grad, x, weight)
    scores, classes = _batched(x, target)
    safe, weights = _class_weights(scores, classes, weight, ignore_index)
    each = grad.view(classes.shape) if reduction == _NONE else grad
    if reduction == _MEAN:
        each = each / total_weight
    filled = torch.zeros(scores.shape, dtype=torch.float32).scatter_(
        1, safe.unsqueeze(1), torch.where(weights == 0, 0.0, -(weights * each)).unsqueeze(1)
    )
    return filled.view(x.shape)


@rule(Kind.COMPOSITE, aten.smooth_l1_loss.default)
def _smooth_l1(x: Tensor, target: Tensor, reduction: int = _MEAN, beta: float = 1.0) -> Tensor:
    require_float32("smooth_l1_loss", x, target)
    size = (x - target).abs()
    near = (size * size) * 0.5 / beta if beta > 0 else size
    return _reduce(torch.where(size < beta, near, size - 0.5 * beta), reduction)


@rule(Kind.COMPOSITE, aten.smooth_l1_loss_backward.default)
def _smooth_l1_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float
) -> Tensor:
    require_float32("smooth_l1_loss_backward", grad, x, target)
    difference = x - target
    each = _reduced_grad(grad, x.numel(), reduction)
    near = difference / beta if beta > 0 else difference
    return each * torch.where(difference.abs() < beta, near, difference.sign())


@rule(Kind.COMPOSITE, aten.huber_loss.default)
def _huber(x: Tensor, target: Tensor, reduction: int = _MEAN, delta: float = 1.0) -> Tensor:
    require_float32("huber_loss", x, target)
    size = (x - target).abs()
    far = (size - 0.5 * delta) * delta
    return _reduce(torch.where(size <= delta, (size * size) * 0.5, far), reduction)


@rule(Kind.COMPOSITE, aten.huber_loss_backward.default)
def _huber_backward(
    grad: Tensor, x: Tensor, target: Tensor, reduction: int, delta: float
) -> Tensor:
    require_float32("huber_loss_backward", grad, x, target)
    difference = x - target
    each = _reduced_grad(grad, x.numel(), reduction)
    far = difference.sign() * delta
    return each * torch.where(difference.abs() <= delta, difference, far)


@rule(Kind.COMPOSITE, aten.binary_cross_entropy_with_logits.default)
def _binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    require_float32("binary_cross_entropy_with_logits", x, target, weight, pos_weight)
    slope = elementary.apply("softplus", -x)
    if pos_weight is not None:
        slope = slope * ((pos_weight - 1) * target + 1)
    losses = (1 - target) * x + slope
    return _reduce(losses if weight is None else losses * weight, reduction)


_LEAST_LOG = -100.0  # PyTorch's bound for the logarithm of a probability of 0


@rule(Kind.COMPOSITE, aten.binary_cross_entropy.default)
def _binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    require_float32("binary_cross_entropy", x, target, weight)
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise NumericsError("binary_cross_entropy: probabilities must lie in [0, 1]")
    missed = elementary.apply("log1p", -x).clamp_min(_LEAST_LOG)
    hit = elementary.apply("log", x).clamp_min(_LEAST_LOG)
    losses = (target - 1) * missed - target * hit
    return _reduce(losses if weight is None else losses * weight, reduction)


@rule(Kind.COMPOSITE, aten.binary_cross_entropy_backward.default)
def _binary_cross_entropy_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    require_float32("binary_cross_entropy_backward", grad, x, target, weight)
    slope = (x - target) / ((1 - x) * x).clamp_min(1e-12)
    each = _reduced_grad(grad, x.numel(), reduction) * slope
    return each if weight is None else each * weight


refuse(
    aten._ctc_loss.default,
    aten._ctc_loss.Tensor,
    because=(
        "CTC sums over alignments by a recursion that is not defined yet; use cross_entropy on "
        "aligned labels, or numerics='native'"
    ),
)


@rule(Kind.COMPOSITE, aten.xlogy.Tensor)
def _xlogy(x: Tensor, y: Tensor) -> Tensor:
    """x * log(y), and 0 where x is 0 and y is a number."""
    require_float32("xlogy", x, y)
    zero = (x == 0) & ~y.isnan()
    return torch.where(zero, 0.0, x * elementary.apply("log", y))
