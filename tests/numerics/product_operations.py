"""What the product calls each operation of `vectors/numerics/*.json`: ATen operators, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spec.cases import CHAPTERS, EVERYDAY, Case
from spec.vector_files import Stream
from veritrain.numerics import resolve

aten = torch.ops.aten
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, **g: Any) -> dict[str, Tensor]:
    return {"y": aten.convolution(x, w, bias, *_geometry(**g))}


def _geometry(stride, padding, dilation, output_padding, groups, transposed) -> tuple[Any, ...]:
    return stride, padding, dilation, transposed, output_padding, groups


def _convolution_backward(grad: Tensor, x: Tensor, w: Tensor, **g: Any) -> dict[str, Tensor]:
    parts = aten.convolution_backward(grad, x, w, [grad.shape[1]], *_geometry(**g), [True] * 3)
    return dict(zip(("dx", "dw", "db"), parts, strict=True))


def _index_add(x: Tensor, index: Tensor, source: Tensor, alpha: float) -> dict[str, Tensor]:
    return {"y": x.index_add(0, index, source, alpha=alpha)}


def _put_accumulate(x: Tensor, index: Tensor, source: Tensor) -> dict[str, Tensor]:
    return {"y": x.index_put((index,), source, accumulate=True)}


def _with_gradients(
    function: Callable[..., Tensor], dy: Tensor, leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The result, and the gradient of each leaf under the name given."""
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = function(*leaves.values())
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def _batch_norm(x, w, b, running_mean, running_var, dy, **options: Any) -> dict[str, Tensor]:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, w, b, **options)

    found = _with_gradients(function, dy, {"dx": x, "dw": w, "db": b})
    return found | {"running_mean": running_mean, "running_var": running_var}


def _layer_norm(x, w, b, dy, eps: float) -> dict[str, Tensor]:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, w.shape, w, b, eps)

    return _with_gradients(function, dy, {"dx": x, "dw": w, "db": b})


def _group_norm(x, w, b, dy, groups: int, eps: float) -> dict[str, Tensor]:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.group_norm(x, groups, w, b, eps)

    return _with_gradients(function, dy, {"dx": x, "dw": w, "db": b})


def _softmax(function: Callable[..., Tensor], x: Tensor, dy: Tensor, axis: int):
    return _with_gradients(partial(function, dim=axis), dy, {"dx": x})


def _loss(name: str, x, t, grad, reduction: str, **options: float) -> dict[str, Tensor]:
    code, numbers = REDUCTIONS[reduction], options.values()
    return {
        "loss": getattr(aten, name)(x, t, code, *numbers),
        "dx": getattr(aten, f"{name}_backward")(grad, x, t, code, *numbers),
    }


def _nll(x, classes, weight, grad, reduction: str, ignore_index: int) -> dict[str, Tensor]:
    name = "nll_loss2d" if x.ndim == 4 else "nll_loss"
    rest = (classes, weight, REDUCTIONS[reduction], ignore_index)
    loss, total = getattr(aten, f"{name}_forward")(x, *rest)
    dx = getattr(aten, f"{name}_backward")(grad, x, *rest, total)
    return {"loss": loss, "total_weight": total, "dx": dx}


def _binary_cross_entropy(x, t, weight, pos_weight, reduction: str) -> dict[str, Tensor]:
    code = REDUCTIONS[reduction]
    return {"loss": aten.binary_cross_entropy_with_logits(x, t, weight, pos_weight, code)}


def _prelu(x: Tensor, weight: Tensor, grad: Tensor) -> dict[str, Tensor]:
    dx, dw = aten._prelu_kernel_backward(grad, x, weight)
    return {"y": aten._prelu_kernel(x, weight), "dx": dx, "dw": dw}


def _sgd(param: Tensor, grads: Tensor, **options: Any) -> dict[str, Tensor]:
    buffer = torch.zeros_like(param)
    buffers = [buffer] if options["momentum"] else []
    for step, grad in enumerate(grads):
        aten._fused_sgd_([param], [grad], buffers, is_first_step=step == 0, **options)
    return {"param": param} | ({"buffer": buffer} if buffers else {})


def _adam(param: Tensor, grads: Tensor, decoupled: bool, **options: Any) -> dict[str, Tensor]:
    mean, square, largest = (torch.zeros_like(param) for _ in range(3))
    tops = [largest] if options["amsgrad"] else []
    update = aten._fused_adamw_ if decoupled else aten._fused_adam_
    for step, grad in enumerate(grads, 1):
        count = torch.tensor(float(step))
        update([param], [grad], [mean], [square], tops, [count], **options)
    found = {"param": param, "mean": mean, "square": square}
    return found | ({"largest": largest} if tops else {})


def _avg_pool(x, dy, kernel, stride, padding) -> dict[str, Tensor]:
    def function(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, padding)

    return _with_gradients(function, dy, {"dx": x})


def _max_pool_backward(dy, indices, size, kernel, stride) -> dict[str, Tensor]:
    x = torch.zeros(dy.shape[0], *size)
    rest = (kernel, stride, [0, 0], [1, 1], False)
    return {"dx": aten.max_pool2d_with_indices_backward(dy, x, *rest, indices)}


def _elu_backward(grad, x, alpha, scale, input_scale, is_result) -> Tensor:
    return aten.elu_backward(grad, alpha, scale, input_scale, is_result, x)


def _extrema(name: str) -> Callable[..., Tensor]:
    return lambda x, axis: getattr(x, name)(axis)


def _sorted(x: Tensor, descending: bool) -> dict[str, Tensor]:
    return dict(zip(("values", "indices"), torch.sort(x, descending=descending), strict=True))


