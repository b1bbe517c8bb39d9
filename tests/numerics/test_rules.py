"""Every covered operator against float64 PyTorch, with gradients, in every memory layout."""

from __future__ import annotations

import pytest
import test_rules_sequence
import test_rules_vision
import torch
import torch.nn.functional as F
from product_operations import everyday_cases
from rules_support import check, exact, numbers
from torch.utils._python_dispatch import TorchDispatchMode

from veritrain.numerics.rules import covered

aten = torch.ops.aten


def index(*values) -> torch.Tensor:
    return torch.tensor(values)


X = numbers(1, 4, 6)
Y = numbers(2, 4, 6)
IMAGE = numbers(3, 2, 3, 6, 8)
POSITIVE = X.abs() + 0.25
ROWS = index(2, 0, 2, 2)
MASK = numbers(4, 4, 6) > 0

# name: (function, float or integer inputs ...)
CASES = {
    # movement
    "alias": (lambda x: aten.alias(x).clone(), X),
    "as_strided": (lambda x: x.contiguous().as_strided((3, 4), (6, 1)), X),
    "slice": (lambda x: x[1:, ::2].flatten(), X),
    "select": (lambda x: x[1].unsqueeze(0).squeeze(), X),
    "views": (lambda x: x.reshape(2, 12).view(4, 6).t().permute(1, 0).movedim(0, 1), X),
    "expand": (lambda x: x[None].expand(3, 4, 6) * 2, X),
    "split": (lambda x: (*x.split(2), *x.split([1, 3]), *x.chunk(2, 1), *x.unbind()), X),
    "unsafe_split": (lambda x: (*x.unsafe_split(2), *x.unsafe_split_with_sizes([1, 3])), X),
    "unflatten": (lambda x: x.unflatten(1, (2, 3)).flatten(), X),
    "diagonal": (lambda x: x.diagonal() * 2, X),
    "cat": (lambda x, y: torch.cat([x, y, x[:1]]), X, Y),
    "stack": (lambda x, y: torch.stack([x, y, x], 1), X, Y),
    "hstack": (lambda x, y: torch.hstack([x, y]) + torch.vstack([x, y]).view(4, 12), X, Y),
    "repeat": (lambda x: x.repeat(2, 3), X),
    "tile": (lambda x: x.tile(2), X),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), X),
    "repeat_interleave counts": (lambda x: x.repeat_interleave(index(1, 0, 3, 2), 0), X),
    "roll flip": (lambda x: x.roll(1, 0).flip(1), X),
    "unfold": (lambda x: x.detach().unfold(1, 3, 2), X),
    "index": (lambda x: x[ROWS], X),
    "index 2": (lambda x: x[ROWS, index(0, 5, -1, 0)], X),
    "index mask": (lambda x: x[MASK], X),
    "index_select": (lambda x: x.index_select(0, ROWS), X),
    "gather": (lambda x: x.gather(1, index([0, 0], [5, 1], [2, 2], [3, 0])), X),
    "take": (lambda x: x.detach().take(index(0, 0, 7)), X),
    "masked_select": (lambda x: x.masked_select(MASK), X),
    "masked_fill": (lambda x: x.masked_fill(MASK, -2.0), X),
    "masked_fill_": (lambda x: (x * 1).masked_fill_(MASK, -2.0), X),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y.detach()), X, Y),
    "index_fill": (lambda x: x.index_fill(0, ROWS, 1.5), X),
    "index_copy": (lambda x, y: x.index_copy(0, index(3, 0), y[:2]), X, Y),
    "scatter": (lambda x, y: x.scatter(1, index([0, 1], [5, 4], [2, 3], [3, 0]), y[:, :2]), X, Y),
    "scatter value": (lambda x: x.scatter(0, index([0, 1, 2]), 2.0), X),
    "where": (lambda x, y: torch.where(x > y, x, y * 2), X, Y),
    "select_scatter": (lambda x, y: x.select_scatter(y[0], 0, 1), X, Y),
    "slice_scatter": (lambda x, y: x.slice_scatter(y[:2], 0, 1, 3), X, Y),
    "diagonal_scatter": (lambda x, y: x.diagonal_scatter(y.diagonal()), X, Y),
    "pad": (lambda x: F.pad(x, (1, 2, -1, 0), value=3.0), X),
    "reflect": (lambda x: F.pad(x.detach()[None], (1, 2, 1, 0), mode="reflect"), X),
    "reflect 1": (lambda x: F.pad(x.detach(), (1, 2), mode="reflect"), X),
    "replicate": (lambda x: F.pad(x.detach()[None], (1, 2, 1, 0), mode="replicate"), X),
    "tril": (lambda x: x.tril() + x.triu(1) * 2, X),
    "nan_to_num": (lambda x: torch.nan_to_num(x / (x > 0), 1.0, 2.0, -2.0), X),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), numbers(5, 2, 4, 3, 3)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    "im2col": (lambda x: F.unfold(x.detach(), 3, 1, 1, 2), IMAGE),
    "upsample 1": (lambda x: F.interpolate(x.detach(), scale_factor=2), X[None]),
    "upsample 2": (lambda x: F.interpolate(x.detach(), size=(7, 11)), IMAGE),
    "upsample 3": (lambda x: F.interpolate(x.detach()[None], scale_factor=1.5), IMAGE),
    "traced convolution": (
        lambda x, w: aten._convolution(
            x, w, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, False, False
        ),
        IMAGE, numbers(7, 4, 3, 3, 3),
    ),
    "clone": (lambda x: x.clone().contiguous(), X),
    "to": (lambda x: x.to(torch.float64).to(torch.float32).to(torch.bool), X),
    # comparison and choice
    "compare": (lambda x, y: (x == y, x != y, x < y, x <= y, x > y, x >= y), X, Y),
    "logical": (lambda x, y: ((x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0)), X, Y),
    "logical 2": (
        lambda x, y: (x.logical_and(y), x.logical_or(y), x.logical_xor(y), x.logical_not()), X, Y,
    ),
    "classes": (lambda x: ((x / 0).isnan(), x.isinf(), x.isfinite()), X),
    "equal": (lambda x, y: index(int(torch.equal(x, y)), int(torch.equal(x, x))), X, Y),
    "is all true": (
        lambda x: (aten._is_all_true(x > 2), aten._is_any_true(x > 0), aten._is_all_true(x < 9)), X,
    ),
    "any all": (lambda x: ((x > 2).any(), (x > 0).all(1), (x > 0).any(0)), X),
    "argmax": (lambda x: (x.argmax(), x.argmax(1), x.argmin(0, keepdim=True)), X),
    "max": (lambda x: (x.max(), x.min(), x.max(1)[0], x.min(0, keepdim=True)[0]), X),
    "max indices": (lambda x: (x.max(1)[1], x.min(0)[1]), X),
    "amax": (lambda x: (x.amax(1), x.amin((0, 1)), *torch.aminmax(x.detach(), dim=1)), X),
    "maximum": (lambda x, y: (torch.maximum(x, y), torch.minimum(x, y), torch.max(x, y)), X, Y),
    "fmax": (lambda x, y: (torch.fmax(x, y), torch.fmin(x, y)), X, Y),
    "clamp": (lambda x: (x.clamp(-0.5, 0.5), x.clamp_min(0.1), x.clamp_max(0.1)), X),
    "clamp tensors": (lambda x, y: (x.clamp(y, y + 1), x.clamp_min(y), x.clamp_max(y)), X, Y),
    "sort": (lambda x: (x.sort(1)[0], x.sort(0, descending=True)[0], x.argsort(1)), X),
    "sort stable": (lambda x: x.sort(dim=1, stable=True)[0], X),
    "topk": (lambda x: (x.topk(2)[0], x.topk(3, 0, largest=False)[0]), X),
    "bucketize": (lambda x: torch.bucketize(x, index(-1.0, 0.0, 1.0).to(x.dtype)), X),
    "searchsorted": (lambda x: torch.searchsorted(index(-1.0, 0.0, 1.0).to(x.dtype), x), X),
    "nonzero": (lambda x: (x > 0).nonzero(), X),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), X[None]),
    "max_pool3d": (lambda x: F.max_pool3d(x.detach()[None], 2), IMAGE),
    # IEEE
    "arithmetic": (lambda x, y: (x + y, x - y, x * y, x / (y.abs() + 1), 2 - x, 3 / POSITIVE), X,
        Y),
    "scalars": (lambda x: (x + 1, x - 0.3, x * 0.1, x / 3, -x, x.abs()), X),
    "alpha": (
        lambda x, y: (torch.add(x, y, alpha=0.3), torch.sub(x, y, alpha=2), torch.rsub(x, y,
            alpha=3)),
        X, Y,
    ),
    "alpha scalars": (
        lambda x: (torch.add(x, 2.0, alpha=3), torch.sub(x, 2.0, alpha=3),
            torch.rsub(x, 2.0, alpha=3)),
        X,
    ),
    "in place": (lambda x, y: (x * 1).add_(y, alpha=2).sub_(1).sub_(y, alpha=0.5).mul_(y).add_(1),
        X, Y),
    "rounding": (lambda x: (x.floor(), x.ceil(), x.round(), x.trunc(), x.frac(), x.detach().sgn()),
        X * 3),
    "sign": (lambda x: (x.sign(), x.copysign(-1.0), x.reciprocal()), X),
    "div trunc": (lambda x: torch.div(x, 0.7, rounding_mode="trunc"), X * 3),
    "relu": (lambda x: (x.relu(), F.relu6(x), F.hardtanh(x, -0.5, 0.7), F.threshold(x, 0.1, 5)), X),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), X),
    # composite
    "addcmul": (lambda x, y: (torch.addcmul(x, x, y, value=2), torch.addcmul(x, y, y)), X, Y),
    "addcdiv": (lambda x, y: torch.addcdiv(x, y, POSITIVE.to(x.dtype), value=0.5), X, Y),
    "lerp": (lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, y.sigmoid())), X, Y),
    "square": (lambda x: x.square(), X),
    "pow": (
        lambda x: tuple(x**n for n in (0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5, 0.25, 0.75)),
        POSITIVE,
    ),
    "pow_": (lambda x: (x * 1).pow_(2), X),
    "elementary": (
        lambda x: (x.exp(), x.expm1(), x.tanh(), x.erf(), x.sigmoid(), x.sin(), x.cos()), X,
    ),
    "elementary positive": (lambda x: (x.log(), x.log1p(), x.sqrt(), x.rsqrt()), POSITIVE),
    "elementary in place": (lambda x: x.detach().clone().exp_().log1p_().sqrt_().tanh_(), X),
    "silu": (lambda x: F.silu(x), X),
    "gelu": (lambda x: (F.gelu(x), F.gelu(x, approximate="tanh")), X),
    "softplus": (lambda x: (F.softplus(x), F.softplus(x, 2, 1.5), F.logsigmoid(x)), X),
    "elu": (lambda x: (F.elu(x), F.elu(x, 0.5), F.selu(x), F.celu(x, 1.3)), X),
    "elu in place": (lambda x: F.elu(x * 1, 0.7, inplace=True), X),
    "hard": (lambda x: (F.hardswish(x), F.hardsigmoid(x), F.hardswish(x * 2)), X * 1.3),
    "glu": (lambda x: (F.glu(x), F.glu(x, 0)), X),
    "prelu": (lambda x, y: F.prelu(x, y[0]), X, Y),
    "linspace": (lambda x: tuple(torch.linspace(-1, 2, n).to(x.dtype) for n in (0, 1, 2, 5, 8)), X),
    "arange": (
        lambda x: (torch.arange(5).to(x.dtype), torch.arange(1, 9, 3), torch.arange(7, 1, -2)), X,
    ),
    "integers": (lambda n: (n // 3, n % 5, n**2, n * 2 + 1, -n, n.fmod(4)), ROWS + 7),
    "bits": (lambda n: (n & 3, n | 8, n ^ 5, ~n, n << 2, n >> 1), ROWS + 7),
    "one_hot": (lambda n: F.one_hot(n, 5), ROWS),
    # sums
    "sum": (lambda x: (x.sum(), x.sum(0), x.sum((0, 1), keepdim=True), x.sum([])), X),
    "mean": (lambda x: (x.mean(), x.mean(1, keepdim=True)), X),
    "var": (lambda x: (x.var(), x.var(1, correction=0), x.var(0, keepdim=True)), X),
    "norm": (
        lambda x: (
            x.norm(), x.norm(dim=1), torch.linalg.vector_norm(x, 1, 1, True),
            torch.linalg.vector_norm(x, float("inf"), 0), aten.norm.Scalar(x, 2),
        ),
        X,
    ),
    "norm old": (lambda x: aten.norm.ScalarOpt_dim(x, 2, [1], True), X),
    "embedding": (lambda w: F.embedding(index([0, 3, 0], [1, 0, 0]), w), X),
    "embedding padding": (lambda w: F.embedding(index(0, 3, 0, 1), w, padding_idx=0), X),
    "index_add": (lambda x, y: x.index_add(0, ROWS, y, alpha=0.5), X, Y),
    "index_add 1": (lambda x, y: x.index_add(-1, index(5, 5), y[:, :2]), X, Y),
    "scatter_add": (lambda x, y: x.scatter_add(0, index([0] * 6, [1] * 6, [0] * 6), y[:3]), X, Y),
    "index_put": (lambda x, y: x.index_put((ROWS,), y, accumulate=True), X, Y),
    "index_put pair": (
        lambda x, y: x.index_put((ROWS, index(1, 1, -5, 1)), y[0, :1], accumulate=True), X, Y,
    ),
    "index_put set": (lambda x, y: x.index_put((MASK,), y[0, 0]), X, Y),
    "unsafe_index_put": (lambda x, y: aten._unsafe_index_put(x.detach(), [ROWS], y.detach(), True),
        X, Y),
    "avg_pool": (lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, (2, 3))),
        IMAGE),
    "adaptive": (lambda x: (F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (3, 4))), IMAGE),
    "std": (lambda x: (x.std(), x.std(1), x.std(0, correction=0, keepdim=True)), X),
    "logsumexp": (lambda x: (x.logsumexp(1), x.logsumexp((0, 1), keepdim=True)), X),
    "smooth l1": (
        lambda x, y: (
            *(F.smooth_l1_loss(x, y, reduction=r) for r in ("none", "mean", "sum")),
            F.smooth_l1_loss(x, y, beta=0.3), F.huber_loss(x, y, delta=0.7),
            F.huber_loss(x, y, reduction="sum"), F.l1_loss(x, y),
        ), X, Y,
    ),
    "bce logits": (
        lambda x, y: (
            *(
                F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction=r)
                for r in ("none", "mean", "sum")
            ),
            F.binary_cross_entropy_with_logits(
                x, (y > 0).to(x.dtype), POSITIVE.to(x.dtype), pos_weight=POSITIVE[0].to(x.dtype)
            ),
        ), X, Y,
    ),
    "kl": (
        lambda x, y: (
            F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
            F.kl_div(x.log_softmax(1), y.log_softmax(1), reduction="sum", log_target=True),
        ), X, Y,
    ),
    "mse": (lambda x, y: tuple(F.mse_loss(x, y, reduction=r) for r in ("none", "mean", "sum")), X,
        Y),
    # contractions
    "mm": (lambda x, y: (x @ y.T, x.mm(y.T)), X, Y),
    "bmm": (lambda x, y: x.bmm(y.mT), IMAGE[0], IMAGE[1]),
    "mv dot": (lambda x, y: (x.mv(y[0]), x[0].dot(y[0]), torch.vdot(x[0], y[1])), X, Y),
    "addmm": (lambda x, y, b: torch.addmm(b, x, y.T, beta=0.5, alpha=2), X, Y, numbers(6, 4)),
    "addmm beta 0": (lambda x, y, b: torch.addmm(b, x, y.T, beta=0), X, Y, numbers(6, 4)),
    "addmv": (lambda x, y: torch.addmv(y[:, 0], x, y[0], alpha=0.5), X, Y),
    "baddbmm": (lambda x, y: torch.baddbmm(y.bmm(x.mT), x, y.mT, beta=2), IMAGE[0], IMAGE[1]),
    "linear": (lambda x, w, b: F.linear(x, w, b), IMAGE, numbers(7, 5, 8), numbers(8, 5)),
    "einsum": (lambda x, y: torch.einsum("bchw,bdhw->bcd", x, y), IMAGE, IMAGE * 0.5),
    "attention": (
        lambda x, y: F.scaled_dot_product_attention(x, y, y, is_causal=True), IMAGE,
        numbers(9, 2, 3, 6, 8),
    ),
    "masked attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(6) > 0), IMAGE,
    ),
    # normalisation
    "softmax": (lambda x: (x.softmax(0), x.log_softmax(1), F.softmin(x, -1)), X),
    "safe_softmax": (
        lambda x: aten._safe_softmax(x.masked_fill(torch.arange(6) < index([0], [6], [3], [1]),
            -1e400), 1), X,
    ),
    "layer_norm": (lambda x: (F.layer_norm(x, (6,)), F.layer_norm(x, (4, 6))), X),
    "layer_norm affine": (lambda x, w, b: F.layer_norm(x, (6,), w, b), X, Y[0], Y[1]),
    "group_norm": (lambda x: F.group_norm(x, 3), IMAGE),
    "group_norm affine": (lambda x, w, b: F.group_norm(x, 2, w, b), numbers(3, 2, 4, 3), Y[:, 0],
        Y[:, 1]),
    "instance_norm": (lambda x: F.instance_norm(x), IMAGE),
    "native batch norm": (
        lambda x, w: aten._native_batch_norm_legit.no_stats(x, w, w, True, 0.1, 1e-5)[0], IMAGE,
        Y[0, :3],
    ),
    "legit batch norm": (
        lambda x, w: aten._native_batch_norm_legit(
            x.detach(), w.detach(), None, torch.zeros(3).to(x), torch.ones(3).to(x), True, 0.1, 1e-5
        )[0],
        IMAGE, Y[0, :3],
    ),
}  # fmt: skip
CASES |= {f"of the vectors: {name}": case for name, case in everyday_cases().items()}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64_in_every_layout(name):
    function, *inputs = CASES[name]
    check(function, *inputs)


