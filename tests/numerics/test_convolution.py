"""Convolutions by both kernels against PyTorch's float64 convolution of the same integers, bit for
bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_support import byte_products, exact, same

import spec
from veritrain.numerics.cpu import convolution, products
from veritrain.numerics.cpu.gather import Window
from veritrain.numerics.cpu.integers import NARROW_GRADE, channels_of, contraction_bits, quantise

aten = torch.ops.aten


def scaled(integers, scale):
    return (integers * scale + 0.0).float()


def samples(x, groups):
    return 1, 1, x.shape[0] * groups, x[0].numel() // groups


def oracle(x, w, grad, window, groups, bits):
    """Result and both gradients from integers of the definition's slices."""
    rank = x.ndim - 2
    geometry = (window.stride, window.padding, window.dilation, False, [0] * rank, groups)
    ones = [1] * rank
    num_n, taps = x.shape[0], math.prod(w.shape[2:])

    x_q, x_s = quantise(x, samples(x, groups), bits)
    w_q, w_s = quantise(w, (1, 1, w.shape[0], w[0].numel()), bits)
    scale = x_s.view(num_n, groups, 1) * w_s.view(1, groups, -1)
    y = scaled(aten.convolution(x_q, w_q, None, *geometry), scale.view(num_n, -1, *ones))

    g_q, g_s = quantise(grad, samples(grad, groups), bits)
    w_q, w_s = quantise(w, (groups, w.shape[0] // groups, w.shape[1], taps), bits)
    scale = g_s.view(num_n, groups, 1) * w_s.view(1, groups, -1)
    back = aten.convolution_backward(g_q, x_q, w_q, None, *geometry, [True, False, False])[0]
    grad_x = scaled(back, scale.view(num_n, -1, *ones))

    g_q, g_s = quantise(grad, channels_of(grad), bits)
    x_q, x_s = quantise(x, channels_of(x), bits)
    back = aten.convolution_backward(g_q, x_q, w_q, None, *geometry, [False, True, False])[1]
    scale = g_s.view(groups, -1, 1) * x_s.view(groups, 1, -1)
    return y, grad_x, scaled(back, scale.reshape(w.shape[0], -1, *ones))


def results(x, w, grad, window, groups, bits, kernel):
    return (
        convolution.forward(x, w, window, groups, tuple(grad.shape[2:]), bits, kernel),
        convolution.input_gradient(grad, w, window, groups, tuple(x.shape[2:]), bits, kernel),
        convolution.weight_gradient(grad, x, window, groups, bits, kernel),
    )


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    window = Window(kernel=each(1, 3), stride=each(1, 3), padding=each(0, 2), dilation=each(1, 2))
    reach = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    size = tuple(
        max(n, r - 2 * p) for n, r, p in zip(each(1, 7), reach, window.padding, strict=True)
    )
    result = tuple(
        (n + 2 * p - r) // s + 1
        for n, p, r, s in zip(size, window.padding, reach, window.stride, strict=True)
    )
    groups, num_n = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 3))
    inputs, outputs = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(num_n, groups * inputs, *size, generator=generator)
    w = torch.randn(groups * outputs, inputs, *window.kernel, generator=generator)
    grad = torch.randn(num_n, groups * outputs, *result, generator=generator)
    x[0] *= draw(st.sampled_from([1.0, 0.0, 1e-40, 1e30]))
    w[0] *= draw(st.sampled_from([1.0, 0.0, 1e-40]))
    return x, w, grad, window, groups


@given(case=cases(), bits=st.sampled_from([14, 18, 22]))
@settings(max_examples=150, deadline=None)
def test_kernels_equal_the_general_path(case, bits):
    expected = oracle(*case, bits)
    for kernel in (products.float64, byte_products(bits), None):
        same(results(*case, bits, kernel), expected)


