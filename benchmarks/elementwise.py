"""Single operators on one thread: `exact` against PyTorch's own kernel, interleaved, shortest of
many runs.

Matrix products and convolutions are not here; their cost is in the step times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from veritrain.numerics.keys.stream import KeyStream
from veritrain.numerics.rules.exact_mode import ExactMode

Call: TypeAlias = Callable[[], object]
aten: Any = torch.ops.aten

VOCABULARY, WIDTH, TOKENS = 50_257, 768, 512
ACTIVATIONS = (TOKENS, 4 * WIDTH)
LOGITS = (TOKENS, VOCABULARY)
ATTENTION = (8 * 12 * 64, 64)
IMAGES = (64, 256, 32, 32)
PARAMETERS = 10_000_000
SECONDS = 1.0  # spent on each operator at least, and on five runs at least


def elementwise() -> list[dict[str, Any]]:
    """Times by operator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(name, *make()) for name, make in CASES.items()]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, values: int, call: Call) -> dict[str, Any]:
    mode = ExactMode()
    mode.stream = KeyStream(1, "benchmark", 0)
    with mode:
        call()  # compiles
    native: list[float] = []
    exact: list[float] = []
    stop = time.perf_counter() + SECONDS
    while len(native) < 5 or time.perf_counter() < stop:
        native.append(_seconds(call))
        with mode:
            exact.append(_seconds(call))
    return {
        "operator": name,
        "values": values,
        "native ms": min(native) * 1e3,
        "exact ms": min(exact) * 1e3,
        "exact / native": min(exact) / min(native),
    }


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _unary(operator: Any, shape: tuple[int, ...], positive: bool = False) -> Any:
    def make() -> tuple[int, Call]:
        x = _normal(*shape)
        x = x.abs() + 0.1 if positive else x
        return x.numel(), lambda: operator(x)

    return make


def _binary(operator: Any, shape: tuple[int, ...]) -> Any:
    def make() -> tuple[int, Call]:
        x, y = _normal(*shape), _normal(*shape).flip(0)
        return x.numel(), lambda: operator(x, y)

    return make


def _softmax_backward(operator: Any, forward: Any, shape: tuple[int, ...]) -> Any:
    def make() -> tuple[int, Call]:
        y, grad = forward(_normal(*shape), 1, False), _normal(*shape).flip(0)
        return y.numel(), lambda: operator(grad, y, 1, torch.float32)

    return make


def _cross_entropy() -> tuple[int, Call]:
    x, target = _normal(*LOGITS), torch.arange(TOKENS) * 97
    return x.numel(), lambda: torch.nn.functional.cross_entropy(x, target)


def _cross_entropy_backward() -> tuple[int, Call]:
    """As it is in a step: the gradient of the likelihood, then of the log-softmax."""
    x, target = _normal(*LOGITS), torch.arange(TOKENS) * 97
    y, one, weight = x.log_softmax(1), torch.tensor(1.0), torch.tensor(float(TOKENS))

    def call() -> Tensor:
        grad = aten.nll_loss_backward(one, y, target, None, 1, -100, weight)
        return aten._log_softmax_backward_data(grad, y, 1, torch.float32)

    return x.numel(), call


def _layer_norm(backward: bool) -> Any:
    def make() -> tuple[int, Call]:
        x, w, b = _normal(TOKENS, WIDTH), _normal(WIDTH), _normal(WIDTH)
        grad = x.flip(0)
        _, mean, rstd = aten.native_layer_norm(x, [WIDTH], w, b, 1e-5)
        if backward:
            return x.numel(), lambda: aten.native_layer_norm_backward(
                grad, x, [WIDTH], mean, rstd, w, b, [True] * 3
            )
        return x.numel(), lambda: aten.native_layer_norm(x, [WIDTH], w, b, 1e-5)

    return make


