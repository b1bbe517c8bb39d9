"""Sums, contractions, pooling, normalisation and losses on random shapes and options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rules_support import check, close, evaluate, exact, layouts, numbers, same

small = st.integers(0, 4)
shapes = st.lists(small, max_size=4).map(tuple)
brief = settings(max_examples=40, deadline=None)


@st.composite
def reductions(draw):
    """A shape and some of its dimensions, counted from either end."""
    shape = draw(shapes)
    dims = draw(st.lists(st.integers(0, max(len(shape) - 1, 0)), unique=True, max_size=len(shape)))
    signed = [d - len(shape) if shape and draw(st.booleans()) else d for d in dims]
    return shape, signed, draw(st.booleans())


@given(reductions())
@brief
def test_reductions(case):
    shape, dims, keepdim = case
    x = numbers(1, *shape)
    check(lambda x: x.sum(dims, keepdim), x)
    check(lambda x: x.mean(dims, keepdim), x)
    count = 1
    for d in dims or range(len(shape)):
        count *= shape[d]
    if count > 1:
        check(lambda x: x.var(dims, correction=1, keepdim=keepdim), x)
        check(lambda x: torch.linalg.vector_norm(x, 2, dims or None, keepdim), x)
        check(lambda x: x.amax(dims, keepdim), x)


@given(shapes, st.data())
@brief
def test_softmax_over_any_dimension(shape, data):
    dim = data.draw(st.integers(-max(len(shape), 1), max(len(shape), 1) - 1))
    x = numbers(1, *shape)
    check(lambda x: (x.softmax(dim), x.log_softmax(dim)), x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64])
def test_sums_of_integers(dtype):
    x = (numbers(1, 3, 5) * 40).to(torch.int8).clamp_min(0).to(dtype)
    results = []
    with exact():
        for function in (torch.sum, lambda x: x.sum(1), lambda x: x.sum((0, 1), keepdim=True)):
            results.append(function(x))
        results += [
            x.sum(dtype=torch.float32), x.mean(dtype=torch.float32),
            x.float().sum(0, dtype=torch.float32)
        ]  # fmt: skip
    wide = x.double()
    want = [x.sum(), x.sum(1), x.sum((0, 1), keepdim=True)]
    want += [wide.sum().float(), (wide.sum() / 15).float(), wide.sum(0).float()]
    same(results, want)


@given(*[st.integers(0, 9)] * 3, st.integers(0, 3))
@brief
def test_products_of_any_size(m, k, n, p):
    a, b = numbers(1, m, k), numbers(2, k, n)
    check(lambda a, b: a @ b, a, b)
    check(lambda a, b: F.linear(a, b), a, numbers(2, n, k))
    check(lambda a, b: a @ b, a, numbers(2, k))
    check(lambda a, b: a.bmm(b), numbers(1, p, m, k), numbers(2, p, k, n))
    check(lambda c, a, b: torch.addmm(c, a, b), numbers(3, n), a, b)
    check(lambda c, a, b: torch.addmm(c, a, b, beta=0.5), numbers(3, m, 1), a, b)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
@brief
def test_expanded_operands(m, k, n):
    wide = numbers(1, 1, k).expand(m, k)
    with exact():
        same(wide @ numbers(2, k, n), wide.contiguous() @ numbers(2, k, n))
        same(numbers(2, n, k) @ wide.T, numbers(2, n, k) @ wide.T.contiguous())
        same(wide.sum(0), wide.contiguous().sum(0))
        same(wide.softmax(0), wide.contiguous().softmax(0))


@st.composite
def convolutions(draw):
    spatial, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    several = st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial)
    kernel = draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))
    stride, dilation = draw(several), draw(several)
    padding = [draw(st.integers(0, 2)) for _ in range(spatial)]
    transposed = draw(st.booleans())
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    size = [
        d * (k - 1) + 1 + draw(st.integers(0, 3)) for d, k in zip(dilation, kernel, strict=True)
    ]
    x = numbers(1, draw(st.integers(0, 3)), inputs, *size)
    channels = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    w = numbers(2, *channels, *kernel)
    bias = numbers(3, outputs) if draw(st.booleans()) else None
    if transposed:
        lengths = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1 + e
            for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
        ]
        assume(min(lengths) > 0)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d) if transposed else (
        F.conv1d, F.conv2d, F.conv3d
    )  # fmt: skip
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options["output_padding"] = extra
    return function[spatial - 1], x, w, bias, options


@given(convolutions())
@settings(max_examples=120, deadline=None)
def test_convolutions(case):
    function, x, w, bias, options = case
    if bias is None:
        check(lambda x, w: function(x, w, **options), x, w)
    else:
        check(lambda x, w, b: function(x, w, b, **options), x, w, bias)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_number_stands_for_every_axis_of_a_convolution(rank, transposed):
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    function = getattr(F, name)
    x, w = numbers(1, 2, 2, *[5] * rank), numbers(2, 2, 3 if transposed else 2, *[3] * rank)
    for options in ({"stride": 2}, {"padding": 1}, {"dilation": 2}) + (
        ({"stride": 2, "output_padding": 1},) if transposed else ()
    ):
        one = {key: (value,) for key, value in options.items()}
        all_axes = {key: (value,) * rank for key, value in options.items()}
        check(lambda x, w: function(x, w, **one), x, w)  # noqa: B023
        with exact():
            same(
                evaluate(lambda x, w: function(x, w, **one), (x, w)),  # noqa: B023
                evaluate(lambda x, w: function(x, w, **all_axes), (x, w)),  # noqa: B023
            )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_layers_without_padding_by_name(rank):
    layer = getattr(torch.nn, f"Conv{rank}d")
    named, plain = layer(2, 3, 3, padding="valid"), layer(2, 3, 3)
    named.load_state_dict(plain.state_dict())
    x = numbers(1, 2, 2, *[5] * rank)

    def step(net):
        y = net(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), list(net.parameters()))

    with exact():
        same(step(named), step(plain))
    close(step(named), step(plain), 1e-6)


def test_convolution_without_a_batch_and_of_expanded_input():
    check(lambda x, w: F.conv2d(x, w, padding="same"), numbers(1, 2, 5, 6), numbers(2, 3, 2, 3, 3))
    x = numbers(1, 1, 2, 5, 1).expand(3, 2, 5, 4)
    with exact():
        same(F.conv2d(x, numbers(2, 3, 2, 2, 2)), F.conv2d(x.contiguous(), numbers(2, 3, 2, 2, 2)))


@given(
    st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2),
    st.booleans(), st.integers(5, 8),
)  # fmt: skip
@brief
def test_pooling(batch, kernel, stride, padding, dilation, ceil_mode, size):
    padding = min(padding, kernel // 2)
    x = numbers(1, batch, 2, size, 6)
    check(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode), x)
    check(lambda x: F.max_pool2d(x[0] if batch else x, (kernel, 2), stride), x)
    check(lambda x: F.avg_pool2d(x, kernel, stride, padding), x)
    check(lambda x: F.avg_pool2d(x, (2, kernel)), x)


@given(
    st.sampled_from([(), (3,), (3, 2)]), st.integers(0, 3), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 0.1]), st.sampled_from(["none", "sum", "mean"]), st.integers(0, 9),
)  # fmt: skip
@brief
def test_cross_entropy(spatial, batch, weighted, ignoring, smoothing, reduction, seed):
    x = numbers(seed, batch, 4, *spatial)
    target = torch.randint(4, (batch, *spatial), generator=torch.Generator().manual_seed(seed))
    ignore = 2 if ignoring else -100
    options = {"ignore_index": ignore, "label_smoothing": smoothing, "reduction": reduction}
    if weighted:
        check(
            lambda x, w: F.cross_entropy(x, target, w.detach(), **options), x, numbers(1, 4).abs()
        )
    else:
        check(lambda x: F.cross_entropy(x, target, **options), x)


def test_cross_entropy_of_one_sample_of_probabilities_and_of_bytes():
    x = numbers(1, 3, 4)
    check(lambda x: F.cross_entropy(x[0], torch.tensor(2)), x)
    check(lambda x, p: F.cross_entropy(x, p.softmax(1)), x, numbers(2, 3, 4))
    check(lambda x: F.nll_loss(x.log_softmax(1), torch.tensor([1, 0, 3]).byte()), x)
    with exact(), pytest.raises(IndexError, match="class index"):
        F.cross_entropy(x, torch.tensor([0, 4, 1]))
    ignored = torch.full((3,), -100)
    with exact():
        assert F.cross_entropy(x, ignored).isnan()
        assert F.cross_entropy(x, ignored, reduction="sum").item() == 0


class Norm(torch.nn.Module):
    """Two training steps, then evaluation, of a batch norm built anew: the running values count."""

    def __init__(self, options: dict) -> None:
        super().__init__()
        self.options = options

    def forward(self, x, w, b):
        norm = torch.nn.BatchNorm2d(x.shape[1], dtype=x.dtype, **self.options)
        if norm.affine:
            norm.weight, norm.bias = (torch.nn.Parameter(part.detach()) for part in (w, b))
        first, second = norm(x), norm(x * 2 + 1)
        norm.eval()
        result = [first, second, norm(x)]
        if norm.track_running_stats:
            result += [norm.running_mean, norm.running_var]
        return tuple(result)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm(affine, tracked, momentum):
    options = {"affine": affine, "track_running_stats": tracked, "momentum": momentum}
    check(Norm(options), numbers(1, 3, 4, 2, 5), numbers(2, 4), numbers(3, 4))


def test_gradients_of_norm_weights_in_training_and_evaluation():
    for training in (True, False):
        check(
            lambda x, w, b: F.batch_norm(
                x, torch.full_like(w, 0.5).detach(), torch.full_like(w, 2.0).detach(), w, b,
                training  # noqa: B023
            ),
            numbers(1, 6, 4), numbers(2, 4), numbers(3, 4),
        )  # fmt: skip


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
@brief
def test_layer_and_group_norm(batch, groups, width, affine):
    x = numbers(1, batch, groups * 2, width, 2)
    w, b = numbers(2, width, 2), numbers(3, width, 2)
    channel = numbers(4, groups * 2), numbers(5, groups * 2)
    if affine:
        check(lambda x, w, b: F.layer_norm(x, (width, 2), w, b), x, w, b)
        check(lambda x, w, b: F.group_norm(x, groups, w, b), x, *channel)
    else:
        check(lambda x: F.layer_norm(x, (width, 2)), x)
        check(lambda x: F.group_norm(x, groups), x)


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 3), st.integers(-2, 1))
@brief
def test_indexed_sums(places, width, dim):
    index = torch.tensor(places, dtype=torch.int64)
    x, rows = numbers(1, 5, width), numbers(2, len(places), width)
    check(lambda x, rows: x.index_add(0, index, rows), x, rows)
    check(lambda x, rows: x.index_add(0, index.int(), rows, alpha=2), x, rows)
    check(lambda x, rows: x.index_put((index,), rows, accumulate=True), x, rows)
    check(lambda x: F.embedding(index, x), x)
    check(lambda x: F.embedding(index, x, padding_idx=-1), x)
    check(lambda x: x[index], x)
    wide = torch.zeros(len(places), 5, dtype=torch.int64)
    if len(places) <= 5:
        wide = wide[:, : len(places)]  # as large as the values along either dimension
        values = numbers(2, len(places), len(places))
        check(lambda x, y: x.scatter_add(dim, wide, y), numbers(1, 5, 5), values)


def test_indexed_sums_of_single_numbers_and_integers():
    one = torch.zeros((), dtype=torch.int64)
    check(lambda x, y: x.index_add(0, one, y), numbers(1), numbers(2))
    check(lambda x, y: x.scatter_add(0, one, y), numbers(1), numbers(2))
    x, index = torch.arange(6).view(3, 2), torch.tensor([2, 0, 2])
    with exact():
        got = (
            x.index_add(0, index, x), x.scatter_add(0, index[:, None], x[:, :1]),
            x.index_put((index,), x, accumulate=True),
        )  # fmt: skip
    want = (
        x.index_add(0, index, x), x.scatter_add(0, index[:, None], x[:, :1]),
        x.index_put((index,), x, accumulate=True),
    )  # fmt: skip
    same(got, want)


@given(shapes, shapes)
@brief
def test_arithmetic_broadcasts_and_promotes(first, second):
    try:
        torch.broadcast_shapes(first, second)
    except RuntimeError:
        assume(False)
    x, y = numbers(1, *first), numbers(2, *second)
    check(
        lambda x, y: (x + y, x * y - y, torch.lerp(x, y, 0.5), torch.addcmul(x, x, y, value=3)),
        x,
        y,
    )
    n = torch.ones(second, dtype=torch.int64) * 3
    with exact():
        assert (n + 0.5).dtype == torch.float32
        assert (n / 2).dtype == torch.float32
        assert (x + n).dtype == torch.float32
        assert (x[None] + torch.tensor(1.0, dtype=torch.float64)).dtype == torch.float32
        assert (n * 2).dtype == torch.int64
        assert ((n > 1) & (n > 2)).dtype == torch.bool


FOREACH = {
    "add": (1.5,), "add list": ("list",), "add scalars": ([1.0, 2.0],), "sub": ("list",),
    "mul": (0.3,),
    "div": (3.0,), "addcmul": ("list", "list", 0.3),
    "addcmul scalars": ("list", "list", [0.3, 2.0]),
    "addcmul tensor": ("list", "list", torch.tensor([0.5, 2.0])), "addcdiv": ("list", "list", 0.3),
    "addcmul plain": ("list", "list"), "lerp": ("list", 0.3), "lerp list": ("list", "list"),
    "maximum": (0.1,), "maximum list": ("list",), "minimum scalars": ([0.1, -0.1],),
    "clamp_max": (0.1,),
    "sqrt": (), "exp": (), "neg": (), "abs": (), "reciprocal": (), "sign": (), "tanh": (),
    "pow": (2,),
    "zero": (), "copy": ("list",),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREACH)
def test_foreach_equals_one_after_the_other(name):
    operator = name.split()[0]
    tensors = [numbers(1, 3, 4).abs(), numbers(2, 5).abs()]
    others = [numbers(3, 3, 4).abs() + 1, numbers(4, 5).abs() + 1]
    arguments = [
        others if a == "list" else a
        for a in FOREACH[name]
        if isinstance(a, (str, list, float, int, torch.Tensor))
    ]
    copies = [x.clone() for x in tensors]
    with exact():
        if operator not in ("zero", "copy"):
            got = getattr(torch, f"_foreach_{operator}")(tensors, *arguments)
        in_place = getattr(torch, f"_foreach_{operator}_")(copies, *arguments)
    assert all(x is y for x, y in zip(in_place, copies, strict=True))
    wide = [x.double() for x in tensors]
    arguments = [[x.double() for x in others] if a is others else a for a in arguments]
    if operator in ("zero", "copy"):
        close(copies, [x * 0 for x in wide] if operator == "zero" else others, 0)
        return
    close(list(got), getattr(torch, f"_foreach_{operator}")(wide, *arguments), 1e-6)
    same(list(got), copies)


def test_foreach_of_nothing_and_norms():
    x = [numbers(1, 3, 4), numbers(2, 5)]
    with exact():
        assert list(torch._foreach_norm(x)) == [part.norm() for part in x]
        assert list(torch._foreach_norm(x, 1)) == [part.norm(p=1) for part in x]


IN_PLACE = {
    "add": lambda x: x.add_(0.3), "alpha": lambda x: x.add_(x.clone(), alpha=0.3),
    "exp": lambda x: x.exp_(),
    "addcmul": lambda x: x.addcmul_(x, x, value=0.3), "relu": lambda x: x.relu_(),
    "sqrt": lambda x: x.sqrt_(),
    "clamp": lambda x: x.clamp_(-0.5, 0.5), "clamp tensor": lambda x: x.clamp_(x * 0.5,
        x * 0.5 + 1),
    "lerp": lambda x: x.lerp_(x * 2, 0.3), "pow": lambda x: x.pow_(2),
    "square": lambda x: x.square_(),
    "mul": lambda x: x.mul_(x), "fill": lambda x: x.fill_(2),
    "index_add": lambda x: x.index_add_(0, ZERO, x[:1] * 2),
    "scatter": lambda x: x.scatter_(0, ZERO[:, None], 2.0), "sigmoid": lambda x: x.sigmoid_(),
    "index_put": lambda x: x.index_put_((ZERO,), x[1:2] * 2), "tril": lambda x: x.tril_(),
    "masked_fill": lambda x: x.masked_fill_(x > 0, 1.0),
    "addmm": lambda x: x.addmm_(x, x[:, :1] @ x[:1]),
    "copy": lambda x: x.copy_(x.flip(0)), "div": lambda x: x.div_(3),
}  # fmt: skip
ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_changes_the_tensor_itself_and_its_views(name):
    function = IN_PLACE[name]
    x = numbers(1, 4, 4)
    with exact():
        want = function(x.clone())
        for other in (x.clone(), *layouts(x)):
            view = other[1:]
            got = function(other)
            assert got is other
            same(got, want)
            same(view, want[1:])
    close([want], [function(x.double())], 1e-5)


OUT = {
    "add": lambda x, out: torch.add(x, x, alpha=0.5, out=out), "mul": lambda x,
    out: torch.mul(x, x, out=out),
    "mm": lambda x, out: torch.mm(x, x, out=out), "exp": lambda x, out: torch.exp(x, out=out),
    "sum": lambda x, out: torch.sum(x, 1, out=out), "mean": lambda x,
    out: torch.mean(x, 1, out=out),
    "amax": lambda x, out: torch.amax(x, 1, out=out), "cat": lambda x,
    out: torch.cat([x, x], out=out),
    "addmm": lambda x, out: torch.addmm(x, x, x, out=out), "sqrt": lambda x,
    out: torch.sqrt(x.abs(), out=out),
    "minimum": lambda x, out: torch.minimum(x, x.T, out=out), "clamp": lambda x,
    out: torch.clamp(x, x.T, out=out),
    "div": lambda x, out: torch.div(x, 0.3, rounding_mode="trunc", out=out),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_out_receives_the_result(name):
    function, x = OUT[name], numbers(1, 4, 4)
    want = function(x.double(), torch.empty(0, dtype=torch.float64))
    with exact():
        for out in (
            torch.empty(0),
            torch.full(want.shape, 7.0),
            torch.zeros(*want.shape, 2)[..., 0],
        ):
            got = function(x, out)
            assert got is out
            close([got], [want], 1e-5)


def test_threads_and_size_do_not_matter():
    """Large enough that every kernel is split among threads."""
    x, w = numbers(1, 8, 16, 24, 24), numbers(2, 16, 16, 3, 3)

    def function(x, w):
        y = F.conv2d(x, w, padding=1)
        y = F.batch_norm(y, None, None, training=True)
        y = F.max_pool2d(F.gelu(y), 3, 2, 1)
        y = F.layer_norm(y, (12,)) + F.avg_pool2d(y, 3, 1, 1)
        z = y.flatten(2)
        return (
            (z @ z.mT).softmax(-1),
            z.sum((0, 2)),
            z.flatten(0, 1).T.contiguous().sum(0),
            z.mean(1),
        )

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with exact():
                results.append(evaluate(function, (x, w)))
    finally:
        torch.set_num_threads(threads)
    same(results[1], results[0])
    same(results[2], results[0])


def test_order_of_rows_does_not_matter():
    x, w = numbers(1, 40, 30), numbers(2, 30, 20)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    with exact():
        same((x @ w)[order], x[order] @ w)
        same(x.T @ x, x[order].T @ x[order])
        same(x.sum(0), x[order].sum(0))
        same(x.softmax(1)[order], x[order].softmax(1))
        same(F.layer_norm(x, (30,))[order], F.layer_norm(x[order], (30,)))
        same(
            F.batch_norm(x, None, None, training=True)[order],
            F.batch_norm(x[order], None, None, training=True),
        )
        image = x.view(40, 2, 3, 5)
        kernel = numbers(3, 4, 2, 2, 2)
        same(F.conv2d(image, kernel)[order], F.conv2d(image[order], kernel))
        grads = [
            evaluate(lambda k, i=i: F.conv2d(i, k).sum((0, 2, 3)), (kernel,))[1]
            for i in (image, image[order])
        ]
        same(*grads)
        rows = order % 7
        same(
            torch.zeros(7, 30).index_add(0, rows, x),
            torch.zeros(7, 30).index_add(0, rows.flip(0), x.flip(0)),
        )


def test_layer_norm_of_an_empty_axis():
    x = torch.ones(3, 0, requires_grad=True)
    with exact():
        y = torch.nn.functional.layer_norm(x, (0,), torch.ones(0), torch.ones(0))
        y.sum().backward()
    assert y.shape == x.grad.shape == (3, 0)
