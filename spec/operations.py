"""What each operation of `vectors/numerics/*.json` is, by the slow definitions alone.

An operation is the function of its name in the chapter's module, with the result `y`. Only
operations with more results, or with another form in the vectors, are written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType
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


def _one(function: Callable[..., Array]) -> Callable[..., Outputs]:
    def one(*parts: Any, **named: Any) -> Outputs:
        return {"y": function(*parts, **named)}

    return one


def _by_name(chapter: ModuleType) -> dict[str, Callable[..., Outputs]]:
    """The operations that are functions of a chapter."""
    return {
        name: _one(function)
        for name, function in vars(chapter).items()
        if isinstance(function, FunctionType) and function.__module__ == chapter.__name__
    }


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
        "mm": _one(mm),
        "bmm": _one(bmm),
        "addmm": partial(add_product, mm),
        "baddbmm": partial(add_product, bmm),
        "convolution": partial(_convolution, width),
        "convolution_backward": partial(_convolution_backward, width),
    }


def _over(function: Callable[..., Array]) -> Callable[..., Outputs]:
    """A function over axes; None stands for all of them."""

    def over(x: Array, axes: list[int] | None, **options: float) -> Outputs:
        return {"y": function(x, list(range(x.ndim)) if axes is None else axes, **options)}

    return over


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


SUMS = _by_name(sums) | {
    "sum": _over(sums.sum_over),
    "mean": _over(sums.mean),
    "var": _over(sums.variance),
    "std": _over(sums.deviation),
    "vector_norm": _over(sums.vector_norm),
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
SOFTMAX = _by_name(norms) | {"softmax": _softmax, "log_softmax": _log_softmax}


def _loss(forward: Callable[..., Array], backward: Callable[..., Array]) -> Callable[..., Outputs]:
    def both(x: Array, t: Array, grad: Array, **arguments: Any) -> Outputs:
        return {"loss": forward(x, t, **arguments), "dx": backward(grad, x, t, **arguments)}

    return both


def _nll(x: Array, classes: Array, weight: Array | None, grad: Array, **arguments: Any) -> Outputs:
    loss, total = losses.nll(x, classes, weight, **arguments)
    dx = losses.nll_backward(grad, x, classes, weight, **arguments)
    return {"loss": loss, "total_weight": total, "dx": dx}


def _binary_cross_entropy_with_logits(**parts: Any) -> Outputs:
    return {"loss": losses.binary_cross_entropy_with_logits(**parts)}


LOSSES = _by_name(losses) | {
    "mse_loss": _loss(losses.mse, losses.mse_backward),
    "smooth_l1_loss": _loss(losses.smooth_l1, losses.smooth_l1_backward),
    "huber_loss": _loss(losses.huber, losses.huber_backward),
    "nll_loss": _nll,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
}


def _prelu(x: Array, weight: Array, grad: Array) -> Outputs:
    """`weight` has the shape of x here."""
    dx, dw = pointwise.prelu_backward(grad, x, weight)
    return {"y": pointwise.prelu(x, weight), "dx": dx, "dw": dw}


POINTWISE = _by_name(pointwise) | {"prelu": _prelu}


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
    def pair(**parts: Any) -> Outputs:
        return dict(zip(("values", "indices"), function(**parts), strict=True))

    return pair


OPEN = _by_name(order) | {"sort": _pair(order.sort), "topk": _pair(order.topk)}
