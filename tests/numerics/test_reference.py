"""The operators under the mode equal the written definitions, bit for bit, at the edges too."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from product_operations import perform
from rules_support import exact, numbers, same

from spec import Geometry, contraction_bits
from spec.operations import LOSSES, NORMS, OPTIMISERS, SOFTMAX, SUMS, contractions
from spec.optimisers import power as plain_power
from spec.vector_files import patterns
from veritrain.numerics.rules.optimisers import power

DEFINITIONS = (
    contractions(contraction_bits) | SUMS | NORMS | SOFTMAX | LOSSES | OPTIMISERS
)  # fmt: skip
EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 0.5, 1.5]
NOT_FINITE = [float("inf"), float("-inf"), float("nan")]
moderate = st.floats(-8, 8, width=32)
values = st.one_of(moderate, st.sampled_from(EDGES))
everything = st.one_of(values, st.floats(width=32), st.sampled_from(EDGES + NOT_FINITE))
kinds = st.sampled_from([moderate, values, everything])
brief = settings(max_examples=40, deadline=None)


def arrays(*shape: int, elements=everything):
    return hnp.arrays(np.float32, shape, elements=elements)


def agree(operation: str, inputs: dict, **arguments) -> None:
    """Definition and product give the same outputs: names, shapes and bits."""
    want = DEFINITIONS[operation](**inputs, **arguments)
    got = perform(operation, inputs, arguments)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
        np.testing.assert_array_equal(patterns(got[name]), patterns(want[name]), name)


@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 4), st.data())
@brief
def test_product(m, k, n, data):
    a, b = data.draw(arrays(m, k)), data.draw(arrays(k, n))
    agree("mm", {"a": a, "b": b})
    agree("mm", {"a": b.T, "b": a.T})
    agree("bmm", {"a": a[None], "b": b[None]})


@given(st.sampled_from([1.0, 0.3, -2.0]), st.sampled_from([0.0, 1.0, 0.7]), kinds, st.data())
@brief
def test_product_added_to_a_base(alpha, beta, elements, data):
    shapes = {"base": (3, 2), "a": (3, 4), "b": (4, 2)}
    inputs = {name: data.draw(arrays(*s, elements=elements)) for name, s in shapes.items()}
    agree("addmm", inputs, alpha=alpha, beta=beta)


def test_product_loses_exactly_the_bits_of_the_definition():
    # K = 2 gives 22 bits: with the row's largest value 1 (E = 1) the unit is 2**-21
    a = np.array([[1.0, 2.0**-23 + 2.0**-22]], np.float32)
    b = np.eye(2, dtype=np.float32)
    assert perform("mm", {"a": a, "b": b}, {})["y"].tolist() == [[1.0, 2.0**-21]]
    agree("mm", {"a": a, "b": b})


@st.composite
def geometries(draw, axes: int):
    """Stride, padding, dilation, groups, and whether transposed, with what that allows."""

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(axes)]

    stride, dilation, transposed = each(1, 3), each(1, 2), draw(st.booleans())
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    return {
        "stride": stride, "padding": each(0, 2), "dilation": dilation, "transposed": transposed,
        "output_padding": extra if transposed else [0] * axes, "groups": draw(st.integers(1, 2)),
    }  # fmt: skip


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 2), kinds, st.data())
@settings(max_examples=60, deadline=None)
def test_convolution_and_its_gradients(axes, batch, inputs, outputs, elements, data):
    options = data.draw(geometries(axes))
    groups, transposed = options["groups"], options["transposed"]
    geometry = Geometry(**options)
    size = [data.draw(st.integers(1, 5 if axes < 3 else 3)) for _ in range(axes)]
    kernel = [data.draw(st.integers(1, 3 if axes < 3 else 2)) for _ in range(axes)]
    result = (geometry.image_size if transposed else geometry.rows_size)(size, kernel)
    assume(min(result) > 0)
    outer, inner = (inputs, outputs) if transposed else (outputs, inputs)
    x = data.draw(arrays(batch, groups * inputs, *size, elements=elements))
    w = data.draw(arrays(groups * outer, inner, *kernel, elements=elements))
    bias = data.draw(st.one_of(st.none(), arrays(groups * outputs, elements=elements)))
    grad = data.draw(arrays(batch, groups * outputs, *result, elements=elements))
    agree("convolution", {"x": x, "w": w, "bias": bias}, **options)
    agree("convolution_backward", {"grad": grad, "x": x, "w": w}, **options)


@given(hnp.array_shapes(max_dims=4, min_side=0, max_side=5), kinds, st.data())
@brief
def test_sums_over_axes(shape, elements, data):
    x = data.draw(arrays(*shape, elements=elements))
    axes = data.draw(st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1))
    correction = data.draw(st.sampled_from([0.0, 1.0, 2.0]))
    for layout in (x, np.asfortranarray(x)):
        agree("sum", {"x": layout}, axes=axes)
        agree("mean", {"x": layout}, axes=axes)
    agree("var", {"x": x}, axes=axes, correction=correction)
    agree("std", {"x": x}, axes=axes, correction=correction)
    for order in (1.0, 2.0):
        agree("vector_norm", {"x": x}, axes=axes, order=order)


@given(st.integers(0, 8), st.integers(1, 3), st.sampled_from([1.0, 0.3]), kinds, st.data())
@brief
def test_accumulation(count, width, alpha, elements, data):
    index = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), int)
    x, source = (data.draw(arrays(n, width, elements=elements)) for n in (4, count))
    agree("index_add", {"x": x, "index": index, "source": source}, alpha=alpha)
    agree("embedding_backward", {"grad": source, "index": index}, num_weights=4, padding_idx=1)
    column = {"x": x[:, 0], "index": index, "source": source[:, 0]}
    agree("scatter_add", column)
    agree("put_accumulate", column)


@given(
    st.integers(0, 8),
    st.sampled_from(["sum", "mean", "amax", "amin"]),
    st.booleans(),
    kinds,
    st.data(),
)
@brief
def test_scatter_reduce(count, reduce, include_self, elements, data):
    index = data.draw(hnp.arrays(np.int64, (2, count), elements=st.integers(0, 3)))
    x, source = (data.draw(arrays(*shape, elements=elements)) for shape in ((3, 4), (2, count)))
    how = {"reduce": reduce, "include_self": include_self}
    agree("scatter_reduce", {"x": x, "index": index, "source": source}, dim=1, **how)
    tall = {"x": x.T.copy(), "index": index.T.copy(), "source": source.T.copy()}
    agree("scatter_reduce", tall, dim=0, **how)


def draw_all(data, elements, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: data.draw(arrays(*s, elements=elements)) for name, s in shapes.items()}


@given(st.integers(1, 3), st.integers(1, 12), st.sampled_from([1e-5, 0.1]), kinds, st.data())
@brief
def test_layer_norm(rows, width, eps, elements, data):
    shape = (rows, width)
    agree(
        "layer_norm", draw_all(data, elements, x=shape, w=(width,), b=(width,), dy=shape), eps=eps
    )


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), kinds, st.data())
@brief
def test_group_norm(batch, groups, channels, area, elements, data):
    assume(batch * channels * area > 1)
    num_c = groups * channels
    shape = (batch, num_c, area)
    inputs = draw_all(data, elements, x=shape, w=(num_c,), b=(num_c,), dy=shape)
    agree("group_norm", inputs, groups=groups, eps=1e-5)


@given(
    st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(),
    st.sampled_from([0.1, 0.3]), kinds, st.data(),
)  # fmt: skip
@brief
def test_batch_norm(batch, num_c, area, training, momentum, elements, data):
    shape = (batch, num_c, area)
    inputs = draw_all(data, elements, x=shape, w=(num_c,), b=(num_c,), running_mean=(num_c,))
    inputs["running_var"] = np.abs(data.draw(arrays(num_c, elements=moderate)))
    inputs["dy"] = data.draw(arrays(*shape, elements=elements))
    agree("batch_norm", inputs, training=training, momentum=momentum, eps=1e-5)


@given(kinds, st.data())
@brief
def test_a_norm_without_weights_is_that_of_ones_and_zeros(elements, data):
    x = torch.from_numpy(data.draw(arrays(2, 4, 3, elements=elements)))
    one, zero = torch.ones(4), torch.zeros(4)
    with exact():
        same(F.group_norm(x, 2), F.group_norm(x, 2, one, zero))
        same(
            F.batch_norm(x, None, None, training=True), F.batch_norm(x, None, None, one, zero, True)
        )
        rows = x.mT
        same(F.layer_norm(rows, (4,)), F.layer_norm(rows, (4,), one, zero))


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2), kinds, st.data())
@brief
def test_softmax(shape, axis, elements, data):
    inputs = draw_all(data, elements, x=shape, dy=shape)
    for operation in ("softmax", "log_softmax"):
        agree(operation, inputs, axis=axis)
    for operation in ("safe_softmax", "logsumexp"):
        agree(operation, {"x": inputs["x"]}, axis=axis)


reductions = st.sampled_from(["none", "mean", "sum"])


@given(
    hnp.array_shapes(max_dims=2, max_side=4),
    reductions,
    st.sampled_from([0.3, 1.0]),
    kinds,
    st.data(),
)
@brief
def test_elementwise_losses(shape, reduction, bound, elements, data):
    grad = shape if reduction == "none" else ()
    inputs = draw_all(data, elements, x=shape, t=shape, grad=grad)
    agree("mse_loss", inputs, reduction=reduction)
    agree("smooth_l1_loss", inputs, reduction=reduction, beta=bound)
    agree("huber_loss", inputs, reduction=reduction, delta=bound)
    logits = draw_all(data, elements, x=shape, t=shape, weight=shape, pos_weight=shape[-1:])
    agree("binary_cross_entropy_with_logits", logits, reduction=reduction)
    agree("xlogy", {"x": inputs["x"], "y": inputs["t"]})


@given(
    st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans(), reductions, kinds, st.data()
)
@brief
def test_negative_log_likelihood(count, classes, weighted, image, reduction, elements, data):
    area = (1, 2) if image else ()
    targets = st.lists(st.integers(-1, classes - 1), min_size=count, max_size=count)
    target = np.array(data.draw(targets), np.int64).reshape(count, *[1] * len(area))
    inputs = draw_all(data, elements, x=(count, classes, *area))
    inputs["classes"] = np.broadcast_to(target, (count, *area)).copy()
    inputs["weight"] = data.draw(arrays(classes, elements=values)) if weighted else None
    shape = (count, *area) if reduction == "none" else ()
    inputs["grad"] = data.draw(arrays(*shape, elements=elements))
    agree("nll_loss", inputs, reduction=reduction, ignore_index=-1)


@given(
    st.integers(1, 8), st.sampled_from([0.0, 0.01]), st.sampled_from([0.9, 0.5]),
    st.sampled_from([0.999, 0.75]), st.booleans(), st.booleans(), st.booleans(), kinds, st.data(),
)  # fmt: skip
@brief
def test_adam(count, decay, beta1, beta2, decoupled, amsgrad, maximize, elements, data):
    agree(
        "adam", draw_all(data, elements, param=(count,), grads=(3, count)), lr=0.01, beta1=beta1,
        beta2=beta2, eps=1e-8, weight_decay=decay, decoupled=decoupled, maximize=maximize,
        amsgrad=amsgrad,
    )  # fmt: skip


@given(
    st.integers(1, 8), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.3]), st.booleans(), st.booleans(), kinds, st.data(),
)  # fmt: skip
@brief
def test_sgd(count, momentum, decay, dampening, nesterov, maximize, elements, data):
    agree(
        "sgd", draw_all(data, elements, param=(count,), grads=(3, count)), lr=0.05,
        momentum=momentum, dampening=dampening, weight_decay=decay, maximize=maximize,
        nesterov=nesterov and momentum > 0 and dampening == 0,
    )  # fmt: skip


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 5000))
@brief
def test_power_is_close_to_the_real_one(base, exponent):
    want = base**exponent
    assert abs(power(base, exponent) - want) <= 1e-12 * want + 1e-300
    assert power(base, exponent) == plain_power(base, exponent)


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
