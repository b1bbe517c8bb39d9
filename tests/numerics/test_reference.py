"""The operators under the mode equal the written definitions, bit for bit, at the edges too."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rules_support import exact, numbers, same

from veritrain.numerics import reference
from veritrain.numerics.rules.optimisers import power

EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 0.5, 1.5]
NOT_FINITE = [float("inf"), float("-inf"), float("nan")]
values = st.one_of(st.floats(-8, 8, width=32), st.sampled_from(EDGES))
everything = st.one_of(values, st.floats(width=32), st.sampled_from(EDGES + NOT_FINITE))
moderate = st.floats(-8, 8, width=32)
brief = settings(max_examples=60, deadline=None)


def arrays(*shape: int, elements=everything):
    return hnp.arrays(np.float32, shape, elements=elements)


def equal(got: torch.Tensor, want) -> None:
    same(got.detach(), torch.from_numpy(np.asarray(want, np.float32)))


@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 4), st.data())
@brief
def test_product(m, k, n, data):
    a, b = data.draw(arrays(m, k)), data.draw(arrays(k, n))
    with exact():
        got = torch.mm(torch.from_numpy(a), torch.from_numpy(b))
        transposed = torch.mm(torch.from_numpy(b.T), torch.from_numpy(a.T)).T
        batched = torch.from_numpy(a)[None] @ torch.from_numpy(b)[None]
    want = reference.product(a, b)
    equal(got, want)
    equal(transposed, want)
    equal(batched[0], want)


def test_product_loses_exactly_the_bits_of_the_definition():
    # K = 2 gives 22 bits: with the row's largest value 1 (E = 1) the unit is 2**-21
    a = np.array([[1.0, 2.0**-23 + 2.0**-22]], np.float32)
    b = np.eye(2, dtype=np.float32)
    with exact():
        got = torch.from_numpy(a) @ torch.from_numpy(b)
    assert got.tolist() == [[1.0, 2.0**-21]]
    equal(got, reference.product(a, b))


@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3),
    st.integers(1, 2), st.integers(0, 1), st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_convolution(batch, groups, inputs, outputs, kernel, stride, padding, data):
    elements = data.draw(st.sampled_from([moderate, values, everything]))
    x = data.draw(arrays(batch, groups * inputs, 4, 3, elements=elements))
    w = data.draw(arrays(groups * outputs, inputs, kernel, min(kernel, 2), elements=elements))
    with exact():
        got = F.conv2d(
            torch.from_numpy(x), torch.from_numpy(w), None, stride, padding, groups=groups
        )
    equal(got, reference.convolution(x, w, stride, padding, groups))


@given(st.integers(1, 30), st.data())
@brief
def test_sum_and_mean(count, data):
    x = data.draw(arrays(3, count))
    with exact():
        rows, columns = torch.from_numpy(x).sum(1), torch.from_numpy(x.T.copy()).sum(0)
        mean = torch.from_numpy(x).mean(1)
    sums = np.array([reference.exact_sum(row) for row in x])
    equal(rows, sums)
    equal(columns, sums)
    with np.errstate(all="ignore"):
        equal(mean, sums / np.float32(count))


@given(st.integers(1, 12), st.sampled_from([1e-5, 0.1]), st.data())
@brief
def test_layer_norm(width, eps, data):
    elements = data.draw(st.sampled_from([moderate, values]))
    x, grad = (data.draw(arrays(2, width, elements=elements)) for _ in range(2))
    w, b = (data.draw(arrays(width, elements=moderate)) for _ in range(2))
    leaf = torch.from_numpy(x).requires_grad_()
    with exact():
        y = F.layer_norm(leaf, (width,), torch.from_numpy(w), torch.from_numpy(b), eps)
        (dx,) = torch.autograd.grad(y, leaf, torch.from_numpy(grad))
    with np.errstate(all="ignore"):
        equal(y, [reference.normalise(row, w, b, eps) for row in x])
        want = [reference.normalise_backward(g * w, r, eps) for g, r in zip(grad, x, strict=True)]
        equal(dx, want)


@given(st.integers(1, 3), st.integers(2, 5), st.data())
@brief
def test_group_norm_without_weight(channels, area, data):
    x, grad = (data.draw(arrays(2, channels * 2, area, elements=moderate)) for _ in range(2))
    leaf = torch.from_numpy(x).requires_grad_()
    with exact():
        y = F.group_norm(leaf, 2)
        (dx,) = torch.autograd.grad(y, leaf, torch.from_numpy(grad))
    one, zero = np.float32(1), np.float32(0)
    with np.errstate(all="ignore"):
        parts = [reference.normalise(part.ravel(), one, zero, 1e-5) for part in x.reshape(4, -1)]
        equal(y.reshape(4, -1), parts)
        pairs = zip(grad.reshape(4, -1), x.reshape(4, -1), strict=True)
        equal(dx.reshape(4, -1), [reference.normalise_backward(g, r, 1e-5) for g, r in pairs])


@given(st.integers(2, 4), st.integers(1, 3), st.data())
@brief
def test_batch_norm_moments(batch, area, data):
    elements = data.draw(st.sampled_from([moderate, values]))
    x = data.draw(arrays(batch, 2, area, elements=elements))
    running_mean, running_var = torch.full((2,), 0.25), torch.full((2,), 2.0)
    with exact():
        y = F.batch_norm(
            torch.from_numpy(x), running_mean, running_var, training=True, momentum=0.3
        )
    count = batch * area
    keep, move = np.float32(1 - 0.3), np.float32(0.3)
    one, zero = np.float32(1), np.float32(0)
    with np.errstate(all="ignore"):
        for c in range(2):
            values_c = x[:, c].ravel()
            mean, square = reference.moments(values_c)
            equal(y[:, c].reshape(-1), reference.normalise(values_c, one, zero, 1e-5))
            unbiased = square / np.float32(max(count - 1, 1))
            equal(running_mean[c], np.float32(0.25) * keep + mean * move)
            equal(running_var[c], np.float32(2.0) * keep + unbiased * move)


@given(st.integers(2, 4), st.integers(1, 3), st.data())
@brief
def test_batch_norm_gradient(batch, area, data):
    x, grad = (data.draw(arrays(batch, 2, area, elements=moderate)) for _ in range(2))
    w = data.draw(arrays(2, elements=moderate))
    leaf, weight = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
    bias = torch.zeros(2, requires_grad=True)
    with exact():
        y = F.batch_norm(leaf, None, None, weight, bias, training=True)
        dx, dw, db = torch.autograd.grad(y, (leaf, weight, bias), torch.from_numpy(grad))
    for c in range(2):
        g, part = grad[:, c].ravel(), x[:, c].ravel()
        with np.errstate(all="ignore"):
            equal(dx[:, c].reshape(-1), reference.normalise_backward(g, part, 1e-5, w[c]))
            xhat = reference.normalise(part, np.float32(1), np.float32(0), 1e-5)
            equal(dw[c], reference.exact_sum(g * xhat))
            equal(db[c], reference.exact_sum(g))


@given(
    st.integers(1, 20), st.sampled_from([0.0, 0.01]), st.sampled_from([0.9, 0.5]),
    st.sampled_from([0.999, 0.75]), st.booleans(), st.integers(1, 2000), st.data(),
)  # fmt: skip
@brief
def test_adam(count, decay, beta1, beta2, decoupled, step, data):
    elements = data.draw(st.sampled_from([moderate, values]))
    param, grad, mean = (data.draw(arrays(count, elements=elements)) for _ in range(3))
    square = np.abs(data.draw(arrays(count, elements=moderate)))
    tensors = [torch.from_numpy(part.copy()) for part in (param, grad, mean, square)]
    operator = torch._fused_adamw_ if decoupled else torch._fused_adam_
    options = {"lr": 0.01, "beta1": beta1, "beta2": beta2, "eps": 1e-8, "weight_decay": decay}
    with exact():
        operator(
            *([t] for t in tensors), [], [torch.tensor(float(step))],
            amsgrad=False, maximize=False, **options,
        )  # fmt: skip
    root2 = float(np.sqrt(1 - power(beta2, step)))
    with np.errstate(all="ignore"):
        want = reference.adam_step(
            param, grad, mean, square, decoupled=decoupled, root2=root2,
            step_size=0.01 / (1 - power(beta1, step)), **options,
        )  # fmt: skip
    for got, part in zip((tensors[0], tensors[2], tensors[3]), want, strict=True):
        equal(got, part)
    equal(tensors[1], grad)


@given(
    st.integers(1, 20), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.3]), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
@brief
def test_sgd(count, momentum, decay, dampening, nesterov, first, data):
    nesterov = nesterov and momentum > 0 and dampening == 0
    param, grad, buffer = (data.draw(arrays(count, elements=values)) for _ in range(3))
    tensors = [torch.from_numpy(part.copy()) for part in (param, grad, buffer)]
    options = {
        "lr": 0.05, "momentum": momentum, "dampening": dampening, "weight_decay": decay,
        "nesterov": nesterov,
    }  # fmt: skip
    with exact():
        torch._fused_sgd_(
            [tensors[0]], [tensors[1]], [tensors[2]] if momentum else [],
            maximize=False, is_first_step=first, **options,
        )  # fmt: skip
    with np.errstate(all="ignore"):
        wanted, kept = reference.sgd_step(param, grad, None if first else buffer, **options)
    equal(tensors[0], wanted)
    equal(tensors[2], kept if momentum else buffer)
    equal(tensors[1], grad)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 5000))
@brief
def test_power_is_close_to_the_real_one(base, exponent):
    want = base**exponent
    assert abs(power(base, exponent) - want) <= 1e-12 * want + 1e-300


def test_a_slice_that_is_not_finite_is_nan_and_others_are_not():
    a = numbers(1, 3, 4)
    a[1, 2] = float("inf")
    x = numbers(2, 2, 2, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    with exact():
        product = a @ numbers(3, 4, 5)
        assert product.isnan().any(1).tolist() == [False, True, False]
        assert product[1].isnan().all()
        assert (a.T @ numbers(3, 3, 5)).isnan().any(1).tolist() == [False, False, True, False]
        image = F.conv2d(x, numbers(4, 3, 2, 2, 2))
        assert image[0].isnan().all()
        assert not image[1].isnan().any()
        grouped = F.conv2d(x, numbers(4, 4, 1, 2, 2), groups=2)
        assert grouped[0, :2].isnan().all()
        assert not grouped[0, 2:].isnan().any()
        assert a.sum(1).isnan().tolist() == [False, True, False]
        assert a.mean().isnan()
        assert a.softmax(1).isnan().any(1).tolist() == [False, True, False]
        weights = torch.zeros(4, 3).index_add(0, torch.tensor([0, 1, 1]), a[:, :3])
        assert weights.isnan().all()


def test_overflow_of_a_product_is_infinite():
    big = torch.full((1, 2), 3e38)
    with exact():
        assert (big @ torch.ones(2, 1)).item() == float("inf")
        assert (big @ -torch.ones(2, 1)).item() == float("-inf")
        assert (big @ torch.tensor([[1.0], [-1.0]])).item() == 0
        tiny = torch.full((1, 1), 1e-30)
        assert (tiny @ torch.full((1, 1), 1e-10)).item() == float(np.float32(1e-40))
