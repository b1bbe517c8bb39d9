"""A Triton kernel from a function of torch operations: one line of source for each operation.

So the elementary functions are written once, in `elementary`, and their kernels cannot drift from it.
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

from veritrain.numerics.elementary_kernels import NAN, UNDECIDED

_INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.and_: "&", operator.lshift: "<<", operator.rshift: ">>",
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
_TYPES = {torch.int64: "tl.int64", torch.float64: "tl.float64"}

_HEAD = """def {name}_kernel(x_ptr, out_ptr, undecided_ptr, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    {x} = tl.load(x_ptr + i, mask=inside, other=1.0).to(tl.float64)
"""
_TAIL = f"""
    low, high = {{low}}.to(tl.float32), {{high}}.to(tl.float32)
    bits = low.to(tl.int32, bitcast=True)
    low, high = low.to(tl.float64), high.to(tl.float64)
    failed = tl.where(low != low, tl.full([BLOCK], {NAN}, tl.int32), tl.full([BLOCK], {UNDECIDED}, tl.int32))
    bits = tl.where(low == high, bits, failed)
    tl.store(out_ptr + i, bits, mask=inside)
    undecided = tl.where(inside & (bits == {UNDECIDED}), tl.full([BLOCK], 1, tl.int64), tl.full([BLOCK], 0, tl.int64))
    tl.atomic_add(undecided_ptr, tl.sum(undecided, 0))
"""


def kernel(name: str, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
    """The kernel that applies `function`, which gives an interval, to float32 values."""
    text = source(name, function)
    place = f"<veritrain kernel {name}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    space: dict[str, Any] = {"tl": tl, "__name__": __name__}
    exec(compile(text, place, "exec"), space)  # noqa: S102 - written above
    return triton.jit(space[f"{name}_kernel"])


def source(name: str, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> str:
    """Python source of the kernel."""
    graph = fx.symbolic_trace(function).graph
    lines: list[str] = []
    tail = ""
    for node in graph.nodes:
        if node.op == "placeholder":
            lines.append(_HEAD.format(name=name, x=node.name))
        elif node.op == "output":
            low, high = node.args[0]
            tail = _TAIL.format(low=low.name, high=high.name)
        else:
            lines.append(f"    {node.name} = {_expression(node)}")
    return "\n".join(lines) + tail


def _expression(node: fx.Node) -> str:
    target: Any = node.target
    first: Any = node.args[0]
    if target in (operator.lshift, operator.rshift):
        return f"{_value(first)} {_INFIX[target]} {node.args[1]}"
    if target in _INFIX:
        like = next(value for value in node.args if isinstance(value, fx.Node))
        left, right = (_value(value, like) for value in node.args)
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
    if node.op == "call_method" and target == "double":
        return f"{_value(first)}.to(tl.float64)"
    if node.op == "call_method" and target == "view":
        dtype: Any = node.args[1]
        return f"{_value(first)}.to({_TYPES[dtype]}, bitcast=True)"
    raise NotImplementedError(f"{node.format_node()} has no line of Triton")


def _value(value: Any, like: fx.Node | None = None) -> str:
    """A name, or a constant in full width: Triton makes a bare float one of float32."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, int):
        return f"tl.full([BLOCK], {value}, tl.int64)"
    return f"tl.full([BLOCK], float({str(float(value))!r}), tl.float64)"
