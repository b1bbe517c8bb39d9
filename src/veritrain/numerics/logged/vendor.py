"""The operators that `logged` numerics leave to the vendor's kernels, with the scales of their
results.

`VENDOR` has an entry for each such operator. The entry gives a scale S and a growth for each
result, in the order in which the results are rounded: rounding errors are at most about growth * u
* S, where u is the roundoff of the arithmetic. A scale is computed from operands, or from results
that are already rounded, so that every machine has the same scale (`scales`). A result without a
scale (None) has an error that is relative to each value.

For a sum of n products the scale is |a| |b|, the largest norms of the vectors that are multiplied.
It bounds the sum of the products' magnitudes (Cauchy and Schwarz). The growth is sqrt(n)
(`thresholds`).

A bias or a mask is added last and is not in S. It is no larger than the result and the sum
together, and `Target.grid` allows for the result's own error.

All other operators follow their exact rules under `logged`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.numerics.cpu.integers import Slices, channels_of
from veritrain.numerics.logged.scales import (
    finite_top,
    largest,
    largest_norm,
    norm_along,
    norm_of_channels,
    norm_of_positions,
    norms,
)

aten: Any = torch.ops.aten


class Result(NamedTuple):
    """One result of an operator."""

    place: int  # among the operator's results
    scale: float | None  # S
    growth: float  # of its error over u * S


Results = Iterator[Result]


class Call:
    """A call of an operator: its arguments by name, and its results as they get rounded."""

    def __init__(self, arguments: dict[str, Any], results: list[Any]) -> None:
        self.results = results
        self._arguments = arguments
        self._tops: dict[str, float] = {}

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name]

    def top(self, name: str, default: float = 0.0) -> float:
        """Largest magnitude of an argument; `default` where it is not given."""
        if name not in self._tops:
            value = self._arguments[name]
            self._tops[name] = default if value is None else largest(value)
        return self._tops[name]

    def size(self, name: str) -> int:
        """Number of entries of an argument."""
        return int(self._arguments[name].numel())


Arguments: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Vendor:
    """How `logged` computes one operator of PyTorch, and rounds its results.

    `wide` is for operators whose scale is so far above their values that only float64 leaves enough
    bits. `reordered` stands for another machine when `calibrate` measures: PyTorch adds the same
    terms in another order.
    """

    name: str  # of the class
    results: Callable[[Call], Results]
    when: str | None = None  # an argument; where it is false, the operator follows its exact rule
    wide: bool = False  # the operator follows its exact rule in a step that computes in float32
    # Arguments that the kernel updates, with their scales.
    writes: Mapping[str, Callable[[Call], float]] = field(
        default_factory=dict[str, Callable[[Call], float]]
    )
    # Arguments with the same result, whose sums run in another order: backwards where that can be
    # said.
    reordered: Callable[[Arguments], Arguments] | None = None


VENDOR: dict[OpOverload, Vendor] = {}


def _vendor(
    name: str, *operators: OpOverload, **options: Any
) -> Callable[[Callable[[Call], Results]], Callable[[Call], Results]]:
    """Enter the decorated function for `operators`; `options` as in `Vendor`."""

    def register(results: Callable[[Call], Results]) -> Callable[[Call], Results]:
        for operator in operators:
            VENDOR[operator] = Vendor(name, results, **options)
        return results

    return register


def _flipped(**axes: int) -> Callable[[Arguments], Arguments]:
    """Arguments with some of them reversed along an axis, the contracted one."""

    def reordered(arguments: Arguments) -> Arguments:
        flipped = {name: arguments[name].flip(axis) for name, axis in axes.items()}
        return {**arguments, **flipped}

    return reordered


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of axes


def _channels_last(*names: str) -> Callable[[Arguments], Arguments]:
    """The same arguments in another memory layout, for which PyTorch has other kernels."""

    def reordered(arguments: Arguments) -> Arguments:
        tensors = {name: arguments[name] for name in names}
        return arguments | {
            name: x.contiguous(memory_format=_LAST[x.dim()])
            for name, x in tensors.items()
            if x.dim() in _LAST
        }

    return reordered


# Products


def _product(call: Call, left: str, right: str) -> tuple[float, float]:
    """Scale and growth of a product of matrices, or of batches of them."""
    a, b = call[left], call[right]
    return norm_along(a, -1) * norm_along(b, -2), math.sqrt(a.shape[-1])


@_vendor("product", aten.mm.default, reordered=_flipped(self=1, mat2=0))
@_vendor("product", aten.bmm.default, reordered=_flipped(self=2, mat2=1))
def _mm(call: Call) -> Results:
    yield Result(0, *_product(call, "self", "mat2"))


@_vendor("product", aten.addmm.default, reordered=_flipped(mat1=1, mat2=0))
def _addmm(call: Call) -> Results:
    yield _added(call, *_product(call, "mat1", "mat2"))


@_vendor("product", aten.baddbmm.default, reordered=_flipped(batch1=2, batch2=1))
def _baddbmm(call: Call) -> Results:
    yield _added(call, *_product(call, "batch1", "batch2"))


def _added(call: Call, scale: float, growth: float) -> Result:
    return Result(0, scale * abs(call["alpha"]), growth)


def _channels_reversed(arguments: Arguments) -> Arguments:
    if arguments["groups"] != 1:
        return arguments
    axis = 0 if arguments["transposed"] else 1
    return {
        **arguments, "input": arguments["input"].flip(1), "weight": arguments["weight"].flip(axis),
    }  # fmt: skip


def _by_taps(image: Tensor, weight: Tensor, contracted: int) -> tuple[float, float]:
    """Scale and growth of a sum over the taps and channels of a weight, all but those of one axis.

    A patch has as many channel vectors as there are taps at most.
    """
    taps = math.prod(weight.shape[2:])
    matrix = weight.reshape(weight.shape[0], weight.shape[1], -1)
    slices = (matrix if contracted == 1 else matrix.transpose(0, 1)).reshape(
        weight.shape[1 - contracted], -1
    )
    scale = norm_of_channels(image) * math.sqrt(taps) * norm_along(slices, -1)
    return scale, math.sqrt(slices.shape[1])


@_vendor("convolution", aten.convolution.default, reordered=_channels_reversed)
def _convolution(call: Call) -> Results:
    axis = 0 if call["transposed"] else 1
    yield Result(0, *_by_taps(call["input"], call["weight"], axis))


@_vendor(
    "convolution", aten.convolution_backward.default,
    reordered=_channels_last("grad_output", "input", "weight"),
)  # fmt: skip
def _convolution_backward(call: Call) -> Results:
    grad, image = call["grad_output"], call["input"]
    to_image, to_weight, to_bias = call["output_mask"]
    if to_image:
        yield Result(0, *_by_taps(grad, call["weight"], 1 if call["transposed"] else 0))
    positions = grad.numel() // grad.shape[1]
    norm = norm_of_positions(grad)
    if to_weight:
        longest = max(positions, image.numel() // image.shape[1])
        yield Result(1, norm * norm_of_positions(image), math.sqrt(longest))
    if to_bias:
        yield Result(2, norm * math.sqrt(positions), math.sqrt(positions))


# Sums: the magnitudes of n values of x add up to at most n times the largest one


def _terms(call: Call) -> int:
    return max(1, call.size("self") // max(1, call.results[0].numel()))


def _terms_reversed(arguments: Arguments) -> Arguments:
    x = arguments["self"]
    return {**arguments, "self": x.flip(arguments.get("dim") or tuple(range(x.dim())))}


@_vendor("sum", aten.sum.default, aten.sum.dim_IntList, reordered=_terms_reversed, wide=True)
def _sum(call: Call) -> Results:
    yield Result(0, call.top("self") * _terms(call), math.sqrt(_terms(call)))


@_vendor("sum", aten.mean.default, aten.mean.dim, reordered=_terms_reversed, wide=True)
def _mean(call: Call) -> Results:
    yield Result(0, call.top("self"), math.sqrt(_terms(call)))


@_vendor("sum", aten.linalg_vector_norm.default, reordered=_terms_reversed)
def _vector_norm(call: Call) -> Results:
    yield Result(0, None, math.sqrt(_terms(call)))


def _rows_reversed(arguments: Arguments) -> Arguments:
    grad, indices = arguments["grad_output"], arguments["indices"].reshape(-1)
    rows = grad.reshape(indices.numel(), -1)
    return {**arguments, "grad_output": rows.flip(0), "indices": indices.flip(0)}


@_vendor("embedding", aten.embedding_dense_backward.default, reordered=_rows_reversed, wide=True)
def _embedding_backward(call: Call) -> Results:
    repeats = int(torch.bincount(call["indices"].reshape(-1)).max())  # rows added to one
    yield Result(0, call.top("grad_output") * repeats, math.sqrt(repeats))


# Norms: results are a mean, the inverse of a spread, and the values normalised with both


class _Norm(NamedTuple):
    """How a norm cuts its input: each slice has a mean and a spread, each part has an entry of the
    weight."""

    slices: Slices
    parts: Slices

    @property
    def length(self) -> int:
        """Values of a slice."""
        return self.slices[1] * self.slices[3]

    @property
    def terms(self) -> int:
        """Values of a part."""
        return self.parts[1] * self.parts[3]


def _magnitudes(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1).double().abs().numpy()


def _weights(call: Call, norm: _Norm) -> np.ndarray | float:
    """Magnitude of each slice's weight; the largest one where a slice has several weights."""
    if norm.slices == norm.parts and call["weight"] is not None:
        return _magnitudes(call["weight"])
    return call.top("weight", 1.0)


