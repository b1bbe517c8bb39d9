"""Operators of image and audio models: windows of every rank, padding, interpolation,
normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rules_support import check, exact, numbers, same

X = numbers(1, 3, 2, 9)
IMAGE = numbers(2, 2, 3, 6, 8)
VOLUME = numbers(3, 2, 2, 4, 5, 6)
WEIGHT, BIAS = numbers(4, 3), numbers(5, 3)


def standardised(x, w):
    """Weight standardisation: each output channel's weights have mean 0 and variance 1."""
    mean, spread = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, (w - mean) / (spread + 1e-5))


def pooled_and_back(x):
    """Max pooling with its indices, undone and pooled again."""
    parts = []
    for step in (2, 3):
        y, places = F.max_pool2d(x, 3, step, return_indices=True)
        parts.append(F.max_unpool2d(y, places, 3, step, output_size=x.shape[-2:]))
    return tuple(parts)


def pooled_and_back_3d(x):
    y, places = F.max_pool3d(x, 2, return_indices=True)
    return F.max_unpool3d(y, places, 2, output_size=x.shape[-3:])


def resized(mode: str, **options):
    """To more and fewer places along every axis, by size and by factor."""

    def run(x):
        sizes = x.shape[2:]
        up, down = [2 * n - 1 for n in sizes], [n // 2 + 1 for n in sizes]
        results = [F.interpolate(x, size=size, mode=mode, **options) for size in (up, down)]
        for scale in (2, 1.3, 0.6):
            results.append(F.interpolate(x, scale_factor=scale, mode=mode, **options))
        return tuple(results)

    return run


def padded(mode: str, *padding: int):
    return lambda x: F.pad(x, padding, mode=mode)


# name: (function, inputs ...)
CASES = {
    # windows
    "avg_pool1d": (lambda x: (F.avg_pool1d(x, 3, 2, 1), F.avg_pool1d(x, 4, ceil_mode=True)), X),
    "avg_pool2d": (
        lambda x: (
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 2, 3),
            F.avg_pool2d(x, (3, 5), (2, 3), (1, 2), ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, True, False), F.avg_pool2d(x, 2, divisor_override=3),
        ), IMAGE,
    ),
    "avg_pool3d": (
        lambda x: (
            F.avg_pool3d(x, 2), F.avg_pool3d(x, 3, 2, 1, True), F.avg_pool3d(x, (1, 2, 3), 1),
            F.avg_pool3d(x[0], 2, padding=1, count_include_pad=False),
            F.avg_pool3d(x, 2, divisor_override=5),
        ), VOLUME,
    ),
    "adaptive_avg_pool1d": (lambda x: tuple(F.adaptive_avg_pool1d(x, n) for n in (1, 3, 4, 11)), X),
    "adaptive_avg_pool2d": (
        lambda x: tuple(F.adaptive_avg_pool2d(x, n) for n in (1, (3, 4), (5, 3), (7, None))), IMAGE,
    ),
    "adaptive_avg_pool3d": (
        lambda x: tuple(F.adaptive_avg_pool3d(x, n) for n in (1, (2, 5, 3), (3, 3, 4))), VOLUME,
    ),
    "max_pool3d": (lambda x: (F.max_pool3d(x, 2), F.max_pool3d(x, 3, 1, 1),
        F.max_pool3d(x, 2, 1, dilation=2)), VOLUME),
    "max_pool apart": (lambda x: (F.max_pool2d(x, 2, 3), F.max_pool2d(x, 2, 2, dilation=2)), IMAGE),
    "adaptive_max_pool1d": (lambda x: tuple(F.adaptive_max_pool1d(x, n) for n in (1, 3, 4)), X),
    "adaptive_max_pool2d": (lambda x: tuple(F.adaptive_max_pool2d(x, n) for n in (1, (3, 4), 5)),
        IMAGE),
    "adaptive_max_pool3d": (lambda x: tuple(F.adaptive_max_pool3d(x, n) for n in (1, (2, 5, 3), 3)),
        VOLUME),
    "max_unpool2d": (pooled_and_back, IMAGE),
    "max_unpool3d": (pooled_and_back_3d, VOLUME),
    "lp_pool": (lambda x: (F.lp_pool2d(x, 2, 2), F.lp_pool2d(x, 1, 3, 2)), IMAGE.abs() + 0.25),
    "unfold": (lambda x: (F.unfold(x, 3, 1, 1, 2), F.unfold(x, (2, 3), 2, (0, 1))), IMAGE),
    "fold": (
        lambda x: (F.fold(x, (4, 5), 2), F.fold(x[0, :, :9], (5, 4), 2, padding=1, stride=2)),
        numbers(6, 2, 8, 12),
    ),
    "tensor unfold": (lambda x: (x.unfold(-1, 3, 2), x.unfold(0, 2, 1), x.unfold(1, 1, 1)), X),
    # padding
    "reflect 1": (padded("reflect", 3, 2), X),
    "reflect 2": (padded("reflect", 1, 2, 3, 0), IMAGE),
    "reflect 3": (padded("reflect", 1, 2, 3, 0, 2, 1), VOLUME),
    "reflect cropping": (padded("reflect", -1, 2), X),
    "replicate 1": (padded("replicate", 3, 2), X),
    "replicate 2": (padded("replicate", 1, 0, 9, 0), IMAGE),
    "replicate 3": (padded("replicate", 1, 2, 3, 0, 2, 6), VOLUME),
    "circular": (padded("circular", 1, 2, 3, 0), IMAGE),
    # interpolation
    "nearest 1": (resized("nearest"), X),
    "nearest 2": (resized("nearest"), IMAGE),
    "nearest 3": (resized("nearest"), VOLUME),
    "nearest-exact 1": (resized("nearest-exact"), X),
    "nearest-exact 2": (resized("nearest-exact"), IMAGE),
    "nearest-exact 3": (resized("nearest-exact"), VOLUME),
    "linear": (resized("linear"), X),
    "linear corners": (resized("linear", align_corners=True), X),
    "bilinear": (resized("bilinear"), IMAGE),
    "bilinear corners": (resized("bilinear", align_corners=True), IMAGE),
    "bilinear recomputed": (resized("bilinear", recompute_scale_factor=False), IMAGE),
    "trilinear": (resized("trilinear"), VOLUME),
    "trilinear corners": (resized("trilinear", align_corners=True), VOLUME),
    "bicubic": (resized("bicubic"), IMAGE),
    "bicubic corners": (resized("bicubic", align_corners=True), IMAGE),
    "antialiased": (resized("bilinear", antialias=True), IMAGE),
    "antialiased corners": (resized("bilinear", antialias=True, align_corners=True), IMAGE),
    "antialiased cubic": (resized("bicubic", antialias=True), IMAGE),
    "antialiased far down": (
        lambda x: tuple(F.interpolate(x, size=n, mode=m, antialias=True) for n in (1,
            2) for m in ("bilinear", "bicubic")),
        numbers(12, 1, 2, 17, 23),
    ),
    "area": (lambda x: (F.interpolate(x, size=(4, 5), mode="area"),
        F.interpolate(x, size=(9, 16), mode="area")), IMAGE),
    # factorisation
    "qr": (
        lambda x: (*torch.linalg.qr(x.detach()), *torch.linalg.qr(x.detach().mT),
            *torch.linalg.qr(x.detach(), "complete")),
        numbers(10, 2, 5, 3),
    ),
    "qr square": (lambda x: (*torch.linalg.qr(x.detach()), torch.linalg.qr(x.detach(), "r")[1]),
        numbers(11, 4, 4)),
    # rearrangement
    "diagonal_copy": (lambda x: (torch.diag(x.detach()), torch.diag(x[0])), IMAGE[0, 0, :, :6]),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), numbers(7, 2, 8, 3, 3)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 3), numbers(8, 2, 6, 3, 3)),
    # normalisation
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), IMAGE),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), IMAGE, WEIGHT, BIAS),
    "instance_norm running": (
        lambda x, w: F.instance_norm(x, w.detach(), w.detach().abs() + 1, use_input_stats=False),
        IMAGE, WEIGHT,
    ),
    "batch_norm evaluated": (
        lambda x, w, b: F.batch_norm(x, b.detach(), w.detach().abs() + 1, w, b),
        VOLUME[:, :1].expand(2, 3, 4, 5, 6), WEIGHT, BIAS,
    ),
    "weight standardisation": (standardised, IMAGE, numbers(9, 4, 3, 3, 3)),
    "var_mean": (lambda x: (*torch.var_mean(x, 1), *torch.std_mean(x, (0, 2), keepdim=True)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64_in_every_layout(name):
    function, *inputs = CASES[name]
    check(function, *inputs)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 3, 0), (2, 0, 3), (0, 3, 2), (0, 0)])
