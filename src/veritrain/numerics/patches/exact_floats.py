"""Python floats that are the same on every machine.

Python's `math.cos` and the like, and `**`, go to the C library, whose last bit depends on its
version and on the processor (it picks kernels with or without fused multiply-add when it loads).
The correctly rounded value is the one that every machine can agree on. `+ - * /` and `math.sqrt`
are so already (IEEE 754).

`correctly_rounded_math` is about the functions. `**` between two plain floats cannot be reached;
between an optimiser's hyper-parameter and anything it can, by `exact_hyperparameters`.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, wraps
from types import ModuleType
from typing import Any

import mpmath
import mpmath.libmp
from torch.optim import Optimizer

from veritrain.numerics.patches.replaced import Replacement, replaced

# Far more than any double needs to decide how these functions round (about 120 bits).
_PRECISION_BITS = 400
_refining = threading.local()  # mpmath itself calls `math`: to it, the originals answer


def correctly_rounded_math() -> AbstractContextManager[None]:
    """Within it, the functions of `math` in `_FUNCTIONS` round correctly, and so do `random.gauss`
    and its like, which call them. Names imported before (`from math import cos`) are not
    reached."""
    return replaced(_ROUNDED)


def _round(
    original: Callable[..., Any], exact: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    rough = original(*arguments)  # also raises what it raises, and decides 0, inf and NaN
    if not isinstance(rough, float) or not rough or not math.isfinite(rough):
        return rough
    if getattr(_refining, "on", False):
        return rough
    _refining.on = True
    try:
        with mpmath.workprec(_PRECISION_BITS):
            value = exact(*(mpmath.mpf(argument) for argument in arguments))
            return mpmath.libmp.to_float(mpmath.mpf(value)._mpf_, rnd="n")
    finally:
        _refining.on = False


def _rounded(module: ModuleType, prefix: str, name: str) -> Replacement:
    original, exact = getattr(math, name), _FUNCTIONS[name]

    @wraps(original)
    def function(*arguments: Any) -> Any:
        if name == "log" and len(arguments) == 2:
            return function(arguments[0]) / function(arguments[1])  # as CPython defines it
        return _round(original, exact, arguments)

    return Replacement.by(module, prefix + name, function)


def _log2(x: Any) -> Any:
    return mpmath.log(x, 2)


def _exp2(x: Any) -> Any:
    return mpmath.power(2, x)


def _lgamma(x: Any) -> Any:
    return mpmath.log(abs(mpmath.gamma(x)))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(mpmath, name)
    for name in (
        "exp", "expm1", "log", "log1p", "log10", "sin", "cos", "tan", "asin", "acos", "atan",
        "atan2",
        "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "gamma", "cbrt",
    )
} | {
    "pow": mpmath.power,
    "log2": _log2,
    "exp2": _exp2,
    "lgamma": _lgamma,
}  # fmt: skip
# The module `random` holds functions of `math` by names of its own: `_log` and so on.
_ROUNDED = [
    _rounded(module, prefix, name)
    for module, prefix in ((math, ""), (random, "_"))
    for name in _FUNCTIONS
    if hasattr(module, prefix + name)
]


def _power(base: float, exponent: float) -> Any:
    return _nonzero_power(base, exponent) if base else base**exponent  # 0 equals -0: no key


@lru_cache(maxsize=4096)  # an optimiser asks for one power for each of its parameters
def _nonzero_power(base: float, exponent: float) -> Any:
    return _round(float.__pow__, mpmath.power, (base, exponent))


class ExactFloat(float):
    """A float whose powers, and the powers of what is computed from it, round correctly."""

    __slots__ = ()

    def __pow__(self, exponent: Any, modulus: None = None) -> Any:
        return (
            _exact(_power(float(self), float(exponent))) if _is_real(exponent) else NotImplemented
        )

    def __rpow__(self, base: Any, modulus: None = None) -> Any:
        return _exact(_power(float(base), float(self))) if _is_real(base) else NotImplemented


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float))


def _exact(value: Any) -> Any:
    return ExactFloat(value) if type(value) is float else value


def _keep_exact(name: str) -> None:
    operation = getattr(float, name)

    @wraps(operation)
    def method(self: ExactFloat, *others: Any) -> Any:
        return _exact(operation(self, *others))

    setattr(ExactFloat, name, method)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod"):
    _keep_exact(f"__{_name}__")
    _keep_exact(f"__r{_name}__")
for _name in ("neg", "pos", "abs"):
    _keep_exact(f"__{_name}__")


@contextmanager
def exact_hyperparameters(optimizer: Optimizer) -> Generator[None]:
    """Within it, powers of the optimiser's hyper-parameters (`beta ** step`) round correctly.

    They are `ExactFloat`s within it, and plain again afterwards, also where the state took some
    over.
    """
    stores = optimizer.param_groups
    for store in stores:
        store.update(_converted({k: v for k, v in store.items() if k != "params"}, ExactFloat))
    try:
        yield
    finally:
        states = [state for state in optimizer.state.values() if isinstance(state, dict)]
        for store in (*stores, *states):
            store.update(_converted({k: v for k, v in store.items() if k != "params"}, float))


def _converted(value: Any, kind: type[float]) -> Any:
    """The same with every float, also inside lists, tuples and dicts, as `kind`."""
    if isinstance(value, float):  # numpy's float64 is one too
        return kind(value)
    if type(value) in (list, tuple):
        return type(value)(_converted(item, kind) for item in value)
    if type(value) is dict:
        return {key: _converted(item, kind) for key, item in value.items()}
    return value
