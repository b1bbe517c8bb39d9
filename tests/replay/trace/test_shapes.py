"""What an operator takes and makes is known before it is computed, and hostile calls are not
computed."""

from __future__ import annotations

import time

import pytest
import torch

from tests.replay.trace.test_trace import SMALL, Step, read
from veritrain.encoding import digest
from veritrain.errors import InconclusiveError
from veritrain.replay.trace import calls
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.entry_bodies import (
    LastWrite,
    Operands,
    OperatorBody,
    ReadCell,
)
from veritrain.replay.trace.recompute import operator_named, recompute
from veritrain.replay.trace.shapes import Layout, layout_of, require_affordable, results_of
from veritrain.replay.trace.tiles import has_parts

ONE = b"\0\0\x80?"
aten = torch.ops.aten
EXACT = Arithmetic(numerics="exact", thresholds={}, seed=1)


def bare(view):
    return torch.empty_strided(view.shape, view.strides, dtype=view.dtype, device="meta")


def laid_out(tensors):
    return [(x.dtype, tuple(x.shape), tuple(x.stride())) for x in tensors]


@pytest.mark.parametrize("name", SMALL)
def test_honest_operators_are_affordable_and_make_what_is_expected(name):
    for body in read(Step(name).trace()):
        if not isinstance(body, OperatorBody):
            continue
        func = operator_named(body.call.operator)
        args, named = body.call.with_tensors(bare)
        require_affordable(func, args, named)
        found = results_of(func, args, named)
        if found is not None:
            results = list(calls.tensors_in(calls.filled(body.effects.results, bare)))
            assert laid_out(found) == laid_out(results), func
        if has_parts(body.call):
            assert layout_of(func, body) in (None, Layout.of(body.effects)), func


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


LARGE = {  # of GPT-2 124M at 8 x 64 tokens, and of ResNet-50 at 64 x 3 x 32 x 32
    "logits": (aten.mm.default, [meta(512, 768), meta(768, 50257)]),
    "gradient of the logits' weight": (aten.mm.default, [meta(50257, 512), meta(512, 768)]),
    "gradient of the table": (
        aten.embedding_dense_backward.default,
        [meta(8, 64, 768), meta(8, 64, dtype=torch.int64), 50257, -1, False],
    ),
    "softmax": (aten._log_softmax.default, [meta(512, 50257), 1, False]),
    "convolution": (
        aten.convolution.default,
        [meta(64, 64, 32, 32), meta(64, 64, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1],
    ),
    "its gradient": (
        aten.convolution_backward.default,
        [
            meta(64, 64, 32, 32), meta(64, 64, 32, 32), meta(64, 64, 3, 3), [0], [1, 1], [1, 1],
            [1, 1],
            False, [0, 0], 1, [True, True, False],
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large_honest_operators_are_affordable(name):
    func, args = LARGE[name]
    require_affordable(func, args, {})


def view(*shape, dtype="float32"):
    """Of four bytes, as often as wanted."""
    return {"view": [0, dtype, 0, list(shape), [0] * len(shape)]}


HOSTILE = {
    "product": ("mm.default", [view(4000, 4000), view(4000, 4000)]),
    "product that is huge": ("mm.default", [view(2**40, 2), view(2, 2**40)]),
    "expanded operand": ("add.Tensor", [view(2**28), 1]),
    "long result": ("arange.default", [10**12]),
    "padding": ("constant_pad_nd.default", [view(1), [2**36, 0]]),
    "table": ("embedding_dense_backward.default", [view(1, 1), view(1, dtype="int32"), 2**40, -1,
        False]),
    "count": ("bincount.default", [view(1, dtype="int32")]),
    "repetition": ("repeat_interleave.Tensor", [view(1, dtype="int32")]),
    "windows": ("avg_pool2d.default", [view(1, 1, 9000, 9000), [4500, 4500], [1, 1]]),
    "filter": (
        "convolution.default",
        [view(1, 1, 9, 9), view(1, 1, 1, 1), None, [2**30, 2**30], [2**29, 2**29], [1, 1], False,
            [0, 0], 1],
    ),
    "decomposition": ("linalg_qr.default", [view(9000, 9000), "reduced"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_call_is_not_computed(name):
    operator, arguments = HOSTILE[name]
    last = LastWrite(index=1, digest=digest("tensor", ONE))
    read_cell = ReadCell(cell=0, size=4, last=last)
    body = OperatorBody(
        operands=Operands(met=(), cells=1, reads=(read_cell,), log=None),
        call=calls.TracedCall(
            operator=f"aten.{operator}",
            draw=0,
            arguments=tuple(calls.read_argument(value) for value in arguments),
            named={},
        ),
        effects=None,
    )
    start = time.monotonic()
    with pytest.raises((InconclusiveError, ValueError, OverflowError)):
        recompute(EXACT, 1, body, {0: ONE}, None)
    assert time.monotonic() - start < 5
