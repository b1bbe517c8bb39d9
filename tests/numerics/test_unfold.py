"""The fast convolution against the general path and against the definition, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.numerics import reference
from veritrain.numerics.rules import contraction


def both_paths(x, w, args, monkeypatch):
    """Result and gradients by the fast and by the general path."""
    results = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(contraction, "_is_plain", lambda *_: False)
        y = contraction._convolution(x, w, None, *args)
        grad = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append(
            (y, *contraction._convolution_backward(grad, x, w, [1], *args, [True, True, True]))
        )
    monkeypatch.undo()
    return results


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    transposed=st.booleans(),
    extra=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_fast_path_equals_general_path(
    size, kernel, stride, padding, dilation, channels, transposed, extra, seed
):
    num_n, num_c, num_o = channels
    output_padding = extra if transposed and stride > 1 else 0
    reach = [dilation * (k - 1) + 1 for k in kernel]
    if transposed:
        outputs = [
            (s - 1) * stride - 2 * padding + r + output_padding
            for s, r in zip(size, reach, strict=True)
        ]
        if min(outputs) < 1:
            return
    elif any(s + 2 * padding < r for s, r in zip(size, reach, strict=True)):
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_n, num_c, *size, generator=generator)
    shape = (num_c, num_o) if transposed else (num_o, num_c)
    w = torch.randn(*shape, *kernel, generator=generator)
    args = ([stride] * 2, [padding] * 2, [dilation] * 2, transposed, [output_padding] * 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        fast, general = both_paths(x, w, args, patch)
    for a, b in zip(fast, general, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_convolution_equals_definition(stride, padding):
    x = torch.randn(2, 3, 5, 4)
    x[0] *= 1e-40  # subnormal image
    w = torch.randn(4, 3, 3, 3)
    w[1] = 0.0
    got = contraction._convolution(
        x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
    )
    expected = reference.convolution(x.numpy(), w.numpy(), stride, padding, 1)
    np.testing.assert_array_equal(got.numpy().view(np.uint32), expected.view(np.uint32))


def test_an_infinite_image_spoils_only_itself(monkeypatch):
    x = torch.randn(2, 2, 5, 5)
    x[1, 0, 2, 2] = torch.inf
    w = torch.randn(3, 2, 3, 3)
    args = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    fast, general = both_paths(x, w, args, monkeypatch)
    assert torch.isfinite(fast[0][0]).all()
    assert fast[0][1].isnan().all()
    for a, b in zip(fast, general, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_chunks_do_not_show(monkeypatch):
    from veritrain.numerics import unfold

    x, w = torch.randn(7, 3, 8, 8), torch.randn(5, 3, 3, 3)
    args = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    results = []
    for size in (1, 1 << 14, 1 << 30):
        monkeypatch.setattr(unfold, "_CHUNK_BYTES", size)
        y = contraction._convolution(x, w, None, *args)
        results.append(
            (y, *contraction._convolution_backward(y, x, w, [1], *args, [True, True, False])[:2])
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
