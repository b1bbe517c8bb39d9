"""What has no definition is refused by name, with what to do; it never passes silently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rules_support import exact, numbers, same

from veritrain.errors import NumericsError, UnsupportedOperatorError, VeritrainError
from veritrain.numerics.rules import covered

X = numbers(1, 4, 4)
HALF, BRAIN = X.half(), X.bfloat16()
COMPLEX = torch.view_as_complex(numbers(1, 4, 2))
META = torch.empty(4, 4, device="meta")
SPARSE = X.relu().to_sparse()
INDEX = torch.zeros(4, 4, dtype=torch.int64)
GENERATOR = torch.Generator()

REFUSED = {
    "unknown": (lambda: torch.linalg.svd(X), "linalg_svd.*covered operators"),
    "remainder": (lambda: X % 0.3, "remainder"),
    "floor division": (lambda: X // 0.3, "floor_divide"),
    "div floor": (lambda: torch.div(X, 0.3, rounding_mode="floor"), r"div.*\.floor\(\)"),
    "div floor in place": (lambda: X.clone().div_(0.3, rounding_mode="floor"), "div"),
    "div floor out": (lambda: torch.div(X, X, rounding_mode="floor", out=torch.empty(4, 4)), "div"),
    "round decimals": (lambda: X.round(decimals=2), "round.decimals"),
    "round decimals in place": (lambda: X.clone().round_(decimals=2), "round.decimals"),
    "scatter add": (lambda: X.scatter(0, INDEX, X, reduce="add"), "scatter.*scatter_add"),
    "scatter add in place": (lambda: X.clone().scatter_(0, INDEX, X, reduce="add"), "scatter"),
    "scatter multiply": (lambda: X.scatter(0, INDEX, 2.0, reduce="multiply"), "scatter"),
    "scatter_reduce": (lambda: X.scatter_reduce(0, INDEX, X, "prod"), "scatter_reduce.*order"),
    "index_reduce": (lambda: X.index_reduce(0, INDEX[0], X, "mean"), "index_reduce"),
    "put": (lambda: X.clone().put_(INDEX, X, accumulate=True), "put"),
    "norm 3": (lambda: X.norm(p=3), "linalg_vector_norm of order 3"),
    "mm 64": (lambda: X.double() @ X.double(), "mm on torch.float64"),
    "mm int": (lambda: X.long() @ X.long(), "mm on torch.int64"),
    "conv 64": (lambda: F.conv1d(X.double()[None], X.double()[None]), "convolution.*float64"),
    "sum 64": (lambda: X.double().sum(), "sum on torch.float64"),
    "mean bool": (lambda: (X > 0).mean(dtype=torch.float64), "mean"),
    "exp 64": (lambda: X.double().exp(), "exp.*float64"),
    "mm half": (lambda: HALF @ HALF, "mm.*float16"),
    "add half": (lambda: HALF + HALF, r"add.*float16.*\.float\(\)"),
    "mul bfloat16": (lambda: BRAIN * 2, "mul.*bfloat16"),
    "square bfloat16": (lambda: BRAIN.square(), "pow.*bfloat16"),
    "lerp half": (lambda: torch.lerp(HALF, HALF, 0.5), "lerp.*float16"),
    "sigmoid backward half": (lambda: torch.ops.aten.sigmoid_backward(HALF, HALF), "float16"),
    "foreach half": (lambda: torch._foreach_mul([HALF], 2.0), "mul.*float16"),
    "out half": (lambda: torch.mul(HALF, HALF, out=torch.empty(4, 4).half()), "mul.*float16"),
    "float8": (lambda: X.to(torch.float8_e4m3fn) + 1, "add.*float8"),
    "complex sum": (lambda: COMPLEX.sum(), "sum.*complex64"),
    "complex power": (lambda: COMPLEX**3, "pow.*complex64"),
    "complex cumsum": (lambda: COMPLEX.cumsum(0), "cumsum.*complex64"),
    "complex index_add": (lambda: COMPLEX.index_add(0, INDEX[0], COMPLEX), "index_add.*complex64"),
    "complex list": (lambda: torch.cat([COMPLEX, COMPLEX]), "cat.*complex64"),
    "new meta": (lambda: torch.nn.Linear(2, 2, device="meta"), "device meta"),
    "meta": (lambda: META + 1, "add.*meta"),
    "meta mm": (lambda: META @ META, "mm.*meta"),
    "meta list": (lambda: torch.cat([META, META]), "cat.*meta"),
    "sparse": (lambda: SPARSE * 2, "mul.*sparse_coo"),
    "sparse list": (lambda: torch.stack([SPARSE, SPARSE]), "sparse_coo"),
    "sparse mm": (lambda: torch.sparse.mm(SPARSE, X), "sparse"),
    "to sparse": (lambda: X.to_sparse(), "to_sparse"),
    "to csr": (lambda: X.to_sparse_csr(), "to_sparse"),
    "rand 64": (lambda: torch.rand(3, dtype=torch.float64), "float64"),
    "rand half": (lambda: torch.rand(3, dtype=torch.float16), "float16"),
    "geometric": (lambda: X.clone().geometric_(0.5), "geometric.*torch.rand"),
    "bilinear 64": (
        lambda: F.interpolate(X.double()[None, None], size=2, mode="bilinear"),
        "bilinear2d.*float64",
    ),
    "grid_sample": (lambda: F.grid_sample(X[None, None], X.view(1, 4, 2, 2), align_corners=False),
        "grid_sampler_2d"),
    "fractional": (lambda: F.fractional_max_pool2d(X[None], 2, output_size=2),
        "fractional_max_pool2d"),
    "fft": (lambda: torch.fft.fft(X), "fft"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name(name):
    function, message = REFUSED[name]
    with exact(), pytest.raises(VeritrainError, match=message):
        function()


GRADIENTS = {
    "sparse embedding": (lambda w: F.embedding(INDEX, w, sparse=True), "sparse"),
    "take": (lambda x: x.take(INDEX), "put"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_refused_by_name(name):
    function, message = GRADIENTS[name]
    with exact(), pytest.raises(UnsupportedOperatorError, match=message):
        function(X.clone().requires_grad_()).sum().backward()


def test_autocast_is_refused():
    with (
        exact(),
        torch.autocast("cpu"),
        pytest.raises(UnsupportedOperatorError, match="mm.*bfloat16"),
    ):
        X @ X


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e9, -3e9])
def test_cast_beyond_an_integer_type_is_refused(value):
    x = torch.tensor([1.0, value])
    with exact():
        for cast in (
            lambda: x.int(),
            lambda: x.to(torch.uint8),
            lambda: INDEX[0, :2].int().copy_(x),
            lambda: INDEX.int().fill_(x[1]),
            lambda: torch.ops.aten.fill(INDEX.int(), x[1]),
            lambda: x.cumsum(0, dtype=torch.int32),
            lambda: x.cumprod(0, dtype=torch.int32),
            lambda: x.prod(dtype=torch.int32),
            lambda: x.prod(0, dtype=torch.int32),
        ):
            with pytest.raises(NumericsError, match="do not fit"):
                cast()
        assert x.bool().tolist() == [True, True]


def test_cast_within_an_integer_type_truncates():
    with exact():
        x = torch.tensor([255.9, -0.9, 0.0, 7.5])
        assert x.to(torch.uint8).tolist() == [255, 0, 0, 7]
        assert torch.zeros(2, dtype=torch.int32).fill_(x[3]).tolist() == [7, 7]
        assert x.cumsum(0, dtype=torch.int64).tolist() == [255, 255, 255, 262]
        assert x.prod(dtype=torch.int64).item() == 0
        assert torch.tensor([2.0**63 - 2**39]).long().item() == 2**63 - 2**39
        assert torch.empty(0).int().numel() == 0


def test_elementwise_arithmetic_of_float64_is_that_of_python():
    x, y = [1.1, -2.7, 3e300, 5e-324], [0.3, 7.7, -1.3, 0.5]
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    with exact():
        got = [a + b, a - b, a * b, a / b, a * 0.1, a.add(b, alpha=0.1), torch.addcmul(a, b, b)]
        for function in (torch.sum, torch.exp, torch.sqrt, lambda x: x @ x):
            with pytest.raises(UnsupportedOperatorError, match="float64"):
                function(a)
    want = [
        [f(p, q) for p, q in zip(x, y, strict=True)]
        for f in (
            lambda p, q: p + q, lambda p, q: p - q, lambda p, q: p * q, lambda p, q: p / q,
            lambda p, q: p * 0.1, lambda p, q: p + q * 0.1, lambda p, q: p + q * q,
        )
    ]  # fmt: skip
    assert [values.tolist() for values in got] == want


def opaque(graph: torch.fx.GraphModule, inputs):
    """A compiler backend whose kernels no dispatch mode sees, and which computes something else."""

    def run(*arguments):
        with torch.utils._python_dispatch._disable_current_modes():
            return [torch.full((), 123.0)]

    return run


def test_compiled_code_runs_as_plain_python():
    def loss(x):
        return (x * x).sum()

    compiled = torch.compile(loss, backend=opaque)
    before = torch.compile(loss, backend=opaque)
    assert before(X) == 123  # compiled and cached outside
    with exact():
        same(compiled(X), loss(X))
        same(before(X), loss(X))
    assert before(X) == 123


def test_other_default_type_does_not_matter():
    def run():
        y = F.layer_norm(X @ X, (4,)) + F.conv1d(X[None], X[:, :, None])[0]
        y = F.max_pool2d(F.batch_norm(y[None, None], None, None, training=True), 2)
        return y.flatten(), F.cross_entropy(X, INDEX[0]), X.sum(0), torch.randn_like(X)

    with exact():
        want = run()
    torch.set_default_dtype(torch.float64)
    try:
        with exact():
            same(run(), want)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "create",
    [
        lambda: torch.linspace(0, 1, 5), lambda: torch.arange(0, 1, 0.25), lambda: torch.arange(5),
        lambda: torch.full((2,), 1.5), lambda: torch.full((2,), 1), lambda: torch.ones(2),
        lambda: torch.eye(2), lambda: torch.tensor([0.5]), lambda: torch.scalar_tensor(0.5),
        lambda: torch.empty(2).zero_(), lambda: torch.zeros(2) / 3, lambda: INDEX / 3,
        lambda: torch.rand(2, dtype=torch.float32) * 0, lambda: torch.bernoulli(torch.zeros(2)),
        lambda: torch.linspace(0, 1, 5, dtype=torch.float32),
        lambda: torch.empty_permuted((2,), (0,)).zero_(),
    ],
)  # fmt: skip
def test_what_is_created_has_the_default_type(create):
    torch.set_default_dtype(torch.float64)
    try:
        with exact():
            got = create()
            for draw in (torch.rand, torch.randn):
                with pytest.raises(UnsupportedOperatorError, match="float64"):
                    draw(2)
        same(got, create())
    finally:
        torch.set_default_dtype(torch.float32)


def test_dimensions_out_of_range_are_errors():
    with exact():
        for function in (lambda: X.sum(2), lambda: X.mean(-3), lambda: X.var(5)):
            with pytest.raises(IndexError, match="outside"):
                function()
        with pytest.raises(IndexError, match="outside"):
            X.scatter_add(1, INDEX + 4, X)
        with pytest.raises(IndexError, match="outside"):
            X.scatter_add(1, INDEX - 1, X)
        with pytest.raises(IndexError, match="outside"):
            X.index_add(0, INDEX[0] + 4, X)
        with pytest.raises(IndexError, match="topk"):
            X.topk(5)


def test_in_place_does_not_lose_the_kind_of_number():
    with exact():
        for function in (
            lambda: INDEX.clone().addcmul_(X, X),
            lambda: INDEX.clone().add_(0.5),
            lambda: INDEX.clone().lerp_(X, 0.5),
        ):
            with pytest.raises((TypeError, RuntimeError), match="cast|dtype"):
                function()


def test_refused_overloads_are_not_listed_as_covered():
    assert "aten.scatter.reduce" not in covered()
    assert "aten.round.decimals" not in covered()
    assert "scatter" in covered()
