"""The dispatch mode: sees every ATen operator below autograd and computes it by its rule.

It only dispatches. What an operator means is in `rules`; nothing is passed through by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.jit._trace import is_tracing

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.keys import generators
from veritrain.numerics.keys.stream import KeyStream
from veritrain.numerics.platform.devices import CPU
from veritrain.numerics.platform.operator_mode import OperatorMode
from veritrain.numerics.platform.overlap import read_before_writing, written
from veritrain.numerics.rules import Kind, Rule, lookup, random_operator, short_name

_cached_lookup: Callable[[OpOverload], Rule] = cache(lookup)
_cached_random: Callable[[OpOverload], OpOverload | None] = cache(random_operator)


class ExactMode(OperatorMode):
    """Computes every operator by its `exact` rule; random operators draw from `stream`, or from a
    generator that the job seeded.

    Args:
        device: where tensors may lie besides the CPU.

    Raises (from any operator run under it):
        UnsupportedOperatorError: an operator without a rule, a dtype, layout or device without one.
    """

    supports_higher_order_operators = True  # they arrive here, and are refused by name

    stream: KeyStream  # where random operators take their keys; set before the first of them

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__()
        self._device = device

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `OperatorMode`. What `compute` gets has neither list forms, composites nor
        generators."""
        if func.namespace == "aten" and short_name(func).startswith("_foreach_"):
            return self._foreach(func, args, kwargs)
        if _is_composite(func):  # inference mode leaves composite operators whole
            with self:
                return func.decompose(*args, **kwargs)
        if (drawing := _cached_random(func)) is not None:
            args, kwargs, generator = _without_generator(args, kwargs)
            with generators.keys_of(generator):
                return self.compute(drawing, args, kwargs)
        return self.compute(func, args, kwargs)

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operator by its rule."""
        refuse_recording(func)
        rule = _cached_lookup(func)
        values = (*args, *kwargs.values())
        _refuse_foreign(func, rule.kind, values, self._device)
        if written(func):
            args, kwargs = read_before_writing(func, args, kwargs)
        if rule.takes_stream:
            args = (generators.stream_for_operator(self.stream), *args)
        if self._device.type == "cpu":
            return rule.function(*args, **kwargs)
        with _home(values):  # new tensors of a rule lie where its operands lie
            return rule.function(*args, **kwargs)

    def _foreach(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`_foreach_f(xs, ...)` is f(x, ...) for each x; lists run along with it."""
        name = short_name(func).removeprefix("_foreach_")
        single = _single(name, args)
        if name.rstrip("_") in ("addcmul", "addcdiv") and len(args) > 3:  # alone, it goes by name
            values = args[3].tolist() if isinstance(args[3], Tensor) else args[3]
            args = args[:3]
            kwargs = {"value": values, **kwargs}
        lists = [value for value in (*args, *kwargs.values()) if isinstance(value, (list, tuple))]
        results: list[Any] = []
        with self:
            for i in range(len(lists[0])):
                one = [_at(value, i) for value in args]
                results.append(
                    single(*one, **{key: _at(value, i) for key, value in kwargs.items()})
                )
        return None if name.endswith("_") else results


_modes_below = torch._C._len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
_mode_below: Callable[[Any], object] = torch._C._get_dispatch_mode  # pyright: ignore
_KEYS: Any = torch._C._TorchDispatchModeKey  # pyright: ignore[reportPrivateUsage]


def refuse_recording(func: OpOverload) -> None:
    """Recorders would see the inside of a rule, and not all of it.

    Raises:
        UnsupportedOperatorError: `torch.jit.trace`, `make_fx` or the like is at work.
    """
    if is_tracing():
        raise UnsupportedOperatorError(
            "torch.jit.trace inside a step: use the model itself, or torch.jit.script"
        )
    if not _modes_below():
        return
    modes = [_mode_below(key) for key in (_KEYS.PROXY, _KEYS.FAKE, _KEYS.FUNCTIONAL)]
    if any(mode is not None for mode in modes):
        raise UnsupportedOperatorError(
            f"operator {func} recorded by make_fx or FakeTensorMode inside a step: use the model"
            " itself, or record it before"
        )


