"""The dispatch mode: sees every ATen operator below autograd and computes it by its rule.

It only dispatches. What an operator means is in `rules`; nothing is passed through by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.random import Stream
from veritrain.numerics.rules import Rule, lookup, short_name

_cached_lookup: Callable[[OpOverload], Rule] = cache(lookup)


class ExactMode(TorchDispatchMode):
    """Computes every operator by its `exact` rule; random operators draw from `stream`.

    Raises (from any operator run under it):
        UnsupportedOperatorError: an operator without a rule, a dtype, layout or device without one.
    """

    stream: Stream  # where random operators take their keys; set before the first of them

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No wrapper that guards against compilation: it loads the compiler and costs each call."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        _refuse_foreign(func, args, kwargs)
        if func.namespace == "aten" and short_name(func).startswith("_foreach_"):
            return self._foreach(func, args, kwargs)
        rule = _cached_lookup(func)
        if rule.takes_stream:
            return rule.function(self.stream, *args, **kwargs)
        return rule.function(*args, **kwargs)

    def _foreach(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`_foreach_f(xs, ...)` is f(x, ...) for each x; lists run along with it."""
        name = short_name(func).removeprefix("_foreach_")
        single = getattr(torch.ops.aten, "linalg_vector_norm" if name == "norm" else name)
        count = len(args[0])
        results: list[Any] = []
        with self:
            for i in range(count):
                one = [a[i] if isinstance(a, (list, tuple)) else a for a in args]
                results.append(single(*one, **kwargs))
        return None if name.endswith("_") else results


def _refuse_foreign(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Only dense CPU tensors have definitions."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.device.type not in ("cpu", "meta") or value.layout != torch.strided:
                raise UnsupportedOperatorError(
                    f"operator {func} on a {value.layout} tensor on {value.device}: exact numerics "
                    "covers dense tensors on the CPU"
                )
        elif isinstance(value, torch.device) and value.type not in ("cpu", "meta"):
            raise UnsupportedOperatorError(
                f"operator {func} on device {value}: exact numerics covers the CPU"
            )