def _normal(call: Call, norm: _Norm, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """A bound of (|x| + |mean|) / spread for each slice: errors of normalised values are relative
    to it."""
    sizes = np.minimum(norms(call["input"], norm.slices), call.top("input"))
    return (sizes + mean) * inverse


def _norm_forward(call: Call, norm: _Norm) -> Results:
    growth = math.sqrt(norm.length)
    yield Result(1, call.top("input"), growth)
    yield Result(2, None, growth)
    mean, inverse = _magnitudes(call.results[1]), _magnitudes(call.results[2])
    with np.errstate(all="ignore"):
        scale = finite_top(_normal(call, norm, mean, inverse) * _weights(call, norm))
    yield Result(0, scale, growth)


def _norm_backward(call: Call, norm: _Norm, mean_name: str, inverse_name: str) -> Results:
    """Gradients of the image, the weight and the bias.

    The gradient of the image is weight * inverse * (g - mean of g - x * mean of g x), where x is
    the normalised input. The square of x has a mean of 1. So the mean of g x is below the root of
    the mean square of g. Kernels compute x from the input and its mean, with the errors of both.
    """
    grad, growth = call["grad_out"], math.sqrt(norm.length)
    mean, inverse = _magnitudes(call[mean_name]), _magnitudes(call[inverse_name])
    lengths = norms(grad, norm.slices)
    most = finite_top(lengths) if norm.slices == norm.parts else largest_norm(grad, norm.parts)
    with np.errstate(all="ignore"):
        normal = np.maximum(_normal(call, norm, mean, inverse), 1.0)
        spread = lengths / growth * inverse * _weights(call, norm)
        image = finite_top(spread * (1.0 + normal))
    total = most * math.sqrt(norm.terms)  # of magnitudes, by Cauchy and Schwarz
    yield Result(0, image, growth)
    yield Result(1, total * finite_top(normal), math.sqrt(norm.terms))
    yield Result(2, total, math.sqrt(norm.terms))


def _layer(call: Call) -> _Norm:
    length = math.prod(call["normalized_shape"])
    rows = call.size("input") // length
    return _Norm((1, 1, rows, length), (1, rows, length, 1))


@_vendor("norm", aten.native_layer_norm.default)
def _layer_norm(call: Call) -> Results:
    return _norm_forward(call, _layer(call))


@_vendor("norm", aten.native_layer_norm_backward.default, wide=True)
def _layer_norm_backward(call: Call) -> Results:
    return _norm_backward(call, _layer(call), "mean", "rstd")


def _group(call: Call) -> _Norm:
    samples, channels, groups = call["N"], call["C"], call["group"]
    slices = samples * groups, channels // groups * call["HxW"]
    return _Norm((1, 1, *slices), (1, samples, channels, call["HxW"]))


@_vendor("norm", aten.native_group_norm.default, reordered=_channels_last("input"))
def _group_norm(call: Call) -> Results:
    return _norm_forward(call, _group(call))


@_vendor(
    "norm",
    aten.native_group_norm_backward.default,
    reordered=_channels_last("grad_out", "input"),
    wide=True,
)
def _group_norm_backward(call: Call) -> Results:
    return _norm_backward(call, _group(call), "mean", "rstd")


def _batch(call: Call) -> _Norm:
    return _Norm(channels_of(call["input"]), channels_of(call["input"]))


def _mean_scale(call: Call) -> float:
    return max(call.top("running_mean"), call.top("input"))


def _variance_scale(call: Call) -> float:
    return max(call.top("running_var"), call.top("input") ** 2)


@_vendor(
    "norm", aten.native_batch_norm.default,
    when="training", writes={"running_mean": _mean_scale, "running_var": _variance_scale},
    reordered=_channels_last("input"),
)  # fmt: skip
def _batch_norm(call: Call) -> Results:
    return _norm_forward(call, _batch(call))


@_vendor(
    "norm", aten.native_batch_norm_backward.default, when="train",
    reordered=_channels_last("grad_out", "input"),
)  # fmt: skip
def _batch_norm_backward(call: Call) -> Results:
    return _norm_backward(call, _batch(call), "save_mean", "save_invstd")


_VANISHING = 800.0  # exp(-800) is zero in binary64

# Attention as one operator. Its weights are at most 1 and add up to 1 for each query.


def _logit_factor(call: Call) -> float:
    width = call["query"].shape[-1]
    return abs(float(call["scale"])) if call["scale"] is not None else 1.0 / math.sqrt(width)


def _logits(call: Call) -> float:
    """Their largest magnitude at most, with the mask's where a weight is not zero for it."""
    own = norm_along(call["query"], -1) * norm_along(call["key"], -1) * _logit_factor(call)
    return own + _mask_reach(call["attn_mask"], own)


def _mask_reach(mask: Tensor | None, logits: float) -> float:
    """The largest magnitude of entries of a mask that leave a weight: far below the largest of
    their row, exp(x) is zero in any precision."""
    if mask is None:
        return 0.0
    rows = mask.detach().reshape(-1, mask.shape[-1]).double().numpy()
    is_finite = np.isfinite(rows)
    top = np.max(rows, axis=-1, where=is_finite, initial=-math.inf, keepdims=True)
    with np.errstate(invalid="ignore"):
        counts = is_finite & (rows >= top - (_VANISHING + 2.0 * logits))
    return float(np.max(np.abs(rows), where=counts, initial=0.0))


def _keys_reversed(arguments: Arguments) -> Arguments:
    """The width too, whose products the logits sum: with a causal mask, keys keep their places."""
    query, key = arguments["query"].flip(-1), arguments["key"].flip(-1)
    value, mask = arguments["value"], arguments["attn_mask"]
    if not arguments["is_causal"]:
        key, value = key.flip(-2), value.flip(-2)
        mask = None if mask is None else mask.flip(-1)
    return {**arguments, "query": query, "key": key, "value": value, "attn_mask": mask}


@_vendor(
    "attention",
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    reordered=_keys_reversed,
    wide=True,
)
def _attention(call: Call) -> Results:
    growth = math.sqrt(max(call["query"].shape[-1], call["key"].shape[-2]))
    logits = _logits(call)
    yield Result(0, call.top("value") * (1.0 + logits), growth)
    yield Result(1, logits + math.log(call["key"].shape[-2]) + 1.0, growth)


@_vendor("attention", aten._scaled_dot_product_flash_attention_for_cpu_backward.default, wide=True)
def _attention_backward(call: Call) -> Results:
    grad, query, keys = call["grad_out"], call["query"], call["key"].shape[-2]
    queries, width = query.shape[-2], query.shape[-1]
    relative = 1.0 + _logits(call)  # error of a weight, over u
    slopes = norm_along(grad, -1) * norm_along(call["value"], -1) * _logit_factor(call) * relative
    columns = math.sqrt(queries)  # times a column's norm: the sum of its magnitudes at most
    growth = math.sqrt(max(queries, width))
    yield Result(0, slopes * call.top("key"), math.sqrt(max(keys, width)))
    yield Result(1, slopes * norm_along(query, -2) * columns, growth)
    yield Result(2, relative * norm_along(grad, -2) * columns, growth)