@cache
def _is_composite(func: OpOverload) -> bool:
    """It has no rule and is made of operators that may have one."""
    if not isinstance(func, OpOverload):  # a higher-order one: torch.cond, flex_attention
        raise UnsupportedOperatorError(
            f"operator {func} has no rule under exact numerics; write it with ordinary operators"
        )
    try:
        lookup(func)
    except UnsupportedOperatorError:
        return func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
    return False


def _without_generator(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.Generator | None]:
    """The arguments of a random operator without the CPU generator that they hold, and the
    generator."""
    found = [value for value in (*args, *kwargs.values()) if _is_generator(value)]
    args = tuple(None if _is_generator(value) else value for value in args)
    kwargs = {name: value for name, value in kwargs.items() if not _is_generator(value)}
    return args, kwargs, found[0] if found else None


def _is_generator(value: Any) -> bool:
    return isinstance(value, torch.Generator) and value.device.type == "cpu"


def _at(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, (list, tuple)) else value


def _single(name: str, args: Sequence[Any]) -> Callable[..., Any]:
    """The operator on one tensor of which `_foreach_<name>` is the list form."""
    if name == "norm":
        return torch.ops.aten.linalg_vector_norm
    base = name.rstrip("_")
    bound = {"maximum": "clamp_min", "minimum": "clamp_max"}.get(base)
    if bound is not None and not isinstance(_at(args[1], 0), Tensor):
        name = name.replace(base, bound)
    if hasattr(torch.ops.aten, name):
        return getattr(torch.ops.aten, name)
    functional = getattr(torch.ops.aten, name.removesuffix("_"))

    def in_place(x: Tensor, other: Tensor) -> Tensor:  # maximum and minimum
        return x.copy_(functional(x, other))

    return in_place


_NARROW = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < 4  # bytes
)


def _home(values: Sequence[Any]) -> torch.device:
    """Where an operator computes: outside the CPU's memory if an operand lies there."""
    return next((device for device in _devices(values) if device.type != "cpu"), CPU)


def _devices(values: Sequence[Any]) -> Iterator[torch.device]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device
        elif isinstance(value, torch.device):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _devices(value)


def _refuse_foreign(
    func: OpOverload, kind: Kind, values: Sequence[Any], device: torch.device
) -> None:
    """Only dense tensors of real numbers have definitions, on the CPU or the device of the step,
    and only generators on the CPU.

    Narrow types may be moved and cast; arithmetic on them is not defined.
    """
    for value in values:
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise UnsupportedOperatorError(
                    f"operator {func} on a {value.layout} tensor: exact numerics covers dense"
                    " tensors"
                )
            _require_place(func, value.device, device)
            if value.is_complex():
                raise UnsupportedOperatorError(
                    f"operator {func} on {value.dtype}: exact numerics covers real numbers; compute"
                    " with real and imaginary parts"
                )
            if kind is not Kind.MOVEMENT and value.dtype in _NARROW:
                raise UnsupportedOperatorError(
                    f"operator {func} on {value.dtype}: exact numerics covers float32 arithmetic; "
                    "use .float() first, and no torch.autocast"
                )
        elif isinstance(value, (list, tuple)):
            _refuse_foreign(func, kind, value, device)
        elif isinstance(value, torch.device):
            _require_place(func, value, device)
        elif isinstance(value, torch.Generator):
            raise UnsupportedOperatorError(
                f"operator {func} with a generator on {value.device}: make it on the CPU, by"
                " torch.Generator(); its numbers go wherever the operator computes"
            )


def _require_place(func: OpOverload, place: torch.device, device: torch.device) -> None:
    if place.type not in ("cpu", device.type):
        raise UnsupportedOperatorError(
            f"operator {func} on device {place}: this step is computed on the CPU"
            + (f" and {device}" if device.type != "cpu" else "; choose the device with --device")
        )