# Operators that the table above cannot meet: why.
NOT_SHOWN = {
    # take no tensor or give no value
    "record_stream", "set_", "_assert_async", "_assert_scalar", "_pin_memory", "is_pinned",
    "is_same_size",
    "sym_size", "sym_stride", "sym_numel", "sym_storage_offset",
    "_has_compatible_shallow_copy_type",
}  # fmt: skip


class Log(TorchDispatchMode):
    """Names of the operators that pass, as `covered()` names them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= {str(func), func.name().partition("::")[2].partition(".")[0]}
        return func(*args, **(kwargs or {}))


INFERENCE = {
    aten.chunk: (X, 2), aten.expand_as: (X[0], X), aten.hstack: ([X],), aten.vstack: ([X],),
    aten.item: (X[0, 0],), aten.movedim: (X, [0], [1]), aten.narrow: (X, 0, 1, 2),
    aten.one_hot: (ROWS, 4),
    aten.reshape: (X, [3, 8]), aten.tile: (X, [2]), aten.unflatten: (X, 1, [2, 3]),
    aten.is_nonzero: (X[0, 0],), aten.__and__: (ROWS, ROWS),
    aten.__or__: (ROWS, ROWS), aten.__xor__: (ROWS, ROWS), aten.max.other: (X, Y),
    aten.min.other: (X, Y),
}  # fmt: skip
DIRECT = [
    (aten.add.Scalar, X, 2), (aten.sub.Scalar, X, 2), (aten.add_.Scalar, X, 2),
    (aten.sub_.Scalar, X, 2),
    (aten.arange.start, 1, 4),
    (aten.bernoulli.default, X.sigmoid()), (aten.bernoulli.p, X, 0.5),
    (aten.bernoulli_.Tensor, X, X.sigmoid()), (aten.bernoulli_.float, X, 0.5),
    (aten.fmod.Tensor, ROWS, ROWS + 1),
    (aten.remainder.Tensor, ROWS, ROWS + 1), (aten.floor_divide.Scalar, ROWS, 2),
    (aten.new_empty.default, X, [2]),
    (aten.empty_permuted.default, [2, 3], [1, 0]), (aten.empty_strided.default, [2, 3], [1, 2]),
    (aten.normal.float_float, 0.0, 1.0, [3]), (aten.normal_.default, X), (aten.rand.default, [3]),
    (aten._standard_gamma.default, POSITIVE), (aten._sample_dirichlet.default, POSITIVE),
    (aten.rand_like.default, X), (aten.randint.default, 5, [3]), (aten.randint.low, 2, 5, [3]),
    (aten.randn.default, [3]), (aten.randn_like.default, X), (aten.random_.default, ROWS),
    (getattr(aten.random_, "from"), ROWS, 1, 4), (aten.random_.to, ROWS, 4),
    (aten.randperm.default, 5),
    (aten.resize_.default, X, [30]), (aten.uniform_.default, X),
    (aten._reshape_alias, X, [24], [1]), (aten.copy, X, Y), (aten.fill, X, 2.0),
    (aten.full, [2], 1.0),
    (aten.full_like, X, 1.0), (aten.new_full, X, [2], 1.0), (aten.new_ones, X, [2]), (aten.lift, X),
    (aten.lift_fresh_copy, X), (aten.squeeze_, X), (aten.unsqueeze_, X, 0), (aten.zero, X),
    (aten.zero_, X),
    (aten.tril_indices, 3, 3), (aten.triu_indices, 3, 3), (aten.bitwise_left_shift, ROWS, 1),
    (aten.bitwise_right_shift, ROWS, 1), (aten.exponential_.default, X),
    (aten.normal.Tensor_Tensor, X, POSITIVE), (aten.normal.Tensor_float, X),
    (aten.normal.float_Tensor, 0.0, POSITIVE),
    (aten.multinomial.default, POSITIVE, 2), (aten.copysign.Tensor, X, Y),
    (aten.fill.Tensor, X, X[0, 0]),
    (aten.fill_.Tensor, X, X[0, 0]), (aten.view.dtype, X, torch.int32),
]  # fmt: skip


def test_every_covered_operator_is_shown():
    """The tables, the training-mode operators and the random ones meet all that is covered."""
    tables = (CASES, test_rules_sequence.CASES, test_rules_vision.CASES)
    with exact(), Log() as log:
        for function, *inputs in (case for table in tables for case in table.values()):
            leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
            result = function(*leaves)
            parts = result if isinstance(result, tuple) else (result,)
            rooted = [part.sum() for part in parts if part.requires_grad]
            if rooted:
                torch.stack(rooted).sum().backward()
        _other_operators()
    missing = set(covered()) - log.seen - NOT_SHOWN
    assert not missing, " ".join(sorted(missing))


def _other_operators() -> None:
    """Operators that test_rules_*.py examine, and those that only inference mode leaves whole."""
    x = X.clone()
    F.hardtanh(x.clone().clamp_(-1, 1).clamp_max_(0.5), inplace=True)
    torch.func.hessian(lambda v: F.group_norm(v.view(1, 4, 1), 2).abs().sum())(x.flatten()[:4])
    torch.func.hessian(lambda v: v.abs().pow(2).sum())(x.flatten()[:4])
    loss = F.conv2d(IMAGE.clone().requires_grad_(), numbers(1, 2, 3, 3, 3), padding=1)
    loss = F.cross_entropy(loss, torch.zeros(2, 6, 8, dtype=torch.long))
    loss = loss + F.cross_entropy(x.requires_grad_(), ROWS)
    (loss + torch.native_dropout(x, 0.5, True)[0].sum()).backward()
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        for rate in (0.1, torch.tensor(0.1)):
            optimizer([x], lr=rate, fused=True).step()
    x = x.detach()
    with torch.inference_mode():
        for operator in (
            aten.chunk, aten.expand_as, aten.flatten, aten.hstack, aten.isfinite, aten.item,
            aten.movedim,
            aten.narrow, aten.numpy_T, aten.one_hot, aten.reshape, aten.tile, aten.unflatten,
            aten.vstack,
            aten.square, aten.is_nonzero, aten.__and__, aten.__or__, aten.__xor__, aten.max.other,
            aten.min.other,
            aten.argsort.default,
        ):  # fmt: skip
            operator(*INFERENCE.get(operator, (x,)))
        aten.contiguous(x.T)
        aten.detach_(x.clone())
        aten.argsort.stable(x, stable=True)
    aten.div.Scalar_mode(x, 2.0, rounding_mode="trunc")
    for operator, *arguments in DIRECT:
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        operator(*copies)
