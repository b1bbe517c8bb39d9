"""What all our dispatch modes share: they see every ATen operator of their thread, below
autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode, ABC):
    """A dispatch mode whose `operator` gives the results of each operator."""

    @abstractmethod
    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The results of `func`; the mode is not in force meanwhile."""

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
        return self.operator(func, args, kwargs or {})