@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
def test_qr_of_empty_matrices(shape, mode):
    x = torch.zeros(shape)
    with exact():
        got = torch.linalg.qr(x, mode)
    same(list(got), list(torch.linalg.qr(x, mode)))


@given(
    st.integers(1, 3), st.integers(1, 12), st.integers(1, 25),
    st.sampled_from([None, 0.5, 0.7, 1.5, 2.0, 3.0]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_nearest_chooses_what_pytorch_chooses(rank, size, outputs, scale, between):
    assume(scale is None or int(size * scale) > 0)
    mode = "nearest-exact" if between else "nearest"
    x = numbers(1, 1, 2, *[size] * rank)
    options = {"size": [outputs] * rank} if scale is None else {"scale_factor": scale}
    with exact():
        got = F.interpolate(x, mode=mode, **options)
    same(got, F.interpolate(x, mode=mode, **options))


@given(
    st.sampled_from(["linear", "bilinear", "bicubic", "trilinear"]), st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([None, 0.5, 1.7, 2.0]), st.booleans(), st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_interpolation_of_any_size(mode, size, outputs, scale, corners, batch):
    assume(scale is None or int(size * scale) > 0)
    rank = {"linear": 1, "trilinear": 3}.get(mode, 2)
    options = {"size": [outputs] * rank} if scale is None else {"scale_factor": scale}
    x = numbers(1, max(batch, 1), batch, *[size] * rank)
    assume(x.numel())
    check(lambda x: F.interpolate(x, mode=mode, align_corners=corners, **options), x)


@given(
    st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.booleans(), st.integers(0, 2)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_adaptive_pooling_of_any_size(rank, size, outputs, largest, batch):
    name = f"adaptive_{'max' if largest else 'avg'}_pool{rank}d"
    x = numbers(1, batch, 2, *[size] * rank)
    check(lambda x: getattr(F, name)(x, outputs), x)
    check(lambda x: getattr(F, name)(x[0] if batch else x, outputs), x)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.booleans(),
    st.booleans(), st.sampled_from([None, 3]), st.integers(4, 7),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_average_pooling_of_any_size(
    rank, kernel, stride, padding, ceil_mode, count, divisor, size
):
    padding = min(padding, kernel // 2)
    x = numbers(1, 2, 1, *[size] * rank)
    options = {} if rank == 1 else {"divisor_override": divisor}
    pool = getattr(F, f"avg_pool{rank}d")
    check(lambda x: pool(x, kernel, stride, padding, ceil_mode, count, **options), x)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(3, 5)
)
@settings(max_examples=40, deadline=None)
def test_fold_undoes_unfold(kernel, stride, dilation, padding, size):
    options = {
        "kernel_size": (kernel, 2),
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
    }
    assume(size + 2 * padding >= dilation * max(kernel - 1, 1) + 1)
    x = numbers(1, 2, 3, size, size)
    check(lambda x: F.fold(F.unfold(x, **options), (size, size), **options), x)


def test_other_default_type_does_not_matter():
    def run():
        x = IMAGE.clone().requires_grad_()
        y = F.max_pool2d(x, 2) + F.adaptive_max_pool2d(x, (3, 4)) + F.avg_pool2d(x, 2)
        y = y + F.interpolate(x, size=(3, 4), mode="bicubic") + F.interpolate(x, size=(3, 4))
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        drawn = torch._standard_gamma(BIAS.abs()), torch.from_numpy(np.random.normal(size=3))
        return y.detach(), grad, *drawn, *torch.linalg.qr(X)

    with exact():
        want = run()
    torch.set_default_dtype(torch.float64)
    try:
        with exact():
            same(run(), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradient_of_windows_that_do_not_overlap_is_the_value_itself():
    """No sum, so that no small value is rounded beside a large one."""
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    grad = torch.tensor([[2.0**100, 2.0**-100], [1.0, -3.0]])[None, None]
    for pool, share in ((F.avg_pool2d, 0.25), (F.adaptive_avg_pool2d, 0.25), (F.max_pool2d, 1.0)):
        with exact():
            (got,) = torch.autograd.grad(pool(x, 2), x, grad)
        kept = got[got != 0].unique()
        same(kept, (grad * share).unique())
