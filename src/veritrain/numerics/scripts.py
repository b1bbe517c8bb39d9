"""Functions of `torch.jit.script` and `torch.jit.trace` run as they were written.

After some calls PyTorch's executor rewrites them, with derivatives of its own that round otherwise, so
that the bits would depend on how often a function ran.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]


@contextmanager
def plain_scripts() -> Generator[None]:
    """Within it nothing is rewritten, and what was rewritten before is forgotten."""
    kinds = (_C.ScriptFunction, _C.ScriptMethod)
    originals = [kind.__call__ for kind in kinds]
    optimised: bool = _C._get_graph_executor_optimize()
    _C._set_graph_executor_optimize(False)
    for kind, original in zip(kinds, originals, strict=True):
        kind.__call__ = _forgetting(original)
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.__call__ = original
        _C._set_graph_executor_optimize(optimised)


def _forgetting(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._debug_flush_compilation_cache()
        return original(self, *args, **kwargs)

    return call
