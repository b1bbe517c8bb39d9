"""Known answers: does this machine compute the bits that the written definitions give?

`selftest.json` holds a few cases of each family of kernels, taken from the project's vectors, which
the slow definitions computed. They show a broken installation, not a hostile one: somebody who can
change the code can change the answers.
"""

# pyright: reportUnknownLambdaType=false
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import blake3
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from veritrain.numerics import resolve
from veritrain.numerics.cpu import elementary, philox
from veritrain.numerics.keys.stream import KeyStream

Outputs: TypeAlias = dict[str, Tensor]

_FILE = Path(__file__).with_suffix(".json")
_NAN = 0x7FC00000
_TREE_BYTES = 5000  # four chunks of BLAKE3 and a part of one
aten: Any = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one case; `error` is None where all bits were right."""

    family: str
    case: str
    error: str | None


def families() -> tuple[str, ...]:
    """Names of groups of cases, those that take longest to compile first."""
    return ("elementary", *_cases(), "random", "trees")


def run(family: str) -> list[Answer]:
    """Compute the cases of a family, compiling what they meet, and compare bit for bit."""
    if family == "elementary":
        return [_answer(family, name, _elementary, name) for name in _file()["elementary"]]
    if family == "random":
        return [_answer(family, "words, uniform, normal", _random)]
    if family == "trees":
        return [_answer(family, "a tree of chunks", _tree)]
    return [
        _answer(family, f"{case['operation']}: {case['name']}", _operation, case)
        for case in _cases()[family]
    ]


def _answer(family: str, case: str, act: Callable[..., str | None], *arguments: Any) -> Answer:
    try:
        error = act(*arguments)
    except Exception as fault:  # any failure is an answer
        error = f"{type(fault).__name__}: {fault}"
    return Answer(family=family, case=case, error=error)


@cache
def _file() -> dict[str, Any]:
    return json.loads(_FILE.read_text())


def _cases() -> dict[str, list[dict[str, Any]]]:
    return _file()["operations"]


def _operation(case: dict[str, Any]) -> str | None:
    inputs = {name: _tensor(value) for name, value in case["inputs"].items()}
    with resolve(case["numerics"]).active(seed=0, purpose="test", step=0):
        found = OPERATIONS[case["operation"]](**inputs, **case["arguments"])
    for name, value in case["outputs"].items():
        if (fault := _difference(name, _words(found[name]), value["float32"].split())) is not None:
            return fault
    return None


def _elementary(name: str) -> str | None:
    arguments, results = zip(*_file()["elementary"][name], strict=True)
    x = torch.from_numpy(_floats(arguments))
    # Alone, which is by interval, and each in a chunk, which is tried quickly first.
    chunks = torch.ones(len(arguments), 64)
    chunks[:, 0] = x
    for found in (elementary.apply(name, x), elementary.apply(name, chunks)[:, 0]):
        if (fault := _difference(name, _words(found), results)) is not None:
            return fault
    return None


def _random() -> str | None:
    case = _file()["random"]
    stream = KeyStream(int(case["seed"], 16), case["purpose"], case["step"])
    key = stream.next_key()
    count = len(case["words"])
    found = {
        "keys": [f"{key:016x}"],
        "words": [f"{word:08x}" for word in philox.words(key, count).tolist()],
        "uniform24": _words(philox.uniform24(key, (count,))),
        "normal": _words(philox.normal(key, (count,))),
    }
    for name, values in found.items():
        if (fault := _difference(name, values, case[name][: len(values)])) is not None:
            return fault
    return None


def _tree() -> str | None:
    """Against the blake3 library itself, which computes the root alone."""
    from veritrain.encoding import CONTEXT
    from veritrain.transcript import chaining

    data = bytes(range(250)) * (_TREE_BYTES // 250)
    root = chaining.levels(chaining.mode("tensor"), np.frombuffer(data, np.uint8))[-1][0]
    expected = blake3.blake3(data, derive_key_context=CONTEXT + "tensor").digest()
    return _difference("root", [root.astype("<u4").tobytes().hex()], [expected.hex()])


def _tensor(value: dict[str, Any] | None) -> Tensor | None:
    if value is None:
        return None
    if "int64" in value:
        numbers = np.array(value["int64"], dtype=np.int64)
    else:
        numbers = _floats(value["float32"].split())
    return torch.from_numpy(numbers.reshape(value["shape"]))


def _floats(words: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([int(word, 16) for word in words], dtype=np.uint32).view(np.float32)


def _words(x: Tensor) -> list[str]:
    """Bits, each NaN as 7fc00000."""
    values = x.detach().contiguous().numpy().reshape(-1)
    bits = np.where(np.isnan(values), np.uint32(_NAN), values.view(np.uint32))
    return [f"{word:08x}" for word in bits.tolist()]


def _difference(name: str, found: Sequence[str], expected: Sequence[str]) -> str | None:
    if len(found) != len(expected):
        return f"{name}: expected {len(expected)} values, got {len(found)}"
    for place, (got, want) in enumerate(zip(found, expected, strict=True)):
        if got != want:
            return f"{name}[{place}]: expected {want}, got {got}"
    return None


# What the operations of the cases are


def _gradients(function: Callable[..., Tensor], dy: Tensor, **leaves: Tensor) -> Outputs:
    """The result, and the gradient of each leaf under its name."""
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = function(*leaves.values())
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y} | dict(zip(leaves, grads, strict=True))


def _convolution_backward(grad: Tensor, x: Tensor, w: Tensor, **geometry: Any) -> Outputs:
    masks = [True, True, True]
    parts = aten.convolution_backward(grad, x, w, [grad.shape[1]], *_ordered(**geometry), masks)
    return dict(zip(("dx", "dw", "db"), parts, strict=True))


def _ordered(
    *, stride: Any, padding: Any, dilation: Any, output_padding: Any, groups: Any, transposed: Any
) -> tuple[Any, ...]:
    """As the operators want them."""
    return stride, padding, dilation, transposed, output_padding, groups


def _batch_norm(
    x: Tensor, w: Tensor, b: Tensor, running_mean: Tensor, running_var: Tensor, dy: Tensor,
    **options: Any
) -> Outputs:  # fmt: skip

    def function(dx: Tensor, dw: Tensor, db: Tensor) -> Tensor:
        return F.batch_norm(dx, running_mean, running_var, dw, db, **options)

    found = _gradients(function, dy, dx=x, dw=w, db=b)
    return found | {"running_mean": running_mean, "running_var": running_var}


def _nll(
    x: Tensor, classes: Tensor, weight: Tensor | None, grad: Tensor, **options: Any
) -> Outputs:
    reduction = {"none": 0, "mean": 1, "sum": 2}[options["reduction"]]
    rest = (classes, weight, reduction, options["ignore_index"])
    loss, total = aten.nll_loss_forward(x, *rest)
    dx = aten.nll_loss_backward(grad, x, *rest, total)
    return {"loss": loss, "total_weight": total, "dx": dx}


def _sgd(param: Tensor, grads: Tensor, **options: Any) -> Outputs:
    buffer = torch.zeros_like(param)
    for step, grad in enumerate(grads):
        aten._fused_sgd_([param], [grad], [buffer], is_first_step=step == 0, **options)
    return {"param": param, "buffer": buffer}


def _adam(param: Tensor, grads: Tensor, decoupled: bool, **options: Any) -> Outputs:
    mean, square = torch.zeros_like(param), torch.zeros_like(param)
    update = aten._fused_adamw_ if decoupled else aten._fused_adam_
    for step, grad in enumerate(grads, 1):
        update([param], [grad], [mean], [square], [], [torch.tensor(float(step))], **options)
    return {"param": param, "mean": mean, "square": square}


def _max_pool_backward(
    dy: Tensor, indices: Tensor, size: list[int], kernel: list[int], stride: list[int]
) -> Outputs:
    x = torch.zeros(dy.shape[0], *size)
    rest = (kernel, stride, [0, 0], [1, 1], False)
    return {"dx": aten.max_pool2d_with_indices_backward(dy, x, *rest, indices)}


OPERATIONS: dict[str, Callable[..., Outputs]] = {
    "mm": lambda a, b: {"y": torch.mm(a, b)},
    "bmm": lambda a, b: {"y": torch.bmm(a, b)},
    "addmm": lambda base, a, b, **factors: {"y": torch.addmm(base, a, b, **factors)},
    "convolution": lambda x, w, bias, **geometry: {
        "y": aten.convolution(x, w, bias, *_ordered(**geometry))
    },
    "convolution_backward": _convolution_backward,
    "sum": lambda x, axes: {"y": x.sum(axes)},
    "mean": lambda x, axes: {"y": x.mean(axes)},
    "index_add": lambda x, index, source, alpha: {"y": x.index_add(0, index, source, alpha=alpha)},
    "embedding_backward": lambda grad, index, num_weights, padding_idx: {
        "dw": aten.embedding_dense_backward(grad, index, num_weights, padding_idx, False)
    },
    "batch_norm": _batch_norm,
    "layer_norm": lambda x, w, b, dy, eps: _gradients(
        lambda dx, dw, db: F.layer_norm(dx, w.shape, dw, db, eps), dy, dx=x, dw=w, db=b
    ),
    "group_norm": lambda x, w, b, dy, groups, eps: _gradients(
        lambda dx, dw, db: F.group_norm(dx, groups, dw, db, eps), dy, dx=x, dw=w, db=b
    ),
    "softmax": lambda x, dy, axis: _gradients(lambda dx: torch.softmax(dx, axis), dy, dx=x),
    "log_softmax": lambda x, dy, axis: _gradients(lambda dx: torch.log_softmax(dx, axis), dy, dx=x),
    "nll_loss": _nll,
    "sgd": _sgd,
    "adam": _adam,
    "avg_pool2d": lambda x, dy, kernel, stride, padding: _gradients(
        lambda dx: F.avg_pool2d(dx, kernel, stride, padding), dy, dx=x
    ),
    "max_pool2d_backward": _max_pool_backward,
    "tanh_backward": lambda grad, y: {"y": aten.tanh_backward(grad, y)},
    "softplus_backward": lambda grad, x, **bounds: {
        "y": aten.softplus_backward(grad, x, *bounds.values())
    },
    "power": lambda x, exponent: {"y": x**exponent},
    "glu": lambda x: {"y": F.glu(x)},
}
