"""Matrix products by both kernels against the definition and against each other, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_support import byte_products, same

import spec
from veritrain.numerics.cpu import matmul, products
from veritrain.numerics.cpu.integers import contraction_bits

BYTES = byte_products(22)


def layouts(x):
    """A matrix stored by row, by column, and with gaps."""
    wide = torch.zeros(x.shape[0], 2 * x.shape[1])
    wide[:, ::2] = x
    return [x, x.t().contiguous().t(), wide[:, ::2]]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 5)),
    seed=st.integers(0, 2**31),
    scales=st.tuples(*[st.sampled_from([1.0, 0.0, 1e-40, 1e30])] * 2),
)
@settings(max_examples=60, deadline=None)
def test_kernels_equal_the_definition(shape, seed, scales):
    num_m, num_k, num_n = shape
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(num_m, num_k, generator=generator)
    b = torch.randn(num_k, num_n, generator=generator)
    a[0] *= scales[0]
    b[:, 0] *= scales[1]
    bits = contraction_bits(num_k)
    expected = torch.from_numpy(spec.product(a.numpy(), b.numpy()))
    for left, right in zip(layouts(a), reversed(layouts(b)), strict=True):
        for kernel in (products.float64, BYTES):
            same(matmul.product(left, right, bits, kernel), expected)
        same(matmul.batched(left[None], right[None], bits)[0], expected)


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 200), st.integers(1, 90)),
    seed=st.integers(0, 2**31),
    block=st.integers(1, 64),
    inner=st.integers(1, 64),
    kept=st.sampled_from([0, 1 << 30]),
)
@settings(max_examples=60, deadline=None)
def test_blocks_do_not_show(shape, seed, block, inner, kept):
    num_m, num_k, num_n = shape
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(num_m, num_k, generator=generator)
    b = torch.randn(num_k, num_n, generator=generator)
    a[-1, 0] = torch.inf
    bits = contraction_bits(num_k)
    expected = matmul.product(a, b, bits, products.float64)
    assert expected[-1].isnan().all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "_BLOCK", block)
        patch.setattr(matmul, "_INNER", inner)
        patch.setattr(matmul, "MAX_INNER", inner)
        patch.setattr(matmul, "_KEPT_BYTES", kept)
        for kernel in (products.float64, BYTES):
            same(matmul.product(a, b, bits, kernel), expected)


@pytest.mark.parametrize("together", [1, 100, 1 << 20])
def test_batches_equal_single_products(monkeypatch, together):
    a, b = torch.randn(7, 5, 6), torch.randn(7, 6, 4)
    expected = torch.stack([matmul.product(x, y, 20) for x, y in zip(a, b, strict=True)])
    monkeypatch.setattr(matmul, "_BATCH_VALUES", together)
    same(matmul.batched(a, b, 20), expected)
    same(matmul.batched(a.mT.contiguous().mT, b.mT.contiguous().mT, 20), expected)
    monkeypatch.setattr(products, "SMALL", 1)
    same(matmul.batched(a, b, 20), expected)


@pytest.mark.skipif(not products.bytes_are_exact(), reason="no exact products of bytes here")
@pytest.mark.parametrize("grade", [14, 22])
def test_every_digit_pattern_is_taken_apart_and_put_together(grade):
    """All integers of the narrow grade; of the full one the edges of every digit."""
    edges = {
        0,
        1,
        127,
        128,
        129,
        255,
        256,
        257,
        32767,
        32768,
        32896,
        65535,
        65536,
        2**22 - 1,
        2**22,
    }
    values = range(-(2**14), 2**14 + 1) if grade == 14 else sorted(edges | {-v for v in edges})
    below_one = 1 - 2**-24  # rounds up to 2**grade, and sets the scale of each row to 2**-grade
    whole = torch.tensor(list(values), dtype=torch.float32)[:, None] / 2**grade
    whole = whole.clamp(-below_one, below_one)
    top = torch.full((len(whole), 1), below_one)
    a = torch.cat([whole, top], 1)
    b = torch.tensor([[below_one], [0.0]])
    kernel = byte_products(grade)
    same(matmul.product(a, b, grade, kernel), matmul.product(a, b, grade, products.float64))
    operand = matmul._Operand.of(a, 1, grade, left=True)
    digits = operand.integers(kernel, range(len(whole)), range(1)).numpy().astype(np.int64)
    powers = 256 ** np.arange(kernel.planes)[::-1]
    assert (digits @ powers).tolist() == list(values)


@pytest.mark.skipif(not products.bytes_are_exact(), reason="no exact products of bytes here")
def test_the_kernel_is_a_matter_of_speed_alone(monkeypatch):
    a, b = torch.randn(256, 300), torch.randn(300, 256)
    found = []
    for faster in (torch.int8, torch.float64):
        monkeypatch.setattr(products, "_seconds", lambda e, faster=faster: e.dtype != faster)
        kernel = products.choose(20, 300, 256 * 256)
        found.append((kernel.dtype, matmul.product(a, b, 20)))
    assert [dtype for dtype, _ in found] == [torch.int8, torch.float64]
    same(found[0][1], found[1][1])


@pytest.mark.parametrize("isa", ["AVX2", "SSE41"])
def test_bytes_are_not_chosen_where_they_saturate(isa):
    """Without VNNI oneDNN's sums of pairs saturate, so speed must not decide alone."""
    code = (
        "from veritrain.numerics.cpu import products\n"
        "products._seconds = lambda kernel: kernel is products.float64\n"
        "print(products.bytes_are_exact(), products.choose(14, 4096, 10**6) is products.float64)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": "default"},
    )  # fmt: skip
    exact, float64 = done.stdout.split()
    assert exact != float64, "float64 just where bytes are not exact"