def _topk(x: Tensor, k: int, largest: bool) -> dict[str, Tensor]:
    return dict(zip(("values", "indices"), torch.topk(x, k, largest=largest), strict=True))


MANY: dict[str, Callable[..., dict[str, Tensor]]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "index_add": _index_add,
    "put_accumulate": _put_accumulate,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "softmax": partial(_softmax, torch.softmax),
    "log_softmax": partial(_softmax, torch.log_softmax),
    "mse_loss": partial(_loss, "mse_loss"),
    "smooth_l1_loss": partial(_loss, "smooth_l1_loss"),
    "huber_loss": partial(_loss, "huber_loss"),
    "nll_loss": _nll,
    "binary_cross_entropy_with_logits": _binary_cross_entropy,
    "prelu": _prelu,
    "sgd": _sgd,
    "adam": _adam,
    "avg_pool2d": _avg_pool,
    "max_pool2d_backward": _max_pool_backward,
    "sort": _sorted,
    "topk": _topk,
    "embedding_backward": lambda grad, index, num_weights, padding_idx: {
        "dw": aten.embedding_dense_backward(grad, index, num_weights, padding_idx, False)
    },
}
# Their one result is y; what is not here is the operator of that name, with its tensors in the
# cases' order.
ONE: dict[str, Callable[..., Tensor]] = {
    "addmm": lambda base, a, b, **factors: torch.addmm(base, a, b, **factors),
    "baddbmm": lambda base, a, b, **factors: torch.baddbmm(base, a, b, **factors),
    "sum": lambda x, axes: x.sum(axes),
    "mean": lambda x, axes: x.mean(axes),
    "var": lambda x, axes, correction: x.var(axes, correction=correction),
    "std": lambda x, axes, correction: x.std(axes, correction=correction),
    "vector_norm": lambda x, axes, order: torch.linalg.vector_norm(x, order, axes),
    "scatter_add": lambda x, index, source: x.scatter_add(0, index, source),
    "scatter_reduce": lambda x, index, source, dim, **how: x.scatter_reduce(
        dim, index, source, **how
    ),
    "safe_softmax": lambda x, axis: torch._safe_softmax(x, axis),
    "logsumexp": lambda x, axis: torch.logsumexp(x, axis),
    "add_alpha": lambda x, y, alpha: torch.add(x, y, alpha=alpha),
    "sub_alpha": lambda x, y, alpha: torch.sub(x, y, alpha=alpha),
    "power": lambda x, exponent: x**exponent,
    "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "softplus_backward": lambda grad, x, **bounds: aten.softplus_backward(
        grad, x, *bounds.values()
    ),
    "log_sigmoid_backward": lambda grad, x: aten.log_sigmoid_backward(grad, x, torch.zeros(0)),
    "elu": lambda x, **options: aten.elu(x, *options.values()),
    "elu_backward": _elu_backward,
    "glu_backward": lambda grad, x: aten.glu_backward(grad, x, -1),
    "clamp": lambda x, low, high: x.clamp(low, high),
    "amax": _extrema("amax"),
    "amin": _extrema("amin"),
    "put_last": lambda x, index, values: x.index_put((index,), values),
    "hardtanh_backward": lambda grad, x, low, high: aten.hardtanh_backward(grad, x, low, high),
}


def one_result(operation: str, tensors: dict[str, Tensor], arguments: dict[str, Any]) -> Tensor:
    """The result of an operation that has one."""
    if operation in ONE:
        return ONE[operation](**tensors, **arguments)
    return getattr(aten, operation)(*tensors.values(), **arguments)


def everyday_cases() -> dict[str, tuple[Any, ...]]:
    """The first case with drawn everyday numbers of each operation with one result, and of each
    choice of its words and flags: a function of tensors, and the tensors."""
    found = {}
    for chapter in CHAPTERS.values():
        for case in chapter.cases() if chapter.numerics == "exact" else ():
            values = case.inputs.values()
            drawn = [x for x in values if isinstance(x, Stream)]
            integers = [x for x in values if isinstance(x, np.ndarray) and x.dtype == np.int64]
            is_everyday = drawn and all((x.low, x.high) == EVERYDAY for x in drawn)
            if case.operation in MANY or not is_everyday or len(drawn + integers) < len(values):
                continue
            words = (str(x) for x in case.arguments.values() if isinstance(x, (str, bool)))
            found.setdefault(" ".join([case.operation, *words]), _as_check(case))
    return found


def _as_check(case: Case) -> tuple[Any, ...]:
    def function(*tensors: Tensor) -> Tensor:
        return one_result(
            case.operation, dict(zip(case.inputs, tensors, strict=True)), case.arguments
        )

    arrays = (x.array() if isinstance(x, Stream) else x for x in case.inputs.values())
    return function, *(torch.from_numpy(x.copy()) for x in arrays)


def perform(
    operation: str,
    inputs: dict[str, np.ndarray | None],
    arguments: dict[str, Any],
    numerics: str = "exact",
) -> dict[str, np.ndarray]:
    """The outputs of an operation under a profile of numerics."""
    tensors = {
        name: None if x is None else torch.from_numpy(x.copy(order="K"))
        for name, x in inputs.items()
    }
    with resolve(numerics).active(seed=0, purpose="test", step=0):
        if operation in MANY:
            outputs = MANY[operation](**tensors, **arguments)
        else:
            outputs = {"y": one_result(operation, tensors, arguments)}
    return {name: y.detach().numpy() for name, y in outputs.items()}
