"""What each operation of `vectors/numerics/*.json` is, by the slow definitions alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from spec import (
    Geometry,
    Width,
    contraction,
    losses,
    norms,
    optimisers,
    order,
    pointwise,
    pooling,
    sums,
)
from spec.binary32 import Array, add, mul

Inputs = dict[str, Any]
Outputs = dict[str, Any]


def _convolution(width: Width, x: Array, w: Array, bias: Array | None, **geometry: Any) -> Outputs:
    return {"y": contraction.convolve(x, w, bias, Geometry(**geometry), width)}


def _convolution_backward(
    width: Width, grad: Array, x: Array, w: Array, **geometry: Any
) -> Outputs:
    parts = contraction.convolve_backward(grad, x, w, Geometry(**geometry), width)
    return dict(zip(("dx", "dw", "db"), parts, strict=True))


def _bmm(width: Width, a: Array, b: Array) -> Array:
    return np.stack([contraction.product(m, n, width) for m, n in zip(a, b, strict=True)])


def contractions(width: Width) -> dict[str, Callable[..., Outputs]]:
    """Contractions of a grade."""

    def add_product(
        product: Callable[..., Array], base: Array, a: Array, b: Array, **f: float
    ) -> Outputs:
        return {"y": contraction.add_scaled(base, product(a, b), **f)}

    mm = partial(contraction.product, width=width)
    bmm = partial(_bmm, width)
    return {
        "mm": lambda a, b: {"y": mm(a, b)},
        "bmm": lambda a, b: {"y": bmm(a, b)},
        "addmm": partial(add_product, mm),
        "baddbmm": partial(add_product, bmm),
        "convolution": partial(_convolution, width),
        "convolution_backward": partial(_convolution_backward, width),
    }


def _axes(x: Array, axes: list[int] | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else axes


def _index_add(x: Array, index: Array, source: Array, alpha: float) -> Outputs:
    """Along axis 0."""
    rows = (source if alpha == 1 else mul(source, alpha)).reshape(
        index.size, math.prod(x.shape[1:])
    )
    return {"y": add(x, sums.accumulate(rows, index, x.shape[0]).reshape(x.shape))}


def _add_at(x: Array, index: Array, source: Array) -> Outputs:
    """Each value is a row of its own; `index` counts places of flattened x."""
    added = sums.accumulate(source.reshape(-1, 1), index.ravel(), x.size)
    return {"y": add(x, added.reshape(x.shape))}


def _embedding_backward(grad: Array, index: Array, num_weights: int, padding_idx: int) -> Outputs:
    """Rows of the padding index take no part, nor do they count."""
    keep = index != padding_idx
    return {"dw": sums.accumulate(grad[keep], index[keep], num_weights)}


SUMS: dict[str, Callable[..., Outputs]] = {
    "sum": lambda x, axes: {"y": sums.sum_over(x, _axes(x, axes))},
    "mean": lambda x, axes: {"y": sums.mean(x, _axes(x, axes))},
    "var": lambda x, axes, correction: {"y": sums.variance(x, _axes(x, axes), correction)},
    "std": lambda x, axes, correction: {"y": sums.deviation(x, _axes(x, axes), correction)},
    "vector_norm": lambda x, axes, order: {"y": sums.vector_norm(x, _axes(x, axes), order)},
    "index_add": _index_add,
    "put_accumulate": _add_at,
    "scatter_add": _add_at,
    "embedding_backward": _embedding_backward,
}


def _batch_norm(
    x: Array, w: Array, b: Array, running_mean: Array, running_var: Array, dy: Array, *,
    training: bool, momentum: float, eps: float,
) -> Outputs:  # fmt: skip
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    weight, bias = w.reshape(shape), b.reshape(shape)
    if training:
        mean, rstd = norms.statistics(x, axes, eps)
        dx = norms.input_gradient(dy, x, axes, eps, weight)
        running_mean, running_var = norms.moved_statistics(
            x, axes, running_mean, running_var, momentum
        )
    else:
        mean = running_mean.reshape(shape)
        rstd = norms.reciprocal_deviation(running_var.reshape(shape), eps)
        dx = mul(dy, mul(rstd, weight))
    dw, db = norms.parameter_gradients(dy, x, mean, rstd, axes)
    return {
        "y": norms.apply(x, mean, rstd, weight, bias), "dx": dx, "dw": dw, "db": db,
        "running_mean": running_mean, "running_var": running_var,
    }  # fmt: skip


def _layer_norm(x: Array, w: Array, b: Array, dy: Array, *, eps: float) -> Outputs:
    """Over the last axis of (rows, D)."""
    mean, rstd = norms.statistics(x, [1], eps)
    dw, db = norms.parameter_gradients(dy, x, mean, rstd, [0])
    dx = norms.input_gradient(mul(dy, w), x, [1], eps)
    return {"y": norms.apply(x, mean, rstd, w, b), "dx": dx, "dw": dw, "db": db}


def _group_norm(x: Array, w: Array, b: Array, dy: Array, *, groups: int, eps: float) -> Outputs:
    num_n, num_c = x.shape[:2]
    split = (num_n, groups, num_c // groups, -1)
    parts, grads = x.reshape(split), dy.reshape(split)
    weight, bias = (p.reshape(1, groups, num_c // groups, 1) for p in (w, b))
    mean, rstd = norms.statistics(parts, [2, 3], eps)
    y = norms.apply(parts, mean, rstd, weight, bias)
    dx = norms.input_gradient(mul(grads, weight), parts, [2, 3], eps)
    dw, db = norms.parameter_gradients(grads, parts, mean, rstd, [0, 3])
    return {"y": y.reshape(x.shape), "dx": dx.reshape(x.shape), "dw": dw.ravel(), "db": db.ravel()}


def _softmax(x: Array, dy: Array, axis: int) -> Outputs:
    y = norms.softmax(x, axis)
    return {"y": y, "dx": norms.softmax_backward(dy, y, axis)}


def _log_softmax(x: Array, dy: Array, axis: int) -> Outputs:
    y = norms.log_softmax(x, axis)
    return {"y": y, "dx": norms.log_softmax_backward(dy, y, axis)}


NORMS = {"batch_norm": _batch_norm, "layer_norm": _layer_norm, "group_norm": _group_norm}
SOFTMAX: dict[str, Callable[..., Outputs]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "safe_softmax": lambda x, axis: {"y": norms.safe_softmax(x, axis)},
    "logsumexp": lambda x, axis: {"y": norms.logsumexp(x, axis)},
}


def _loss(forward: Callable[..., Array], backward: Callable[..., Array]) -> Callable[..., Outputs]:
    def both(x: Array, t: Array, grad: Array, **arguments: Any) -> Outputs:
        return {"loss": forward(x, t, **arguments), "dx": backward(grad, x, t, **arguments)}

    return both


def _nll(x: Array, classes: Array, weight: Array | None, grad: Array, **arguments: Any) -> Outputs:
    loss, total = losses.nll(x, classes, weight, **arguments)
    dx = losses.nll_backward(grad, x, classes, weight, **arguments)
    return {"loss": loss, "total_weight": total, "dx": dx}


LOSSES: dict[str, Callable[..., Outputs]] = {
    "mse_loss": _loss(losses.mse, losses.mse_backward),
    "smooth_l1_loss": _loss(losses.smooth_l1, losses.smooth_l1_backward),
    "huber_loss": _loss(losses.huber, losses.huber_backward),
    "nll_loss": _nll,
    "binary_cross_entropy_with_logits": lambda **parts: {
        "loss": losses.binary_cross_entropy_with_logits(**parts)
    },
    "xlogy": lambda x, y: {"y": losses.xlogy(x, y)},
}


def _one(function: Callable[..., Array]) -> Callable[..., Outputs]:
    return lambda **parts: {"y": function(**parts)}


def _prelu(x: Array, weight: Array, grad: Array) -> Outputs:
    """`weight` has the shape of x here."""
    dx, dw = pointwise.prelu_backward(grad, x, weight)
    return {"y": pointwise.prelu(x, weight), "dx": dx, "dw": dw}


POINTWISE = {
    name: _one(getattr(pointwise, name))
    for name in (
        "add_alpha", "sub_alpha", "addcmul", "addcdiv", "lerp", "power", "div_trunc",
        "tanh_backward", "sigmoid_backward", "softplus", "softplus_backward", "log_sigmoid",
        "log_sigmoid_backward", "elu", "elu_backward", "hardswish", "hardswish_backward",
        "hardsigmoid", "hardsigmoid_backward", "glu", "glu_backward",
    )
} | {"prelu": _prelu}  # fmt: skip


def _sgd(param: Array, grads: Array, **options: Any) -> Outputs:
    buffer: Array | None = None
    for grad in grads:
        param, buffer = optimisers.sgd(param, grad, buffer, **options)
    return {"param": param} | ({} if buffer is None else {"buffer": buffer})


def _adam(param: Array, grads: Array, *, amsgrad: bool, **options: Any) -> Outputs:
    zeros = np.zeros_like(param)
    state = (param, zeros, zeros, zeros if amsgrad else None)
    for step, grad in enumerate(grads, 1):
        param, mean, square, largest = state
        state = optimisers.adam(param, grad, mean, square, largest, step=step, **options)
    found = dict(zip(("param", "mean", "square", "largest"), state, strict=True))
    return {name: value for name, value in found.items() if value is not None}


OPTIMISERS: dict[str, Callable[..., Outputs]] = {"sgd": _sgd, "adam": _adam}


def _avg_pool(
    x: Array, dy: Array, kernel: list[int], stride: list[int], padding: list[int]
) -> Outputs:
    return {
        "y": pooling.average(x, kernel, stride, padding),
        "dx": pooling.average_backward(dy, x.shape[1:], kernel, stride, padding),
    }


def _max_pool(
    dy: Array, indices: Array, size: list[int], kernel: list[int], stride: list[int]
) -> Outputs:
    return {"dx": pooling.max_backward(dy, size, indices, kernel, stride)}


POOLING: dict[str, Callable[..., Outputs]] = {
    "avg_pool2d": _avg_pool,
    "max_pool2d_backward": _max_pool,
}


def _pair(function: Callable[..., tuple[Array, Array]]) -> Callable[..., Outputs]:
    return lambda **parts: dict(zip(("values", "indices"), function(**parts), strict=True))


OPEN: dict[str, Callable[..., Outputs]] = {
    name: _one(getattr(order, name))
    for name in (
        "maximum",
        "clamp",
        "relu",
        "sign",
        "minimum",
        "amax",
        "amin",
        "argmax",
        "put_last",
        "hardtanh_backward",
        "linspace",
    )
} | {"sort": _pair(order.sort), "topk": _pair(order.topk)}
