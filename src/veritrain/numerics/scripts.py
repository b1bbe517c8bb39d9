"""Programs that PyTorch makes of a model: those of TorchScript run as they were written, and
`torch.export` is refused.

After some calls TorchScript's executor rewrites a function, with derivatives of its own that round
otherwise, so that the bits would depend on how often it ran.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from veritrain.errors import UnsupportedOperatorError

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


@contextmanager
def no_export() -> Generator[None]:
    """Within it `torch.export` raises: under a dispatch mode it ends the process."""
    names = ("export", "draft_export")
    originals = [getattr(torch.export, name) for name in names]
    for name in names:
        setattr(torch.export, name, _refuse_export)
    try:
        yield
    finally:
        for name, original in zip(names, originals, strict=True):
            setattr(torch.export, name, original)


def _refuse_export(*args: object, **kwargs: object) -> None:
    raise UnsupportedOperatorError(
        "torch.export inside a step: use the model itself, or export it before"
    )
