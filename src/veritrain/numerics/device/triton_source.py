"""A Triton kernel from a function of torch operations: one line of source for each operation.

So elementary functions and optimisers are written once, in torch operations, and their kernels
cannot drift from them.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import linecache
import operator
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer, Proxy

from veritrain.numerics.cpu.elementary_constants import NAN, UNDECIDED

_INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.and_: "&", operator.lshift: "<<", operator.rshift: ">>",
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
_TYPES = {torch.int64: "tl.int64", torch.float64: "tl.float64", torch.float32: "tl.float32"}

_HEAD = """def {name}_kernel(x_ptr, out_ptr, undecided_ptr, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    {x} = tl.load(x_ptr + i, mask=inside, other=1.0).to(tl.float64)
"""
_TAIL = f"""
    low, high = {{low}}.to(tl.float32), {{high}}.to(tl.float32)
    bits = low.to(tl.int32, bitcast=True)
    low, high = low.to(tl.float64), high.to(tl.float64)
    nan = tl.full([BLOCK], {NAN}, tl.int32)
    failed = tl.where(low != low, nan, tl.full([BLOCK], {UNDECIDED}, tl.int32))
    bits = tl.where(low == high, bits, failed)
    tl.store(out_ptr + i, bits, mask=inside)
    one, zero = tl.full([BLOCK], 1, tl.int64), tl.full([BLOCK], 0, tl.int64)
    undecided = tl.where(inside & (bits == {UNDECIDED}), one, zero)
    tl.atomic_add(undecided_ptr, tl.sum(undecided, 0))
"""


def kernel(name: str, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
    """The kernel that applies `function`, which gives an interval, to float32 values."""
    (x,), lines, (low, high) = _traced(function, 1, torch.float64)
    text = _HEAD.format(name=name, x=x) + lines + _TAIL.format(low=low, high=high)
    return _compiled(f"{name}_kernel", text)


def elementwise(
    function: Callable[..., tuple[Tensor, ...]], tensors: int, scalars: int, count: int
) -> Any:
    """The kernel of the first `count` results of a function of float32 tensors, then scalars."""
    names, lines, results = _traced(function, tensors + scalars, torch.float32)
    pointers = [f"{name}_ptr" for name in names[:tensors]]
    outputs = [f"out{i}_ptr" for i in range(count)]
    arguments = ", ".join([*pointers, *outputs, *names[tensors:]])
    text = f"def elementwise_kernel({arguments}, count, BLOCK: tl.constexpr):\n"
    text += "    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)\n"
    for name, pointer in zip(names, pointers, strict=False):
        text += f"    {name} = tl.load({pointer} + i, mask=i < count, other=1.0)\n"
    text += lines
    for pointer, result in zip(outputs, results, strict=False):
        text += f"    tl.store({pointer} + i, {result}, mask=i < count)\n"
    return _compiled("elementwise_kernel", text)


def _traced(
    function: Callable[..., tuple[Tensor, ...]], count: int, dtype: torch.dtype
) -> tuple[list[str], str, list[str]]:
    """Names of the `count` arguments, lines of source, names of the results."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    arguments = [Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(count)]
    results: Any = function(*arguments)
    types = {argument.node: dtype for argument in arguments}
    lines = ""
    for node in list(graph.nodes)[count:]:
        types[node] = _type(node, types)
        lines += f"    {node.name} = {_expression(node, types[node])}\n"
    return [a.node.name for a in arguments], lines, [result.node.name for result in results]


def _type(node: fx.Node, types: dict[fx.Node, torch.dtype]) -> torch.dtype:
    """Of a node's result; the comparisons' does not matter."""
    if node.op == "call_method" and node.target in ("double", "float"):
        return {"double": torch.float64, "float": torch.float32}[str(node.target)]
    if node.op == "call_method" and node.target == "view":
        dtype: Any = node.args[1]
        return dtype
    found = [types[value] for value in node.args if isinstance(value, fx.Node)]
    return found[-1]  # of `where`, a choice, not the condition


def _compiled(name: str, text: str) -> Any:
    """The kernel `name` of a source that Triton can find again."""
    place = f"<veritrain {name} {hash(text):x}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    space: dict[str, Any] = {"tl": tl, "__name__": __name__}
    exec(compile(text, place, "exec"), space)  # noqa: S102 - written above
    return triton.jit(space[name])


def _expression(node: fx.Node, dtype: torch.dtype) -> str:
    target: Any = node.target
    first: Any = node.args[0]
    if target in (operator.lshift, operator.rshift):
        return f"{_value(first)} {_INFIX[target]} {node.args[1]}"
    if target in _INFIX:
        left, right = (_value(value) for value in node.args)
        if target is operator.truediv and dtype == torch.float32:
            return f"tl.div_rn({left}, {right})"
        return f"{left} {_INFIX[target]} {right}"
    if target is operator.neg:
        return f"-{_value(first)}"
    if target is torch.where:
        return f"tl.where({', '.join(_value(value) for value in node.args)})"
    if target is torch.sqrt:
        return f"tl.sqrt({_value(first)})"
    if target in (torch.full_like, torch.ones_like, torch.zeros_like):
        fill = {torch.ones_like: 1.0, torch.zeros_like: 0.0}.get(target)
        return _value(node.args[1] if fill is None else fill)
    if node.op == "call_method" and target == "abs":
        return f"tl.abs({_value(first)})"
    if node.op == "call_method" and target in ("double", "float"):
        return f"{_value(first)}.to({_TYPES[dtype]})"
    if node.op == "call_method" and target == "view":
        return f"{_value(first)}.to({_TYPES[dtype]}, bitcast=True)"
    raise NotImplementedError(f"{node.format_node()} has no line of Triton")


def _value(value: Any) -> str:
    """A name, or a constant in full width: Triton makes a bare float one of float32."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, int):
        return f"tl.full([BLOCK], {value}, tl.int64)"
    return f"tl.full([BLOCK], float({str(float(value))!r}), tl.float64)"
