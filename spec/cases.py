"""The cases of vectors/numerics/*.json: inputs for the chapters of docs/numerics.md.

The expected bits come from the slow definitions alone, no kernel of the product takes part.
Everything is determined: `python -m spec` writes the same bytes again, and a test compares. The
numbers of a case come from a label that counts the draws of its chapter. So a new case comes last
in its chapter, or the cases after it get other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from spec import Geometry, Width, contraction_bits, narrow_bits
from spec.operations import (
    LOSSES,
    NORMS,
    OPEN,
    OPTIMISERS,
    POINTWISE,
    POOLING,
    SOFTMAX,
    SUMS,
    Inputs,
    Outputs,
    contractions,
)
from spec.vector_files import Stream, encode

INF, NAN = float("inf"), float("nan")
TINY = 2.0**-149  # smallest subnormal number
NORMAL = 2.0**-126  # smallest normal number
LARGE = (2 - 2.0**-23) * 2.0**127  # largest number
EVERYDAY = (120, 129)  # exponent fields: magnitudes from 2**-7 to 8
WIDE = (87, 147)  # from 2**-40 to 2**21
EDGES = [0.0, -0.0, TINY, -TINY, NORMAL, 1.0, -1.5, 3.0, LARGE, -LARGE, INF, -INF, NAN, 0.3]


@dataclass(frozen=True)
class Case:
    """One operation on given inputs. `inputs` are tensors, `arguments` numbers and words."""

    name: str
    operation: str
    inputs: Inputs
    arguments: dict[str, Any] = field(default_factory=dict)


def f32(*values: Any) -> np.ndarray:
    """A row, or rows, of numbers that float32 holds exactly or rounds."""
    return np.array(
        values[0] if len(values) == 1 and isinstance(values[0], list) else values, np.float32
    )


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


class Draw:
    """Tensors of a chapter, each from a label of its own."""

    def __init__(self, chapter: str) -> None:
        self._chapter = chapter
        self._number = count()

    def __call__(self, *shape: int, exponents: tuple[int, int] = EVERYDAY) -> Stream:
        return Stream(f"{self._chapter} {next(self._number)}", shape, *exponents)


# The cases.


def contraction_cases(chapter: str, width: Width) -> Iterator[Case]:
    draw = Draw(chapter)
    bits = width(2)
    unit = 2.0 ** (1 - bits)  # of a row whose largest value is 1, of two values
    second = f32([[0.0], [1.0]])
    for name, value in {
        "tie to even, down to 0": unit / 2,
        "tie to even, up to 2 units": 3 * unit / 2,
        "tie to even, down to 2 units": 5 * unit / 2,
        "negative tie": -unit / 2,
        "just above a tie": unit / 2 * (1 + 2.0**-23),
        "just below a tie": unit / 2 * (1 - 2.0**-24),
    }.items():
        yield Case(f"quantisation: {name}", "mm", {"a": f32([[1.0, value]]), "b": second})
    for name, row in {
        "result is a tie, to even below": [1.0, 2.0**-24],
        "result is a tie, to even above": [1 + 2.0**-23, 2.0**-24],
        "largest value is a power of two": [1.0, 0.3],
        "largest value just below a power of two": [1 - 2.0**-24, 0.3],
        "zeros": [0.0, -0.0],
        "cancels": [1.5, -1.5],
        "largest value subnormal": [TINY, -3 * TINY],
        "largest value the smallest normal number": [NORMAL, TINY],
        "rounds to infinity": [LARGE, 2.0**103],
        "rounds to the largest number": [LARGE, 2.0**102],
        "overflows": [LARGE, LARGE],
        "overflows below": [-LARGE, -LARGE],
        "large values cancel": [LARGE, -LARGE],
        "infinity": [1.0, INF],
        "infinities of both signs": [INF, -INF],
        "NaN": [NAN, 1.0],
    }.items():
        yield Case(name, "mm", {"a": f32([row]), "b": f32([[1.0], [1.0]])})
    for name, a, b in [
        ("K = 1", 3.1415927, -0.1),
        ("K = 1, subnormal operand", 5 * TINY, 2.0**20),
        ("product underflows, a tie to zero", 2.0**-75, 2.0**-75),
        ("product underflows below zero to -0", -(2.0**-75), 2.0**-75),
        (
            "product underflows, just above a tie",
            (1 + 2.0**-23) * 2.0**-75,
            (1 - 2.0**-24) * 2.0**-75,
        ),
        ("product underflows to a subnormal number", 1.5 * 2.0**-75, 2.0**-75),
        ("product of the smallest numbers", -TINY, TINY),
        ("infinity times zero", INF, 0.0),
        ("negative zero", -0.0, 1.0),
    ]:
        yield Case(name, "mm", {"a": f32([[a]]), "b": f32([[b]])})
    a = f32([[2.0**-127, 3 * 2.0**-140]])
    yield Case("E is -125 for a subnormal number too", "mm", {"a": a, "b": f32([[0.0], [2.0**20]])})
    a, b = draw(3, 4).array(), draw(4, 3).array()
    a[1, 2], b[0, 0] = INF, NAN
    yield Case("rows and columns that are not finite leave the others", "mm", {"a": a, "b": b})
    for shape in [(0, 3, 2), (2, 3, 0), (2, 0, 3), (0, 0, 0)]:
        m, k, n = shape
        empty = {"a": np.zeros((m, k), np.float32), "b": np.zeros((k, n), np.float32)}
        yield Case(f"empty, M, K, N = {m}, {k}, {n}", "mm", empty)
    for m, k, n, exponents in [(5, 7, 4, EVERYDAY), (4, 33, 3, WIDE), (2, 4608, 2, EVERYDAY)]:
        inputs = {"a": draw(m, k, exponents=exponents), "b": draw(k, n, exponents=exponents)}
        yield Case(f"M, K, N = {m}, {k}, {n}", "mm", inputs)
    yield Case("K = 131072", "mm", {"a": draw(1, 131072), "b": draw(131072, 1)})
    subnormal = {"a": draw(1, 131072, exponents=(0, 0)), "b": draw(131072, 1)}
    yield Case("K = 131072, subnormal", "mm", subnormal)
    yield Case("many results", "mm", {"a": draw(26, 5), "b": draw(5, 25)})
    yield Case("batch of two", "bmm", {"a": draw(2, 3, 5), "b": draw(2, 5, 2)})
    for alpha, beta in [(1.0, 1.0), (0.3, 1.0), (1.0, 0.7), (0.3, 0.7)]:
        inputs = {"base": draw(3, 2), "a": draw(3, 5), "b": draw(5, 2)}
        yield Case(f"alpha {alpha}, beta {beta}", "addmm", inputs, {"alpha": alpha, "beta": beta})
    ignored = {"base": f32([[NAN]]), "a": draw(1, 3), "b": draw(3, 1)}
    yield Case("beta 0 leaves the base out", "addmm", ignored, {"alpha": 1.0, "beta": 0.0})
    batched = {"base": draw(2, 3, 2), "a": draw(2, 3, 5), "b": draw(2, 5, 2)}
    yield Case("batch", "baddbmm", batched, {"alpha": -1.7, "beta": 0.3})
    yield from convolution_cases(draw)


@dataclass(frozen=True)
class Layer:
    """Shapes of a convolution; numbers stand for all axes."""

    name: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0
    exponents: tuple[int, int] = EVERYDAY

    def arguments(self) -> dict[str, Any]:
        axes = len(self.x) - 2
        words = ("stride", "padding", "dilation", "output_padding")
        lists = {word: [getattr(self, word)] * axes for word in words}
        return {**lists, "groups": self.groups, "transposed": self.transposed}


LAYERS = [
    Layer("1-D", (2, 3, 9), (4, 3, 3), stride=2, padding=1),
    Layer("1-D, groups", (2, 4, 8), (6, 2, 2), groups=2, dilation=2),
    Layer("2-D", (2, 3, 5, 6), (4, 3, 3, 2), padding=1),
    Layer("2-D, magnitudes far apart", (2, 3, 4, 4), (2, 3, 3, 3), padding=1, exponents=WIDE),
    Layer("2-D, positions that no window reaches", (1, 2, 6, 6), (2, 2, 1, 1), stride=3),
    Layer("2-D, dilation", (1, 2, 7, 6), (3, 2, 2, 2), dilation=2, stride=2, padding=2),
    Layer("2-D, depthwise", (2, 3, 4, 4), (3, 1, 3, 3), padding=1, groups=3),
    Layer("2-D, no sample", (0, 2, 4, 4), (3, 2, 3, 3)),
    Layer("3-D", (1, 2, 3, 4, 3), (3, 2, 2, 2, 2), padding=1, stride=2),
    Layer("1-D, transposed", (2, 3, 4), (3, 2, 3), stride=2, transposed=True),
    Layer("2-D, transposed", (2, 2, 3, 3), (2, 3, 3, 2), stride=2, padding=1, transposed=True,
        output_padding=1),
    Layer("2-D, transposed, groups, dilation", (1, 4, 3, 3), (4, 2, 2, 2), groups=2, dilation=2,
        transposed=True),
    Layer("3-D, transposed", (1, 2, 2, 2, 3), (2, 2, 2, 2, 2), stride=2, transposed=True),
]  # fmt: skip


def convolution_cases(draw: Draw) -> Iterator[Case]:
    for layer in LAYERS:
        arguments = layer.arguments()
        geometry = Geometry(**arguments)
        x, w = draw(*layer.x, exponents=layer.exponents), draw(*layer.w, exponents=layer.exponents)
        sizes = geometry.image_size if layer.transposed else geometry.rows_size
        channels = layer.w[1] * layer.groups if layer.transposed else layer.w[0]
        grad = draw(
            layer.x[0], channels, *sizes(layer.x[2:], layer.w[2:]), exponents=layer.exponents
        )
        yield Case(layer.name, "convolution", {"x": x, "w": w, "bias": draw(channels)}, arguments)
        inputs = {"grad": grad, "x": x, "w": w}
        yield Case(layer.name, "convolution_backward", inputs, arguments)
    layer = Layer("", (2, 4, 3, 3), (4, 2, 2, 2), groups=2)
    x, w, grad = draw(*layer.x).array(), draw(*layer.w).array(), draw(2, 4, 2, 2).array()
    x[0, 0, 1, 1], grad[1, 3, 0, 0] = NAN, INF
    name = "a group of a sample that is not finite leaves the others"
    yield Case(name, "convolution", {"x": x, "w": w, "bias": None}, layer.arguments())
    inputs = {"grad": grad, "x": x, "w": w}
    yield Case(name, "convolution_backward", inputs, layer.arguments())


def sum_cases() -> Iterator[Case]:
    draw = Draw("sums")
    unit = 2.0**-50  # three values have 51 bits; 1 is the largest and cancels
    for name, row in {
        "tie to even, down to 0": [1.0, unit / 2, -1.0],
        "tie to even, up to 2 units": [1.0, 3 * unit / 2, -1.0],
        "just above a tie": [1.0, unit / 2 * (1 + 2.0**-23), -1.0],
        "negative tie": [1.0, -3 * unit / 2, -1.0],
        "result is a tie, to even below": [1.0, 2.0**-24],
        "result is a tie, to even above": [1 + 2.0**-23, 2.0**-24],
        "one value": [0.1],
        "one negative zero": [-0.0],
        "zeros": [-0.0, 0.0, -0.0],
        "none": [],
        "subnormal": [TINY, 2 * TINY, -7 * TINY],
        "rounds to infinity": [LARGE, 2.0**103],
        "rounds to the largest number": [LARGE, 2.0**102],
        "overflows": [-LARGE, -LARGE],
        "large values cancel": [LARGE, 1.0, -LARGE],
        "small values beside the largest": [LARGE, 2.0**60, -LARGE],
        "infinity": [INF, 1.0],
        "NaN": [NAN, 1.0],
    }.items():
        yield Case(name, "sum", {"x": f32(row)}, {"axes": None})
        yield Case(name, "mean", {"x": f32(row)}, {"axes": None})
    rows = draw(3, 4).array()
    rows[1, 2] = INF
    yield Case("a row that is not finite leaves the others", "sum", {"x": rows}, {"axes": [1]})
    for axes in ([0], [1], [2], [0, 2], [0, 1, 2]):
        yield Case(f"axes {axes}", "sum", {"x": draw(3, 4, 5, exponents=WIDE)}, {"axes": axes})
    yield Case("n = 513", "sum", {"x": draw(513, exponents=WIDE)}, {"axes": None})
    yield Case("n = 131072", "sum", {"x": draw(131072, exponents=WIDE)}, {"axes": None})
    yield Case("axis of size 0", "sum", {"x": np.zeros((2, 0, 3), np.float32)}, {"axes": [1]})
    yield Case("no slice", "sum", {"x": np.zeros((2, 0, 3), np.float32)}, {"axes": [0]})
    for correction in (0.0, 1.0, 3.0, 9.0):
        for operation in ("var", "std"):
            arguments = {"axes": [1], "correction": correction}
            yield Case(f"correction {correction}", operation, {"x": draw(2, 5)}, arguments)
    for order_ in (1.0, 2.0):
        arguments = {"axes": [1], "order": order_}
        yield Case(f"order {order_}", "vector_norm", {"x": draw(2, 6, exponents=WIDE)}, arguments)
    index = i64(2, 0, 2, 2, 0)
    for alpha in (1.0, 0.3):
        inputs = {"x": draw(4, 3), "index": index, "source": draw(5, 3, exponents=WIDE)}
        yield Case(f"repeated rows, alpha {alpha}", "index_add", inputs, {"alpha": alpha})
    inputs = {"x": f32([-0.0, -0.0, 1.0]), "index": i64(1), "source": f32([-0.0])}
    yield Case("a place where nothing is added gets + 0 too", "index_add", inputs, {"alpha": 1.0})
    inputs = {"x": draw(3, 2), "index": i64(1, 1), "source": f32([[1.0, NAN], [2.0, 3.0]])}
    yield Case("one value that is not finite makes all NaN", "index_add", inputs, {"alpha": 1.0})
    inputs = {"x": draw(3, 2), "index": i64(), "source": np.zeros((0, 2), np.float32)}
    yield Case("nothing to add", "index_add", inputs, {"alpha": 1.0})
    inputs = {"x": f32([0.0, 0.0]), "index": i64(0, 1), "source": f32([1.0, 2.0**-60])}
    yield Case("one scale for all places", "index_add", inputs, {"alpha": 1.0})
    for operation in ("put_accumulate", "scatter_add"):
        inputs = {"x": draw(4), "index": i64(3, 1, 3, 3, 0), "source": draw(5, exponents=WIDE)}
        yield Case("repeated places", operation, inputs)
    grad = draw(5, 2, exponents=WIDE).array()
    grad[1] = NAN
    inputs, arguments = (
        {"grad": grad, "index": i64(2, 1, 2, 0, 2)},
        {"num_weights": 4, "padding_idx": 1},
    )
    yield Case("padding takes no part", "embedding_backward", inputs, arguments)
    index = i64(2, 0, 2, 2, 2, 0, 1, 1).reshape(2, 4)
    for reduce in ("sum", "mean", "amax", "amin"):
        for include_self in (True, False):
            arguments = {"dim": 0, "reduce": reduce, "include_self": include_self}
            inputs = {"x": draw(4, 5), "index": index, "source": draw(2, 4)}
            yield Case(f"rows, {reduce}, {include_self}", "scatter_reduce", inputs, arguments)
            inputs = {"x": draw(4, 5), "index": index, "source": draw(3, 4, exponents=WIDE)}
            name = f"a larger source, magnitudes far apart, {reduce}, {include_self}"
            yield Case(name, "scatter_reduce", inputs, arguments)
            inputs = {
                "x": f32([-0.0, -0.0, 0.0, NAN, 1.0, -0.0]),
                "index": i64(0, 0, 2, 3, 4, 4),
                "source": f32([-0.0, -0.0, -0.0, 2.0, NAN, INF]),
            }
            name = f"zeros, NaN and places that are not named, {reduce}, {include_self}"
            yield Case(name, "scatter_reduce", inputs, arguments)
            inputs = {"x": draw(2, 3), "index": i64().reshape(0, 3), "source": draw(0, 3)}
            yield Case(f"nothing, {reduce}, {include_self}", "scatter_reduce", inputs, arguments)


def vector_norm_cases() -> Iterator[Case]:
    rows = {
        "finite": [1.5, -2.0, 0.25],
        "a square overflows": [1e20, 1.0, -3.0],
        "all squares overflow": [LARGE, -LARGE, 1e30],
        "the largest square that does not": [2.0**63, 1.0, 0.0],
        "magnitudes overflow together": [LARGE, LARGE, 0.0],
        "an infinity": [INF, 1.0, 0.0],
        "infinities of both signs": [INF, -INF, 2.0],
        "NaN beside an infinity": [NAN, INF, 1.0],
        "NaN": [NAN, 1.0, 2.0],
        "zeros": [0.0, -0.0, -0.0],
        "squares underflow": [TINY, NORMAL, -TINY],
    }
    for order_ in (1.0, 2.0):
        for name, row in rows.items():
            arguments = {"axes": None, "order": order_}
            yield Case(f"{name}, order {order_}", "vector_norm", {"x": f32(row)}, arguments)
        arguments = {"axes": [1], "order": order_}
        yield Case(
            f"rows apart, order {order_}", "vector_norm", {"x": f32([*rows.values()])}, arguments
        )


def norm_cases() -> Iterator[Case]:
    draw = Draw("norms")

    def batch_norm(
        name: str, *shape: int, x: Any = None, training: bool = True, **options: float
    ) -> Case:
        num_c = shape[1]
        stats = {"running_mean": draw(num_c), "running_var": np.abs(draw(num_c).array())}
        inputs = {"x": draw(*shape) if x is None else x, "w": draw(num_c), "b": draw(num_c)}
        inputs |= stats | {"dy": draw(*shape)}
        arguments = {"training": training, "momentum": 0.1, "eps": 1e-5} | options
        return Case(name, "batch_norm", inputs, arguments)

    yield batch_norm("rows", 6, 3)
    yield batch_norm("images", 2, 3, 2, 2)
    yield batch_norm("momentum 0.3, eps 0.1", 3, 2, 4, momentum=0.3, eps=0.1)
    yield batch_norm("evaluation", 3, 2, 4, training=False)
    yield batch_norm("equal values", 4, 1, x=np.full((4, 1), 0.1, np.float32))
    yield batch_norm(
        "squares underflow", 4, 1, x=f32([[TINY], [-TINY], [0.0], [NORMAL]]), eps=1e-30
    )
    yield batch_norm("squares overflow", 4, 1, x=f32([[LARGE], [-LARGE], [1.0], [0.0]]))
    yield batch_norm("a channel with an infinity", 2, 2, x=f32([[INF, 1.0], [1.0, 2.0]]))
    yield batch_norm("far from zero", 3, 1, x=f32([[16777216.0], [16777218.0], [16777220.0]]))
    for rows, width in [(3, 5), (1, 1), (2, 17), (0, 3)]:
        inputs = {
            "x": draw(rows, width),
            "w": draw(width),
            "b": draw(width),
            "dy": draw(rows, width),
        }
        yield Case(f"{rows} rows of {width}", "layer_norm", inputs, {"eps": 1e-5})
    x = f32([[TINY, 0.0], [-0.0, 0.0], [LARGE, LARGE], [NAN, 1.0], [1.0, 2.0]])
    inputs = {"x": x, "w": f32([1.0, -1.0]), "b": f32([0.0, 0.0]), "dy": draw(5, 2)}
    yield Case("edges", "layer_norm", inputs, {"eps": 1e-5})
    inputs = {"x": draw(2, 6, 3), "w": draw(6), "b": draw(6), "dy": draw(2, 6, 3)}
    for groups in (1, 2, 6):
        yield Case(f"{groups} groups", "group_norm", inputs, {"groups": groups, "eps": 1e-5})


def softmax_cases() -> Iterator[Case]:
    draw = Draw("softmax")
    edges = f32([
        [0.0, -0.0, 0.0], [1.0, INF, 0.0], [-INF, -INF, -INF], [-INF, 1.0, 2.0], [NAN, 1.0, 2.0],
        [LARGE, -LARGE, 0.0], [100.0, 0.0, -5.0], [TINY, 0.0, -TINY], [-87.5, 15.5, 0.0],
    ])  # fmt: skip
    for operation in ("softmax", "log_softmax"):
        for axis in (0, 1, 2):
            inputs = {"x": draw(2, 3, 4), "dy": draw(2, 3, 4)}
            yield Case(f"axis {axis}", operation, inputs, {"axis": axis})
        yield Case("rows of one", operation, {"x": draw(3, 1), "dy": draw(3, 1)}, {"axis": 1})
        yield Case("edges", operation, {"x": edges, "dy": draw(9, 3)}, {"axis": 1})
        yield Case("no row", operation, {"x": draw(0, 3), "dy": draw(0, 3)}, {"axis": 1})
        wide = {"x": draw(2, 40), "dy": draw(2, 40, exponents=WIDE)}
        yield Case("magnitudes far apart", operation, wide, {"axis": 1})
    for operation in ("safe_softmax", "logsumexp"):
        yield Case("edges", operation, {"x": edges}, {"axis": 1})
        yield Case("rows", operation, {"x": draw(3, 7)}, {"axis": 1})


def loss_cases() -> Iterator[Case]:
    draw = Draw("losses")
    elements = [("mse_loss", {}), ("smooth_l1_loss", {"beta": 0.3}), ("huber_loss", {"delta": 0.7})]
    elements += [("smooth_l1_loss", {"beta": 0.0})]
    for operation, options in elements:
        for reduction in ("none", "mean", "sum"):
            grad = draw(3, 2) if reduction == "none" else draw()
            inputs = {"x": draw(3, 2), "t": draw(3, 2), "grad": grad}
            name = ", ".join([reduction, *(f"{key} {value}" for key, value in options.items())])
            yield Case(name, operation, inputs, {"reduction": reduction} | options)
        x, t = f32(EDGES), f32([1.0] * 7 + [0.0] * 7)
        inputs = {"x": x, "t": t, "grad": np.full(len(EDGES), 0.1, np.float32)}
        yield Case("edges", operation, inputs, {"reduction": "none"} | options)
        for reduction in ("none", "mean", "sum"):
            grad = draw(0) if reduction == "none" else draw()
            inputs = {"x": draw(0), "t": draw(0), "grad": grad}
            yield Case(
                f"no value, {reduction}", operation, inputs, {"reduction": reduction} | options
            )
    bounds = {"x": f32([0.3, -0.3, 0.7, -0.7]), "t": f32([0.0] * 4), "grad": f32([1.0] * 4)}
    yield Case("at the bound", "smooth_l1_loss", bounds, {"reduction": "none", "beta": 0.3})
    yield Case("at the bound", "huber_loss", bounds, {"reduction": "none", "delta": 0.7})
    classes, ignored = i64(2, 0, 1, 1), {"ignore_index": -100}
    for reduction in ("none", "mean", "sum"):
        grad = draw(4) if reduction == "none" else draw()
        for name, weight in (("", None), (", weights, one of them 0", f32([0.3, 0.0, 1.7]))):
            inputs = {"x": draw(4, 3), "classes": classes, "weight": weight, "grad": grad}
            yield Case(reduction + name, "nll_loss", inputs, {"reduction": reduction} | ignored)
    x = f32([[-INF, -0.1], [-0.3, -INF], [-1.0, -2.0]])
    inputs = {"x": x, "classes": i64(0, 0, -100), "weight": None, "grad": draw()}
    yield Case("ignored; an infinite score", "nll_loss", inputs, {"reduction": "mean"} | ignored)
    inputs = {"x": x, "classes": i64(1, 1, 1), "weight": None, "grad": draw()}
    yield Case("all ignored", "nll_loss", inputs, {"reduction": "mean", "ignore_index": 1})
    inputs = {"x": draw(0, 3), "classes": i64(), "weight": None, "grad": draw()}
    yield Case("no position", "nll_loss", inputs, {"reduction": "mean"} | ignored)
    image = {"x": draw(2, 3, 2, 2), "classes": i64(0, 1, 2, 0, 5, 1, 1, 2).reshape(2, 2, 2)}
    image |= {"weight": draw(3, exponents=(126, 128)), "grad": draw()}
    yield Case("images", "nll_loss", image, {"reduction": "mean", "ignore_index": 5})
    operation = "binary_cross_entropy_with_logits"
    for weight, positive in [(None, None), (draw(3), None), (None, draw(2)), (draw(1, 2), draw(2))]:
        weight = None if weight is None else weight if len(weight.shape) == 2 else draw(3, 2)
        inputs = {"x": draw(3, 2), "t": np.abs(draw(3, 2, exponents=(120, 125)).array())}
        inputs |= {"weight": weight, "pos_weight": positive}
        name = f"weight {weight is not None}, pos_weight {positive is not None}"
        yield Case(name, operation, inputs, {"reduction": "mean"})
    inputs = {"x": f32(EDGES), "t": f32([0.0, 1.0] * 7), "weight": None, "pos_weight": None}
    yield Case("edges", operation, inputs, {"reduction": "none"})
    inputs = {"x": f32([0.0, -0.0, 0.0, 2.0, 0.0]), "y": f32([0.0, INF, NAN, 3.0, -1.0])}
    yield Case("zeros and NaN", "xlogy", inputs)


def pointwise_cases() -> Iterator[Case]:
    draw = Draw("pointwise")
    # one rounding where two are defined gives other bits
    a, b = (
        f32([1 + 2.0**-12, 1 + 2.0**-23, 0.1, LARGE]),
        f32([1 + 2.0**-12, 1 - 2.0**-24, 0.1, 2.0]),
    )
    x = f32([-1.0, -1.0, -0.01, -LARGE])
    for value in (1.0, -0.3):
        for operation in ("addcmul", "addcdiv"):
            inputs = {"x": x, "a": a, "b": b}
            yield Case(f"fusing shows, value {value}", operation, inputs, {"value": value})
            inputs = {name: draw(9) for name in ("x", "a", "b")}
            yield Case(f"value {value}", operation, inputs, {"value": value})
    for operation in ("add_alpha", "sub_alpha"):
        yield Case("fusing shows", operation, {"x": x, "y": a}, {"alpha": 1 + 2.0**-12})
        zeros = {"x": f32([0.0, 0.0, -0.0, -0.0, 1.0]), "y": f32([0.0, -0.0, 0.0, -0.0, -1.0])}
        yield Case("signed zeros", operation, zeros, {"alpha": 1.0})
        inputs = {"x": f32(EDGES), "y": f32(EDGES[::-1])}
        yield Case("edges", operation, inputs, {"alpha": -0.3})
    for weight in (0.1, 0.5, 0.9):
        inputs = {"start": draw(9), "end": draw(9)}
        yield Case(f"weight {weight}", "lerp", inputs, {"weight": weight})
    edges = f32(EDGES)
    everyday = draw(9)
    for exponent in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, -0.5, -1.0, -1.5, -2.0, -3.0):
        for name, values in (("values", np.abs(everyday.array())), ("edges", edges)):
            yield Case(
                f"{name}, exponent {exponent}", "power", {"x": values}, {"exponent": exponent}
            )
    yield Case("values", "div_trunc", {"x": draw(9), "y": draw(9, exponents=(118, 122))})
    signs = f32(
        [-9.0, -3.0, -2.9999998, -0.5, -0.0, 0.0, 0.5, 2.9999998, 3.0, 25.0, INF, -INF, NAN]
    )
    grad = draw(signs.size)
    for operation in ("softplus", "softplus_backward"):
        for beta, threshold in [(1.0, 20.0), (0.3, 0.9)]:
            inputs = {"x": signs} if operation == "softplus" else {"grad": grad, "x": signs}
            arguments = {"beta": beta, "threshold": threshold}
            yield Case(f"beta {beta}", operation, inputs, arguments)
    for operation in ("log_sigmoid", "hardswish", "hardsigmoid"):
        yield Case("values", operation, {"x": signs})
        yield Case("values", f"{operation}_backward", {"grad": grad, "x": signs})
    inside = f32([-1.0, -0.7, -0.0, 0.0, 0.3, 1.0, NAN])
    for operation in ("tanh_backward", "sigmoid_backward"):
        yield Case("values", operation, {"grad": draw(7), "y": inside})
    options = {"alpha": 0.7, "scale": 1.1, "input_scale": 0.9}
    yield Case("values", "elu", {"x": signs}, options)
    for is_result in (False, True):
        arguments = options | {"is_result": is_result}
        yield Case(f"is_result {is_result}", "elu_backward", {"grad": grad, "x": signs}, arguments)
    yield Case("values", "prelu", {"x": signs, "weight": draw(13), "grad": grad})
    yield Case("values", "glu", {"x": draw(2, 6)})
    yield Case("values", "glu_backward", {"grad": draw(2, 3), "x": draw(2, 6)})


def optimiser_cases() -> Iterator[Case]:
    draw = Draw("optimisers")
    plain = {
        "lr": 0.05,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
    }
    for name, options in {
        "plain": {}, "weight decay": {"weight_decay": 0.01}, "maximize": {"maximize": True},
        "momentum": {"momentum": 0.9}, "dampening": {"momentum": 0.9, "dampening": 0.3},
        "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    }.items():  # fmt: skip
        inputs = {"param": draw(6), "grads": draw(3, 6)}
        yield Case(f"{name}, 3 steps", "sgd", inputs, plain | options)
    plain = {
        "lr": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decoupled": False,
        "maximize": False,
        "amsgrad": False,
    }
    for name, options in {
        "Adam": {}, "Adam, weight decay": {"weight_decay": 0.01},
        "Adam, amsgrad": {"amsgrad": True},
        "AdamW": {"decoupled": True, "weight_decay": 0.01}, "Adam, maximize": {"maximize": True},
        "AdamW, other numbers": {"decoupled": True, "weight_decay": 0.3, "lr": 0.1, "beta1": 0.5,
            "beta2": 0.75, "eps": 0.1},
    }.items():  # fmt: skip
        inputs = {"param": draw(6), "grads": draw(5, 6, exponents=WIDE)}
        yield Case(f"{name}, 5 steps", "adam", inputs, plain | options)
    grads = f32([[0.0, -0.0, TINY, LARGE, -LARGE], [0.0, 0.0, -TINY, 0.0, LARGE]])
    yield Case("Adam, edges, 2 steps", "adam", {"param": draw(5), "grads": grads}, plain)


def pooling_cases() -> Iterator[Case]:
    draw = Draw("pooling")
    for kernel, stride, padding in [(2, 2, 0), (3, 1, 0), (3, 2, 1), (2, 3, 0)]:
        arguments = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2}
        size = [(n + 2 * padding - kernel) // stride + 1 for n in (6, 5)]
        name = f"kernel {kernel}, stride {stride}, padding {padding}"
        yield Case(name, "avg_pool2d", {"x": draw(2, 6, 5), "dy": draw(2, *size)}, arguments)
    overlapping = i64(5, 5, 5, 10, 10, 11, 5, 15, 15).reshape(1, 3, 3)
    for indices, size, kernel, stride in [
        (overlapping, [4, 4], 2, 1), (i64(1, 2, 8, 15).reshape(1, 2, 2), [4, 4], 2, 2),
    ]:  # fmt: skip
        dy = draw(*indices.shape)
        arguments = {"size": size, "kernel": [kernel] * 2, "stride": [stride] * 2}
        inputs = {"dy": dy, "indices": indices}
        yield Case(f"kernel {kernel}, stride {stride}", "max_pool2d_backward", inputs, arguments)
    for stride, padding, size in [(1, 1, (6, 5)), (2, 0, (2, 2)), (3, 1, (2, 2))]:
        arguments = {"kernel": [3, 3], "stride": [stride] * 2, "padding": [padding] * 2}
        inputs = {"x": draw(3, 6, 5, exponents=WIDE), "dy": draw(3, *size, exponents=WIDE)}
        yield Case(f"magnitudes far apart, stride {stride}", "avg_pool2d", inputs, arguments)
    arguments = {"size": [4, 4], "kernel": [2, 2], "stride": [1, 1]}
    inputs = {"dy": draw(1, 3, 3, exponents=WIDE), "indices": overlapping}
    yield Case("magnitudes far apart, stride 1", "max_pool2d_backward", inputs, arguments)


def open_cases() -> Iterator[Case]:
    draw = Draw("open results")
    zeros = f32([0.0, -0.0] * 10 + [1.0, -1.0, NAN, 0.0])
    others = f32([-0.0, 0.0] * 10 + [-0.0, -0.0, 1.0, NAN])
    for operation in ("maximum", "minimum"):
        yield Case("zeros and NaN", operation, {"x": zeros, "y": others})
    rows = f32([[-0.0] * 9, [-0.0, 0.0, -0.0] * 3, [-1.0, -0.0, -2.0] * 3, [1.0, NAN, -1.0] * 3])
    for operation in ("amax", "amin"):
        yield Case("zeros and NaN", operation, {"x": rows}, {"axis": 1})
    for low, high in [(0.0, 6.0), (-0.0, 6.0), (-1.0, 0.0), (-1.0, -0.0)]:
        yield Case(f"{low} to {high}", "clamp", {"x": zeros}, {"low": low, "high": high})
    yield Case("zeros and NaN", "relu", {"x": zeros})
    yield Case("zeros and NaN", "sign", {"x": zeros})
    row = f32([1.0, 0.0, NAN, -0.0, 1.0, -INF, 0.0, INF, NAN, -1.0])
    for descending in (False, True):
        yield Case(f"descending {descending}", "sort", {"x": row}, {"descending": descending})
        yield Case(f"largest {descending}", "topk", {"x": row}, {"k": 5, "largest": descending})
    yield Case("the first of equal values", "argmax", {"x": f32([0.0, 3.0, -0.0, 3.0])})
    yield Case("the first NaN", "argmax", {"x": f32([0.0, NAN, 3.0, NAN])})
    inputs = {"x": draw(4), "index": i64(2, 0, 2, 3, 2), "values": draw(5)}
    yield Case("the last value stays", "put_last", inputs)
    x = f32([-1.0, -0.9999999, 0.0, 1.0, 0.9999999, NAN, INF])
    inputs, arguments = {"grad": draw(7), "x": x}, {"low": -1.0, "high": 1.0}
    yield Case("at the bounds and at NaN", "hardtanh_backward", inputs, arguments)
    for start, end, steps in [(0.0, 1.0, 11), (-0.3, 0.7, 8), (5.0, -2.0, 1), (1.0, 1.0, 0)]:
        arguments = {"start": start, "end": end, "steps": steps}
        yield Case(f"{start} to {end}, {steps} steps", "linspace", {}, arguments)


@dataclass(frozen=True)
class Chapter:
    """A file: the numerics it is for, the definitions, the cases."""

    operations: dict[str, Callable[..., Outputs]]
    cases: Callable[[], Iterator[Case]]
    numerics: str = "exact"


CHAPTERS = {
    "contraction": Chapter(
        contractions(contraction_bits), lambda: contraction_cases("contraction", contraction_bits)
    ),
    "contraction14": Chapter(
        contractions(narrow_bits),
        lambda: contraction_cases("contraction14", narrow_bits),
        "exact14",
    ),
    "sums": Chapter(SUMS, sum_cases),
    "vector_norms": Chapter(SUMS, vector_norm_cases),
    "norms": Chapter(NORMS, norm_cases),
    "softmax": Chapter(SOFTMAX, softmax_cases),
    "losses": Chapter(LOSSES, loss_cases),
    "pointwise": Chapter(POINTWISE, pointwise_cases),
    "optimisers": Chapter(OPTIMISERS, optimiser_cases),
    "pooling": Chapter(POOLING, pooling_cases),
    "open_results": Chapter(OPEN, open_cases),
}


def _array(x: np.ndarray | Stream | None) -> np.ndarray | None:
    return x.array() if isinstance(x, Stream) else x


def _case(case: Case, operations: dict[str, Callable[..., Outputs]]) -> dict[str, Any]:
    arrays = {name: _array(x) for name, x in case.inputs.items()}
    outputs = operations[case.operation](**arrays, **case.arguments)
    return {
        "name": case.name,
        "operation": case.operation,
        "inputs": {name: encode(x) for name, x in case.inputs.items()},
        "arguments": case.arguments,
        "outputs": {name: encode(x) for name, x in outputs.items()},
    }


def text(name: str) -> str:
    """The file of a chapter."""
    chapter = CHAPTERS[name]
    cases = [json.dumps(_case(case, chapter.operations)) for case in chapter.cases()]
    head = json.dumps({"numerics": chapter.numerics, "version": 2})[1:-1]
    return "{" + head + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n"


def write_vectors(folder: Path) -> None:
    """Write every chapter's file."""
    for name in CHAPTERS:
        (folder / f"{name}.json").write_text(text(name))