@pytest.mark.parametrize("budget", [1, 1 << 14, 1 << 30])
@pytest.mark.parametrize("size", [(8, 8), (40, 40)])
def test_spans_do_not_show(monkeypatch, budget, size):
    x, w = torch.randn(5, 3, *size), torch.randn(5, 3, 3, 3)
    window = Window(kernel=(3, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 1))
    grad = torch.randn(5, 5, size[0] // 2, size[1])
    case = (x, w, grad, window, 1, 17)
    expected = results(*case, None)
    monkeypatch.setattr(convolution, "_SPAN_BYTES", budget)
    monkeypatch.setattr(convolution, "_SPAN_POSITIONS", 1 if budget == 1 else 64)
    for kernel in (products.float64, byte_products(17)):
        same(results(*case, kernel), expected)


def test_inner_lengths_beyond_what_bytes_can_add(monkeypatch):
    monkeypatch.setattr(convolution, "MAX_INNER", 50)
    x, w = torch.randn(2, 8, 6, 6), torch.randn(5, 8, 3, 3)
    window = Window(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    case = (x, w, torch.randn(2, 5, 6, 6), window, 1, 20)
    same(results(*case, byte_products(20)), oracle(*case))


def test_the_largest_digits_do_not_overflow():
    """All values at the largest magnitude, K as long as one product may be."""
    inner = convolution.MAX_INNER
    for grade, sign in ((22, -1.0), (14, 1.0)):
        bits = contraction_bits(inner, grade)
        x = torch.full((1, inner, 1, 2), 1.0 - 2**-24)
        w = torch.full((2, inner, 1, 1), sign * (1.0 - 2**-24))
        window = Window(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        got = convolution.forward(x, w, window, 1, (1, 2), bits, byte_products(bits))
        assert torch.equal(got, torch.full((1, 2, 1, 2), sign * inner))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_convolution_equals_definition(stride, padding):
    x = torch.randn(2, 3, 5, 4)
    x[0] *= 1e-40  # subnormal image
    w = torch.randn(4, 3, 3, 3)
    w[1] = 0.0
    with exact():
        got = torch.conv2d(x, w, None, stride, padding)
    expected = spec.convolution(x.numpy(), w.numpy(), stride, padding, 1)
    np.testing.assert_array_equal(got.numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kernel", [products.float64, byte_products(22), None])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_infinite_image_spoils_only_itself(kernel, groups):
    x = torch.randn(2, 2, 5, 5)
    x[1, 0, 2, 2] = torch.inf
    w = torch.randn(4, 2 // groups, 3, 3)
    window = Window(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    y = convolution.forward(x, w, window, groups, (5, 5), 20, kernel)
    assert torch.isfinite(y[0]).all()
    spoilt = y[1] if groups == 1 else y[1, :2]
    assert spoilt.isnan().all()
    assert groups == 1 or torch.isfinite(y[1, 2:]).all()


def test_the_narrow_grade_has_fourteen_bits():
    from veritrain.numerics import resolve

    x, w = torch.randn(1, 64, 6, 6), torch.randn(8, 64, 3, 3)
    window = Window(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    with resolve("exact14").active(seed=0, purpose="test", step=0):
        got = torch.conv2d(x, w, None, 1, 1)
    same(got, convolution.forward(x, w, window, 1, (6, 6), NARROW_GRADE, products.float64))


@pytest.mark.parametrize("kernel", [products.float64, byte_products(22), None])
@pytest.mark.parametrize("channels", [1, 2])
def test_positions_that_no_tap_reaches_are_spoilt_with_their_slice(kernel, channels):
    window = Window(kernel=(1, 1), stride=(2, 2), padding=(0, 0), dilation=(1, 1))
    grad = torch.ones(2, channels, 2, 2)
    grad[1, 0, 0, 0] = torch.nan
    w = torch.ones(channels, channels, 1, 1)
    got = convolution.input_gradient(grad, w, window, 1, (4, 4), 20, kernel)
    assert got[0, :, 1::2].eq(0).all()
    assert got[1].isnan().all()


@pytest.mark.parametrize("kernel", [products.float64, byte_products(22), None])
def test_output_padding_of_a_transposed_point(kernel):
    """Dilation allows output padding although kernel and stride are 1."""
    x, w = torch.randn(2, 3, 4, 5), torch.randn(3, 4, 1, 1)
    window = Window(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(2, 2))
    y = convolution.input_gradient(x, w, window, 1, (5, 6), 22, kernel)
    same(y[:, :, :4, :5], convolution.input_gradient(x, w, window, 1, (4, 5), 22, kernel))
    assert not y[:, :, 4:].any()
    assert not y[:, :, :, 5:].any()
    grad = torch.randn(2, 4, 5, 6)
    inner = grad[:, :, :4, :5].contiguous()
    grad[:, :, 0, 0] = 5.0  # the largest of each slice lies inside
    inner = grad[:, :, :4, :5].contiguous()
    same(*(convolution.forward(g, w, window, 1, (4, 5), 20, kernel) for g in (grad, inner)))
    same(*(convolution.weight_gradient(x, g, window, 1, 20, kernel) for g in (grad, inner)))