def _batch_norm(backward: bool) -> Any:
    def make() -> tuple[int, Call]:
        x, channels = _normal(*IMAGES), IMAGES[1]
        w, b, grad = _normal(channels), _normal(channels), x.flip(0)
        moved = torch.zeros(channels), torch.ones(channels)
        _, mean, rstd = aten.native_batch_norm(x, w, b, *moved, True, 0.1, 1e-5)
        if backward:
            return x.numel(), lambda: aten.native_batch_norm_backward(
                grad, x, w, *moved, mean, rstd, True, 1e-5, [True] * 3
            )
        return x.numel(), lambda: aten.native_batch_norm(x, w, b, *moved, True, 0.1, 1e-5)

    return make


def _group_norm(backward: bool) -> Any:
    def make() -> tuple[int, Call]:
        x, (samples, channels, *size) = _normal(*IMAGES), IMAGES
        w, b, grad = _normal(channels), _normal(channels), x.flip(0)
        sizes = (samples, channels, size[0] * size[1], 32)
        _, mean, rstd = aten.native_group_norm(x, w, b, *sizes, 1e-5)
        if backward:
            return x.numel(), lambda: aten.native_group_norm_backward(
                grad, x, mean, rstd, w, *sizes, [True] * 3
            )
        return x.numel(), lambda: aten.native_group_norm(x, w, b, *sizes, 1e-5)

    return make


def _bernoulli() -> tuple[int, Call]:
    x = torch.empty(ACTIVATIONS)
    return x.numel(), lambda: x.bernoulli_(0.9)


def _dropout() -> tuple[int, Call]:
    x = _normal(*ACTIVATIONS)
    return x.numel(), lambda: torch.nn.functional.dropout(x, 0.1, training=True)


def _embedding_backward() -> tuple[int, Call]:
    grad, index = _normal(TOKENS, WIDTH), torch.arange(TOKENS) * 97 % 4999
    return VOCABULARY * WIDTH, lambda: aten.embedding_dense_backward(
        grad, index, VOCABULARY, -1, False
    )


def _adam(operator: Any) -> Any:
    def make() -> tuple[int, Call]:
        p, g = _normal(PARAMETERS), _normal(PARAMETERS)
        m, v, step = torch.zeros_like(p), torch.zeros_like(p), torch.ones(())
        settings: dict[str, Any] = {
            "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8,
            "amsgrad": False, "maximize": False,
        }  # fmt: skip
        return p.numel(), lambda: operator([p], [g], [m], [v], [], [step], **settings)

    return make


def _sgd() -> tuple[int, Call]:
    p, g, buffer = _normal(PARAMETERS), _normal(PARAMETERS), torch.zeros(PARAMETERS)
    settings: dict[str, Any] = {
        "weight_decay": 5e-4, "momentum": 0.9, "lr": 1e-3, "dampening": 0.0, "nesterov": False,
        "maximize": False, "is_first_step": False,
    }  # fmt: skip
    return p.numel(), lambda: aten._fused_sgd_([p], [g], [buffer], **settings)


