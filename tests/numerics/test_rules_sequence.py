"""What language, recurrent and recommendation models use: against float64 PyTorch, in every
layout."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_support import DEVICES, check, exact, numbers, same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import spec
from veritrain.errors import NumericsError, UnsupportedOperatorError

aten = torch.ops.aten


def index(*values) -> torch.Tensor:
    return torch.tensor(values)


X = numbers(1, 4, 6)
Y = numbers(2, 4, 6)
POSITIVE = X.abs() + 0.25
UNIT = X.sigmoid()
ROWS = index(2, 0, 2, 2)
HEADS = numbers(3, 2, 4, 5, 6)  # (N, heads, length, width)
SERIES = numbers(4, 5, 3, 6)  # (length, N, width)
TABLE = numbers(5, 7, 4)
BAGS = index(2, 0, 2, 6, 6, 1, 2)
OFFSETS = index(0, 2, 2, 5)


def of_module(module: nn.Module, *inputs: torch.Tensor, call=None):
    """A case: the module as a function of its inputs and of parameters with other values."""
    names = [name for name, _ in module.named_parameters()]
    values = [numbers(9, *p.shape, scale=0.5) for p in module.parameters()]

    def function(*tensors):
        x, parameters = tensors[: len(inputs)], tensors[len(inputs) :]
        fresh = copy.deepcopy(module).to(tensors[-1].dtype)
        for name, value in zip(names, parameters, strict=True):
            owner = fresh.get_submodule(name.rpartition(".")[0])
            delattr(owner, name.rpartition(".")[2])
            setattr(owner, name.rpartition(".")[2], value)
        return call(fresh, *x) if call else fresh(*x)

    return (function, *inputs, *values)


def recurrent(layer: nn.RNNBase):
    """Results, last states, and the same of a packed batch."""

    def call(layer, x):
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
        first = layer.batch_first
        y, last = layer(x)
        lengths = (torch.arange(x.shape[0 if first else 1]) * 2) % 3 + 1
        packed, state = layer(pack_padded_sequence(x, lengths, first, enforce_sorted=False))
        parts = [p for s in (last, state) for p in (s if isinstance(s, tuple) else (s,))]
        return (y, *parts, pad_packed_sequence(packed, first)[0])

    return of_module(layer, SERIES, call=call)


def attended(module: nn.Module, x: torch.Tensor):
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    absent = torch.arange(5) >= index([5], [3])
    return (
        *module(x, x, x, attn_mask=later), module(x, x, x, need_weights=False)[0],
        module(x, x, x, key_padding_mask=absent)[0],
    )  # fmt: skip


def bag(**options):
    return lambda w: F.embedding_bag(BAGS, w, OFFSETS, **options)


# name: (function, float or integer inputs ...)
CASES = {
    # recurrent layers
    "lstm": recurrent(nn.LSTM(6, 3, 2, bidirectional=True)),
    "lstm projected": recurrent(nn.LSTM(6, 4, proj_size=2)),
    "gru": recurrent(nn.GRU(6, 3, 2, bidirectional=True)),
    "rnn": recurrent(nn.RNN(6, 3, bias=False)),
    "rnn relu": recurrent(nn.RNN(6, 3, nonlinearity="relu")),
    "rnn batch first": recurrent(nn.RNN(6, 3, batch_first=True)),
    "lstm cell": of_module(nn.LSTMCell(6, 3), X),
    "gru cell": of_module(nn.GRUCell(6, 3), X),
    "rnn cell": of_module(nn.RNNCell(6, 3), X),
    # embeddings
    "embedding by frequency": (
        lambda w: F.embedding(BAGS, w, padding_idx=1, scale_grad_by_freq=True), TABLE,
    ),
    "embedding renorm": (
        lambda w: tuple(F.embedding(BAGS, w * 1, max_norm=1.0, norm_type=p) for p in (2.0, 1.0)),
        TABLE,
    ),
    "bag sum": (bag(mode="sum"), TABLE),
    "bag mean": (bag(mode="mean"), TABLE),
    "bag max": (bag(mode="max"), TABLE),
    "bag matrix": (lambda w: F.embedding_bag(BAGS[:6].view(2, 3), w, mode="sum"), TABLE),
    "bag padding": (
        lambda w: tuple(F.embedding_bag(BAGS, w, OFFSETS, mode=m, padding_idx=2) for m in ("sum",
            "mean", "max")),
        TABLE,
    ),
    "bag last offset": (
        lambda w: F.embedding_bag(BAGS, w, index(0, 0, 3, 7), mode="mean",
            include_last_offset=True), TABLE,
    ),
    "bag weighted": (
        lambda w, each: F.embedding_bag(BAGS, w, OFFSETS, mode="sum", per_sample_weights=each),
        TABLE, numbers(6, 7),
    ),
    "bag weighted padding": (
        lambda w, each: F.embedding_bag(
            BAGS, w, OFFSETS, mode="sum", per_sample_weights=each, padding_idx=6
        ),
        TABLE, numbers(6, 7),
    ),
    "bag without gradient": (lambda w: F.embedding_bag(BAGS, w.detach(), OFFSETS, mode="max"),
        TABLE),
    # experts
    "one hot dispatch": (
        lambda x: torch.einsum("nk,nd->kd", F.one_hot(ROWS, 3).to(x.dtype), x), X,
    ),
    "grouped mm": (
        lambda x, w: torch._grouped_mm(x.float(), w.float(), offs=index(2, 2, 4).int()).to(x.dtype),
        numbers(1, 4, 8), numbers(7, 3, 8, 4),
    ),
    "grouped mm columns": (
        lambda w, x: torch._grouped_mm(w.float(), x.float(), offs=index(4, 4, 8).int()).to(x.dtype),
        numbers(7, 3, 8, 4), numbers(1, 4, 8),
    ),
    "grouped mm whole": (
        lambda x, y: torch._grouped_mm(x.float(), y.float()).to(x.dtype), numbers(7, 3, 8, 4),
        numbers(1, 3, 4, 8),
    ),
    "histc": (
        lambda x: (torch.histc(x.detach(), 7, -1, 2),
            torch.histc((x.detach() * 2).round(), 5, 0, 4)), X,
    ),
    "bincount": (lambda n: (n.bincount(minlength=5), torch.isin(n, index(0, 7)), (n > 0).all()),
        ROWS),
    "bincount weights": (lambda x: torch.bincount(ROWS, x[:, 0].detach(), 5).to(x.dtype), X),
    "unique": (lambda n: (*n.unique(return_inverse=True, return_counts=True),
        n.unique(sorted=False)), ROWS),
    "all true": (lambda x: aten._is_all_true(x > -4), X),
    # attention
    "attention causal": (
        lambda x, y: F.scaled_dot_product_attention(x, y, y, is_causal=True), HEADS, HEADS * 0.5,
    ),
    "attention mask": (
        lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m, scale=0.3), HEADS,
        numbers(7, 5, 5),
    ),
    "attention grouped": (
        lambda x, y: F.scaled_dot_product_attention(x, y, y, enable_gqa=True), HEADS,
        numbers(8, 2, 2, 5, 6),
    ),
    "multihead": of_module(nn.MultiheadAttention(6, 2, batch_first=True), numbers(3, 2, 5, 6),
        call=attended),
    "multihead bias": of_module(
        nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True, kdim=4, vdim=3),
        SERIES, numbers(7, 4, 3, 4), numbers(8, 4, 3, 3), call=lambda m, q, k, v: m(q, k, v)[0],
    ),
    "rms norm": (lambda x, w: F.rms_norm(x, (6,), w, 1e-6), X, Y[0]),
    # powers and elementary functions
    "pow": (lambda x: (x**2.5, x**-1.7, x**0.3), POSITIVE),
    "pow tensors": (lambda x, y: (x**y, torch.pow(torch.full_like(y, 3.0), y)), POSITIVE, X),
    "pow of a number": (lambda x: (10000.0 ** x.detach(), 2 ** x.detach()), X),
    "pow integers": (lambda n: (n**n, 2**n, n.to(torch.int32) ** ROWS), ROWS),
    "exp2": (lambda x: x.exp2(), X),
    "erfinv": (lambda x: torch.erfinv(x), UNIT * 1.8 - 0.9),
    "logit": (lambda x: (torch.logit(x), torch.logit(x, 0.3)), UNIT),
    "mish": (lambda x: F.mish(x), X),
    "logaddexp": (lambda x, y: torch.logaddexp(x, y), X, Y),
    # running sums and products
    "cumsum": (lambda x: (x.cumsum(0), x.cumsum(-1), x[0, 0].cumsum(0)), X),
    "cumsum integers": (lambda n: (n.cumsum(0), n.cumsum(0, dtype=torch.float32).double()), ROWS),
    "cumprod": (lambda x: (x.cumprod(0), x.cumprod(1)), X),
    "cumprod zero": (lambda x: (x.cumprod(1), x.prod(1)), X * (X > -0.5)),
    "cumprod integers": (lambda n: (n.cumprod(0), n.prod(), n.prod(0)), ROWS),
    "prod": (lambda x: (x.prod(), x.prod(0), x.prod(1, keepdim=True), x[0, 0].prod()), X),
    # losses
    "bce": (
        lambda x, y: (
            *(F.binary_cross_entropy(x, y.sigmoid(), reduction=r) for r in ("none", "mean", "sum")),
            F.binary_cross_entropy(x, (y > 0).to(x.dtype), weight=POSITIVE.to(x.dtype)),
        ), UNIT, Y,
    ),
    "bce certain": (lambda x: F.binary_cross_entropy(x, 1 - x.detach()), index(0.0, 1.0)),
    "cross entropy": (
        lambda x: (
            F.cross_entropy(x, ROWS, label_smoothing=0.1),
            F.cross_entropy(x, index(2, -100, 5, 0), POSITIVE[0].to(x.dtype), label_smoothing=0.2),
            F.cross_entropy(x, index(2, 1, 5, 0), ignore_index=1, reduction="sum"),
            F.cross_entropy(x, index(2, 1, 5, 0), POSITIVE[0].to(x.dtype), reduction="none"),
        ), X,
    ),
    "cross entropy odds": (
        lambda x, y: (
            F.cross_entropy(x, y.softmax(1)), F.cross_entropy(x, y.softmax(1), label_smoothing=0.1),
            F.cross_entropy(x, y.softmax(1), POSITIVE[0].to(x.dtype), reduction="sum"),
        ), X, Y,
    ),
    "distances": (
        lambda x, y: (
            F.l1_loss(x, y), F.l1_loss(x, y, reduction="none"), F.cosine_similarity(x, y, 1),
            F.normalize(x), F.normalize(x, p=1.0, dim=0), F.pairwise_distance(x, y),
            F.cosine_embedding_loss(x, y, index(1, -1, 1, -1)), F.triplet_margin_loss(x, y, x * y),
        ), X, Y,
    ),
    "kl": (
        lambda x, y: tuple(
            F.kl_div(x.log_softmax(1), y.softmax(1), reduction=r) for r in ("none", "sum",
                "batchmean")
        ), X, Y,
    ),
    # parametrisations
    "weight norm": (
        lambda v, g: (torch._weight_norm(v, g[:, :1]), torch._weight_norm(v, g[:1], 1)), X,
        POSITIVE,
    ),
    "weight norm whole": (lambda v, g: torch._weight_norm(v, g, -1), X, POSITIVE[0, 0]),
    "weight norm convolution": (
        lambda v, g: torch._weight_norm(v, g.view(4, 1, 1)), numbers(3, 4, 2, 3), POSITIVE[:, 0],
    ),
    "weight norm layer": of_module(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), X),
    "spectral norm": of_module(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3), n_power_iterations=5), X
    ),
    "transpose in place": (lambda x: (x * 1).t_().transpose_(0, 1), X),
    "einsum": (
        lambda x, y: (torch.einsum("ij,kj->ik", x, y), torch.einsum("ij,ij->", x, y),
            torch.outer(x[0], y[1])),
        X, Y,
    ),
}  # fmt: skip


# `transpose_` changes a shape behind the pretended tensor; a GPU refuses the fused cells that it
# takes.
ON_THE_CPU = {
    "lstm", "lstm projected", "gru", "rnn", "rnn relu", "rnn batch first", "transpose in place",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64_in_every_layout(name):
    function, *inputs = CASES[name]
    check(function, *inputs, devices=[] if name in ON_THE_CPU else DEVICES)


NONE = torch.zeros(0, dtype=torch.long)
EMPTY = {
    "bags": (lambda w: tuple(F.embedding_bag(NONE, w, index(0, 0), mode=m) for m in ("sum", "mean",
        "max")), TABLE),
    "no bags": (lambda w: tuple(F.embedding_bag(NONE, w, NONE, mode=m) for m in ("sum", "mean")),
        TABLE),
    "only padding": (
        lambda w: tuple(
            F.embedding_bag(index(2, 2), w, index(0, 0, 2), mode=m, padding_idx=2) for m in ("sum",
                "mean", "max")
        ), TABLE,
    ),
    "embedding": (lambda w: F.embedding(NONE, w, scale_grad_by_freq=True), TABLE),
    "renorm": (lambda w: F.embedding(NONE, w * 1, max_norm=1.0), TABLE),
    "no lines": (lambda x: (x.cumsum(0), x.cumprod(0), x.prod(), x.prod(0)), numbers(1, 0, 3)),
    "no columns": (lambda x: (x.cumsum(1), x.cumprod(1), x.prod(), x.prod(1, keepdim=True)),
        numbers(1, 3, 0)),
    "a number": (
        lambda x: (x.cumsum(0), x.cumprod(0), x.prod(), x.prod(0), x.prod(0, keepdim=True), x**2.5),
        X[0, 0].abs(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_and_single_numbers(name):
    function, *inputs = EMPTY[name]
    check(function, *inputs)


# Results that float64 cannot show


def test_recurrent_layers_are_what_the_specification_says():
    """docs/numerics.md, "Recurrent layers", line by line, with the gradients of the weights."""
    for layer in (nn.RNN(6, 3), nn.RNN(6, 3, nonlinearity="relu"), nn.LSTM(6, 3), nn.GRU(6, 3)):
        with exact():
            h = c = torch.zeros(3, 3)
            results = []
            for i in F.linear(SERIES, layer.weight_ih_l0, layer.bias_ih_l0).unbind():
                g = F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
                if layer.mode == "LSTM":
                    enter, forget, cell, out = (g + i).chunk(4, 1)
                    c = c * forget.sigmoid() + enter.sigmoid() * cell.tanh()
                    h = out.sigmoid() * c.tanh()
                elif layer.mode == "GRU":
                    (ir, iz, i_n), (gr, gz, gn) = i.chunk(3, 1), g.chunk(3, 1)
                    r, z = (gr + ir).sigmoid(), (gz + iz).sigmoid()
                    n = (i_n + gn * r).tanh()
                    h = (h - n) * z + n
                else:
                    h = (g + i).tanh() if layer.mode == "RNN_TANH" else (g + i).relu()
                results.append(h)
            want, got = torch.stack(results), layer(SERIES)[0]
            same(got.detach(), want.detach())
            gradients = [
                torch.autograd.grad(y.sum(), list(layer.parameters())) for y in (got, want)
            ]
            same(*gradients)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_every_prefix_is_the_sum_of_the_slice_s_integers(values):
    x = np.array(values, np.float32)
    whole, scale = spec.integers(x, spec.sum_bits(x.size))
    want = [spec.to_float32(sum(whole[: i + 1]) * scale) for i in range(x.size)]
    with exact():
        same(torch.from_numpy(x).cumsum(0), torch.tensor(np.array(want)))


def test_products_run_from_left_to_right():
    x = numbers(3, 200) + 1
    want = [np.float32(1)]
    for value in x.numpy():
        want.append(np.float32(want[-1] * value))
    with exact():
        same(x.cumprod(0), torch.tensor(np.array(want[1:])))
        same(x.prod(), torch.tensor(want[-1]))
        assert torch.ones(0).prod() == 1
        assert torch.ones(2, 0).prod(1, keepdim=True).tolist() == [[1.0], [1.0]]
        assert torch.ones(0, 3).cumsum(0).shape == (0, 3)


def test_a_sum_that_runs_into_infinity_is_not_a_number():
    with exact():
        assert index(1.0, float("inf"), 2.0).cumsum(0).isnan().all()


def test_equal_maxima_of_a_bag_go_to_the_first():
    table = index([1.0, 5.0], [1.0, 5.0], [0.0, -0.0]).requires_grad_()
    with exact():
        result = F.embedding_bag(index(2, 1, 0), table, index(0, 1, 3), mode="max")
        result.sum().backward()
    same(result.detach(), index([0.0, 0.0], [1.0, 5.0], [0.0, 0.0]))
    assert table.grad.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_bag_is_checked():
    with exact():
        for indices, offsets, last in (
            (index(7), index(0), False),
            (index(1, 2), index(1), False),
            (index(1), index(0, 2), False),
            (index(1, 2), index(0, 1), True),
        ):
            with pytest.raises((IndexError, ValueError, RuntimeError), match="index|offset"):
                F.embedding_bag(indices, TABLE, offsets, include_last_offset=last)


def test_infinite_arguments_of_logaddexp():
    inf = float("inf")
    x, y = index(inf, -inf, inf, -inf), index(inf, -inf, -inf, 0.0)
    with exact():
        assert torch.logaddexp(x, y).tolist() == [inf, -inf, inf, 0.0]


def test_a_frozen_teacher_computes_what_it_computed_in_training():
    """In evaluation without gradients PyTorch would take fused kernels."""
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
    with exact():
        trained = layer(SERIES).detach(), nn.LSTM(6, 3)(SERIES)[0].detach()
    with exact(), torch.no_grad():
        same(trained, (layer.eval()(SERIES), nn.LSTM(6, 3).eval()(SERIES)[0]))


def test_dropped_words_are_keyed_by_step():
    attention = nn.MultiheadAttention(6, 2, dropout=0.5)
    layers = [
        lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, dropout_p=0.5),
        lambda: attention(SERIES, SERIES, SERIES)[0].detach(),
        lambda: nn.LSTM(6, 3, 2, dropout=0.5)(SERIES)[0].detach(),
        lambda: nn.GRU(6, 3, 2, dropout=0.5)(SERIES)[0].detach(),
    ]
    for layer in layers:
        with exact():
            first, second = layer(), layer()
        with exact():
            same(first, layer())
        assert not torch.equal(first, second)


def test_scales_made_of_widths_round_alike_whatever_the_last_bit_of_a_power():
    """Models write `width ** -0.5` in Python, through the C library; float32 does not see its
    error."""
    for width in range(1, 16_385):
        for exponent in (-0.5, 0.5, -0.25):
            power = width**exponent
            around = (math.nextafter(power, 0), power, math.nextafter(power, math.inf))
            assert len({np.float32(value) for value in around}) == 1


# Drawing from weights


def test_frequencies_follow_the_weights():
    weights = index([1.0, 0.0, 3.0, 4.0], [0.0, 2.0, 0.0, 0.0])
    with exact():
        drawn = torch.multinomial(weights, 4000, replacement=True)
    counts = drawn[0].bincount(minlength=4) / 4000
    assert (counts - weights[0] / 8).abs().max() < 0.03
    assert counts[1] == 0
    assert (drawn[1] == 1).all()


def test_a_draw_is_a_race():
    weights = numbers(3, 5, 9).abs()
    with exact():
        drawn = torch.multinomial(weights, 3)
    with exact():
        times = torch.empty(5, 9).exponential_()
    same(drawn, torch.argsort(weights / times, dim=1, descending=True, stable=True)[:, :3])
    with exact():
        repeated = torch.multinomial(weights, 2, replacement=True)
    with exact():
        for column in repeated.unbind(1):
            same(column, (weights / torch.empty(5, 9).exponential_()).argmax(1))


def test_samples_without_replacement_are_distinct():
    with exact():
        drawn = torch.multinomial(torch.ones(500, 6), 6)
        first = torch.multinomial(torch.ones(6), 2)
    assert (drawn.sort(1)[0] == torch.arange(6)).all()
    assert first.shape == (2,)
    assert (drawn[:, 0].bincount(minlength=6) > 50).all()


@pytest.mark.parametrize(
    ("weights", "count", "message"),
    [
        (index(1.0, -1.0), 1, "not negative"),
        (index(1.0, float("nan")), 1, "finite"),
        (index(0.0, 0.0), 1, "fewer than 1"),
        (index(0.0, 1.0), 2, "fewer than 2"),
    ],
)
def test_weights_that_no_draw_follows(weights, count, message):
    with exact(), pytest.raises(NumericsError, match=message):
        torch.multinomial(weights, count)


def test_waiting_times_and_gumbel_noise():
    with exact():
        times = torch.empty(20_000).exponential_(2.0)
        soft = F.gumbel_softmax(torch.zeros(2000, 4), tau=0.5)
        hard = F.gumbel_softmax(torch.zeros(2000, 4), hard=True)
    assert (times > 0).all()
    assert abs(times.mean() - 0.5) < 0.02
    assert soft.isfinite().all()
    assert (hard.sum(1) == 1).all()
    assert ((hard.mean(0) - 0.25).abs() < 0.05).all()


# What is refused


def ctc():
    return F.ctc_loss(X[:, None].log_softmax(2), index([1, 2]), index(4), index(2))


REFUSED = {
    "ctc": (ctc, UnsupportedOperatorError, "_ctc_loss.*cross_entropy"),
    "pow of a number": (
        lambda: torch.pow(2.5, X.clone().requires_grad_()), UnsupportedOperatorError, "full_like",
    ),
    "probabilities": (lambda: F.binary_cross_entropy(X, UNIT), NumericsError, r"\[0, 1\]"),
    "pow 64": (lambda: X.double() ** UNIT, UnsupportedOperatorError, "pow on torch.float64"),
    "cumsum 64": (lambda: X.double().cumsum(0), UnsupportedOperatorError,
        "cumsum on torch.float64"),
    "unique": (lambda: X.unique(), UnsupportedOperatorError, "unique of floating"),
    "histc": (lambda: torch.histc(X), UnsupportedOperatorError, "histc without bounds"),
    "bincount 64": (
        lambda: torch.bincount(ROWS, X[:, 0].double()), UnsupportedOperatorError,
        "bincount on torch.float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name):
    function, error, message = REFUSED[name]
    with exact(), pytest.raises(error, match=message):
        function()


@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_gradient_of_a_bag_is_refused(option):
    table = TABLE.clone().requires_grad_()
    with exact(), pytest.raises(UnsupportedOperatorError, match=option):
        F.embedding_bag(BAGS, table, OFFSETS, mode="sum", **{option: True}).sum().backward()