def _clip_grad_norm() -> tuple[int, Call]:
    parameters = [torch.nn.Parameter(torch.zeros(PARAMETERS // 10)) for _ in range(10)]
    for parameter in parameters:
        parameter.grad = _normal(PARAMETERS // 10)
    return PARAMETERS, lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def _pool(kernel: int, stride: int, padding: int, name: str) -> Any:
    def make() -> tuple[int, Call]:
        x = _normal(*IMAGES)
        window = ([kernel] * 2, [stride] * 2, [padding] * 2)
        if name == "max":
            return x.numel(), lambda: aten.max_pool2d_with_indices(x, *window)
        if name == "max backward":
            y, indices = aten.max_pool2d_with_indices(x, *window)
            return x.numel(), lambda: aten.max_pool2d_with_indices_backward(
                y, x, *window, [1, 1], False, indices
            )
        if name == "average":
            return x.numel(), lambda: aten.avg_pool2d(x, *window)
        y = aten.avg_pool2d(x, *window)
        return x.numel(), lambda: aten.avg_pool2d_backward(y, x, *window, False, True, None)

    return make


def _gelu_tanh(x: Tensor) -> Tensor:
    return aten.gelu(x, approximate="tanh")


def _gelu_tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.gelu_backward(grad, x, approximate="tanh")


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.threshold_backward(grad, x, 0)


def _softmax(x: Tensor) -> Tensor:
    return aten._softmax(x, 1, False)


def _log_softmax(x: Tensor) -> Tensor:
    return aten._log_softmax(x, 1, False)


def _sum_over(*dims: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.sum(dims)


CASES: dict[str, Callable[[], tuple[int, Call]]] = {
    "gelu": _unary(aten.gelu, ACTIVATIONS),
    "gelu backward": _binary(aten.gelu_backward, ACTIVATIONS),
    "gelu tanh": _unary(_gelu_tanh, ACTIVATIONS),
    "gelu tanh backward": _binary(_gelu_tanh_backward, ACTIVATIONS),
    "silu": _unary(aten.silu, ACTIVATIONS),
    "silu backward": _binary(aten.silu_backward, ACTIVATIONS),
    "sigmoid": _unary(aten.sigmoid, ACTIVATIONS),
    "tanh": _unary(aten.tanh, ACTIVATIONS),
    "tanh backward": _binary(aten.tanh_backward, ACTIVATIONS),
    "exp": _unary(aten.exp, ACTIVATIONS),
    "log": _unary(aten.log, ACTIVATIONS, positive=True),
    "softplus": _unary(aten.softplus, ACTIVATIONS),
    "rsqrt": _unary(aten.rsqrt, ACTIVATIONS, positive=True),
    "sqrt": _unary(aten.sqrt, ACTIVATIONS, positive=True),
    "relu": _unary(aten.relu, IMAGES),
    "relu backward": _binary(_relu_backward, IMAGES),
    "add": _binary(aten.add, IMAGES),
    "mul": _binary(aten.mul, IMAGES),
    "mul small": _binary(aten.mul, ATTENTION),
    "softmax attention": _unary(_softmax, ATTENTION),
    "softmax attention backward": _softmax_backward(
        aten._softmax_backward_data, aten._softmax, ATTENTION
    ),
    "softmax logits": _unary(_softmax, LOGITS),
    "softmax logits backward": _softmax_backward(
        aten._softmax_backward_data, aten._softmax, LOGITS
    ),
    "log-softmax logits": _unary(_log_softmax, LOGITS),
    "log-softmax logits backward": _softmax_backward(
        aten._log_softmax_backward_data, aten._log_softmax, LOGITS
    ),
    "cross-entropy": _cross_entropy,
    "cross-entropy backward": _cross_entropy_backward,
    "layer norm": _layer_norm(backward=False),
    "layer norm backward": _layer_norm(backward=True),
    "batch norm": _batch_norm(backward=False),
    "batch norm backward": _batch_norm(backward=True),
    "group norm": _group_norm(backward=False),
    "group norm backward": _group_norm(backward=True),
    "bernoulli": _bernoulli,
    "dropout": _dropout,
    "embedding backward": _embedding_backward,
    "Adam": _adam(aten._fused_adam_),
    "AdamW": _adam(aten._fused_adamw_),
    "SGD": _sgd,
    "sum": _unary(torch.sum, ACTIVATIONS),
    "sum rows": _unary(_sum_over(1), ACTIVATIONS),
    "sum columns": _unary(_sum_over(0), ACTIVATIONS),
    "sum channels": _unary(_sum_over(0, 2, 3), IMAGES),
    "mean": _unary(torch.mean, ACTIVATIONS),
    "clip gradients": _clip_grad_norm,
    "max pool 2": _pool(2, 2, 0, "max"),
    "max pool 2 backward": _pool(2, 2, 0, "max backward"),
    "max pool 3/2": _pool(3, 2, 1, "max"),
    "max pool 3/2 backward": _pool(3, 2, 1, "max backward"),
    "average pool 2": _pool(2, 2, 0, "average"),
    "average pool 2 backward": _pool(2, 2, 0, "average backward"),
    "average pool 32": _pool(32, 32, 0, "average"),
    "average pool 32 backward": _pool(32, 32, 0, "average backward"),
}
